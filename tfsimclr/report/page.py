"""The page of one run, put together from its record and its pictures."""

import dataclasses
import importlib.resources
import math
import pathlib
import re

import jinja2
import numpy as np

from tfsimclr import files
from tfsimclr.evaluation import label_free, neighbors
from tfsimclr.report import charts, image_map, sprites
from tfsimclr.report.content import Pictures, Record

NUM_QUERIES = 12
NUM_NEIGHBORS = 8
NUM_OUTLIERS = 12
NUM_PAIRS = 12
OUTLIER_NEIGHBORS = 10
MAX_MATRIX_CLASSES = 16
NUM_CONFUSIONS = 12
NUM_OF_GROUP = 24
MAX_SCALE = 3
FEATURE_LABELS = {
    "pixels": "pixels",
    "random_h": "untrained",
    "init_h": "initial weights",
}


def run_page(
    record: Record, config, pictures: Pictures | None, command: str, seed: int = 0
) -> str:
    """Returns the HTML of the page of a run.

    Args:
        record: The files of the run.
        config: Its resolved settings.
        pictures: Images to show, or None if the data are not at hand.
        command: The command that repeats the run.
        seed: Seed of the choice of queries.
    """
    result = record.result
    content = {
        "title": f"{config.method} on {config.dataset}",
        "result": result,
        "verdict": _verdict(result),
        "accuracy": _accuracy(record, config.feature),
        "facts": facts(result),
        "data": data_facts(result),
        "curves": training_curves(record.history),
        "features": feature_rows(record, config.feature),
        "confusion": _confusion(record),
        "settings": _settings(config),
        "versions": _versions(result),
        "command": command,
        "pictures": None,
    }
    if pictures is not None:
        content["pictures"] = _picture_sections(
            pictures, result.get("class_names", []), seed
        )
    return render("run.html", **content)


def render(template: str, **content) -> str:
    """Returns a template filled in; every value is escaped."""
    folder = importlib.resources.files("tfsimclr.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda name: (folder / name).read_text(encoding="utf-8")
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # In their order: Bokeh's entries refer to earlier ones.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters["percent"] = percent
    environment.filters["count"] = lambda number: f"{number:,}"
    html = environment.get_template(template).render(**content)
    # A line does not break between a number and its unit.
    return re.sub(r"(?<=\d) (?=%|nats)", "\u00a0", html)


def write(path: pathlib.Path, html: str) -> None:
    """Writes a page atomically; what is not valid Unicode becomes a question mark."""
    files.write_atomically(path, html.encode(errors="replace"))


def percent(share: float | None, digits: int = 1) -> str:
    """Returns a share in 0-1 as text, or a dash for None."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:.{digits}f} %"


def span(first: float, last: float, unit: str = "") -> str:
    """Returns two values as text, such as `0.00 to −1.46 nats`.

    Both have the same number of decimals: three digits of the larger one.
    """
    if not (math.isfinite(first) and math.isfinite(last)):
        ends = [f"{x:.3g}" if math.isfinite(x) else "–" for x in (first, last)]
    else:
        largest = max(abs(first), abs(last))
        digits = 2 - math.floor(math.log10(largest)) if largest else 0
        digits = min(max(digits, 0), 9)
        # Adding zero turns -0.0 into 0.0.
        ends = [f"{round(x, digits) + 0.0:,.{digits}f}" for x in (first, last)]
    text = " to ".join(ends).replace("-", "−")
    return f"{text} {unit}".rstrip()


def wilson(share: float | None, count: int) -> tuple[float, float] | None:
    """Returns the 95 % interval of a share of images, None if it is not known.

    Args:
        share: In 0-1.
        count: Number of images; 0 is unknown.

    Source: Wilson 1927; Agresti and Coull 1998.
    """
    if share is None or not count:
        return None
    z2 = label_free.NORMAL_95**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = share * (1 - share) / count + z2 / (4 * count**2)
    half = label_free.NORMAL_95 * math.sqrt(spread) / (1 + z2 / count)
    return max(0.0, center - half), min(1.0, center + half)


def feature_label(name: str) -> str:
    """Returns the name of a feature as the page shows it."""
    label = FEATURE_LABELS.get(name)
    return f"{label} ({name})" if label and label != name else name


def _verdict(result: dict) -> dict:
    scores = result.get("label_free")
    if not scores:
        return {
            "state": "unknown",
            "sentence": "This run has no held-out images, so it was not scored without "
            "labels.",
            "detail": "",
        }
    verdict = scores["verdict"]
    states = {True: "good", False: "bad", None: "unknown"}
    low, high = verdict["interval"]
    label = FEATURE_LABELS[verdict["baseline"]]
    return {
        "state": states[verdict["learned"]],
        "sentence": verdict["sentence"],
        "detail": f"Measured without labels on two random views of each of "
        f"{scores['num_images']:,} images ({scores['origin']}); 50 % is chance. "
        f"h minus {label}: {100 * verdict['difference']:+.1f} points, 95 % interval "
        f"{100 * low:+.1f} to {100 * high:+.1f}.",
    }


def _accuracy(record: Record, feature: str) -> dict | None:
    """Returns the accuracy of the reported classifier beside the baselines."""
    features = record.result.get("features") or {}
    if feature not in features:
        return None
    count = num_test_images(record)
    top1 = features[feature]["top1"]
    interval = wilson(top1, count)
    others = [
        f"{FEATURE_LABELS[name]} {percent(features[name]['top1'])}"
        for name in FEATURE_LABELS
        if name in features
    ]
    majority = features[feature].get("majority_share")
    if majority is not None:
        others.append(f"always the most frequent class {percent(majority)}")
    return {
        "feature": feature,
        "top1": percent(top1),
        "interval": " to ".join(map(percent, interval)) if interval else None,
        "count": count,
        "others": ", ".join(others),
    }


def num_test_images(record: Record) -> int:
    """Returns the number of labelled test images, 0 if it is not known."""
    if record.confusion is not None:
        return int(record.confusion.sum())
    return int(record.result.get("num_images", {}).get("test", 0))


def facts(result: dict) -> list[tuple[str, str]]:
    """Returns what was trained, as pairs of a name and a text."""
    config, cost = result["config"], result.get("pretrain", {})
    rate = cost.get("images_per_second")
    memory = cost.get("peak_memory_bytes")
    encoder = config["backbone"]
    if config["width"] is not None:  # a ResNet
        encoder += f", width {config['width']:g}, stem {config['stem']}"
    if config.get("selective_kernel"):
        encoder += ", selective kernels"
    rows = [
        (
            "method",
            f"{config['method']}, {_some_of(config['proj_layers'], 'head layer')}",
        ),
        ("encoder", encoder),
        ("views", f"{config['image_size']} pixels a side"),
        ("optimizer", f"{config['optimizer']}, batch size {config['batch_size']}"),
        (
            "training",
            f"{_some_of(cost.get('epochs'), 'epoch')}, "
            f"{_some_of(cost.get('steps', 0), 'step')}",
        ),
        ("time", duration(cost.get("seconds"))),
        ("speed", f"{rate:,.0f} images/s" if rate else "–"),
        ("memory", f"{memory / 1e9:.2f} GB at most" if memory else "–"),
        ("device", str(result.get("device", "–"))),
        ("precision", config["precision"]),
    ]
    return rows


def data_facts(result: dict) -> list[tuple[str, str]]:
    """Returns what is known of the data, as pairs of a name and a text."""
    config = result["config"]
    rows = [("data set", config["dataset"])]
    if config.get("data_dir"):
        rows.append(("folder", config["data_dir"]))
    names = {"unlabeled": "images without labels", "train": "training images"}
    names["test"] = "test images"
    for split, count in (result.get("num_images") or {}).items():
        rows.append((names.get(split, split), f"{count:,}"))
    if config.get("num_pretrain_images"):
        rows.append(("pretrained on", f"{config['num_pretrain_images']:,} of them"))
    if config.get("val_share"):
        rows.append(("held out", percent(config["val_share"])))
    classes = result.get("class_names") or []
    if classes:
        shown = ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "")
        rows.append(("classes", f"{len(classes):,}: {shown}"))
    return rows + _described(result.get("data"))


def _described(data: dict | None) -> list[tuple[str, str]]:
    """Returns the entries `data` of result.json as text; older results have none."""
    data, rows = data or {}, []
    for key in ("found", "left_aside"):
        if data.get(key):
            counts = [f"{count:,} {kind}" for kind, count in data[key].items()]
            rows.append((key.replace("_", " "), ", ".join(counts)))
    if data.get("unreadable"):
        rows.append(("unreadable", _some(data["unreadable"])))
    if data.get("values"):
        low, high, most = (
            data["values"][key] for key in ("smallest", "largest", "quantile_99")
        )
        rows.append(("values", f"{low} to {high}, 99 % of them at most {most}"))
    if data.get("duplicates"):
        copies = data["duplicates"]
        text = f"{copies['images']:,} ({percent(copies['share'])})"
        if copies["test_images_in_training"]:
            text += (
                f"; {copies['test_images_in_training']:,} test images are also among "
                "the training images"
            )
        rows.append(("exact copies", text))
    if data.get("several_frames"):
        rows.append(("several pages or frames", f"{data['several_frames']:,} files"))
    if data.get("notes"):
        rows.append(("notes", "; ".join(map(str, data["notes"]))))
    return rows


def _some_of(count: int, noun: str) -> str:
    """Returns a number with its noun, such as `1 epoch` or `40 epochs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _some(entries: list, count: int = 5) -> str:
    """Returns the first of some entries, and how many there are in all."""
    text = "; ".join(str(entry) for entry in entries[:count])
    return f"{len(entries):,}: {text}" + ("; …" if len(entries) > count else "")


def duration(seconds: float | None) -> str:
    """Returns seconds as text: `45 s`, `2 min 11 s` or `1 h 20 min`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


# Title -> unit, whether logarithmic, and the columns of history.csv with their labels.
_CHARTS = {
    "Loss above chance": (
        "nats",
        False,
        {"loss_above_chance": "training", "val_loss_above_chance": "held out"},
    ),
    "Loss": ("", False, {"loss": "training", "val_loss": "held out"}),
    "Contrastive top-1": (
        "%",
        False,
        {"contrastive_top1": "training", "val_contrastive_top1": "held out"},
    ),
    "Learning rate": ("", False, {"learning_rate": "learning rate"}),
    "Gradient norm": ("", True, {"gradient_norm": "gradient norm"}),
    "Effective rank": (
        "dimensions",
        False,
        {"effective_rank": "h", "z_effective_rank": "z"},
    ),
    "Alignment of the views": ("", False, {"alignment": "z"}),
}


def training_curves(history: list[dict]) -> list[dict]:
    """Returns the charts of a training: title, SVG and a sentence for each."""
    if not history:
        return []
    epochs = [row["epoch"] for row in history]
    shown: list[dict] = []
    for title, (unit, log, columns) in _CHARTS.items():
        # The loss itself only where it has no value at chance.
        if title == "Loss" and shown:
            continue
        lines, ends = {}, []
        for column, label in columns.items():
            values = [row.get(column) for row in history]
            if all(value is None for value in values):
                continue
            numbers = [math.nan if value is None else value for value in values]
            numbers = [100 * n if unit == "%" else n for n in numbers]
            lines[label] = (epochs, numbers)
            text = span(numbers[0], numbers[-1], unit)
            ends.append((label, text))
        if not lines:
            continue
        numbers = [n for _, values in lines.values() for n in values]
        # Below a factor of ten, a logarithmic axis has no round number to label.
        log = log and min(numbers) > 0 and max(numbers) > 10 * min(numbers)
        texts = [
            text if len(ends) == 1 else " ".join((label, text)) for label, text in ends
        ]
        caption = f"First to last epoch: {'; '.join(texts)}."
        label = unit or title.lower()
        svg = charts.curves(lines, label, f"{title}. {caption}", log)
        shown.append({"title": title, "svg": svg, "caption": caption})
    return shown


def feature_rows(record: Record, reported: str) -> list[dict]:
    """Returns a row for every feature: its scores with and without labels."""
    with_labels = record.result.get("features") or {}
    without = record.result.get("label_free") or {"features": {}, "num_images": 0}
    count, rows = num_test_images(record), []
    for name in dict.fromkeys([*with_labels, *without["features"]]):
        scores = with_labels.get(name, {})
        free = without["features"].get(name, {})
        top1, retrieval = scores.get("top1"), free.get("retrieval_top1")
        rows.append(
            {
                "label": feature_label(name),
                "reported": name == reported,
                "dim": scores.get("dim"),
                "top1": top1,
                "top1_interval": wilson(top1, count),
                "top5": scores.get("top5"),
                "knn": scores.get("knn"),
                "mean_class": scores.get("mean_class_accuracy"),
                "auc": free.get("retrieval_auc"),
                "retrieval": retrieval,
                "retrieval_interval": wilson(retrieval, without["num_images"]),
                "retrieval5": free.get("retrieval_top5"),
                "rankme": free.get("rankme"),
                "uniformity": free.get("uniformity"),
                "alignment": free.get("alignment"),
            }
        )
    return rows


def _confusion(record: Record) -> dict | None:
    counts, names = record.confusion, record.result.get("class_names") or []
    if counts is None or len(names) != len(counts) or not counts.sum():
        return None
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    classes = [
        {
            "name": name,
            "accuracy": float(shares[i, i]) if totals[i] else None,
            "count": int(totals[i]),
            "interval": wilson(float(shares[i, i]), int(totals[i])),
        }
        for i, name in enumerate(names)
    ]
    wrong = [
        (int(counts[i, j]), i, j) for i, j in np.argwhere(counts).tolist() if i != j
    ]
    wrong.sort(key=lambda entry: (-entry[0], entry[1:]))
    return {
        "classes": classes,
        "names": names,
        "counts": counts.tolist(),
        "shares": shares.tolist(),
        "is_table": len(names) <= MAX_MATRIX_CLASSES,
        "svg": None if len(names) <= MAX_MATRIX_CLASSES else charts.matrix(counts),
        "frequent": [
            {
                "count": count,
                "label": names[i],
                "prediction": names[j],
                "share": float(shares[i, j]),
            }
            for count, i, j in wrong[:NUM_CONFUSIONS]
        ],
    }


def _settings(config) -> list[dict]:
    rows = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "workdir":  # a page that is sent on names no folders
            value = "the folder of this page"
        rows.append(
            {
                "name": field.name,
                "value": "" if value is None else str(value),
                "changed": value != field.default,
                "help": field.metadata["help"],
            }
        )
    return rows


def _versions(result: dict) -> list[tuple[str, str]]:
    rows = [(name, str(value)) for name, value in result["versions"].items()]
    return [
        *rows,
        ("commit", str(result.get("git_commit") or "not from a checkout")),
        ("seed", str(result.get("seed"))),
    ]


def _picture_sections(pictures: Pictures, class_names, seed: int) -> dict:
    sheet = sprites.sheet(pictures.images)
    texts = _texts(pictures, class_names)
    thumbnails = [
        {"x": column, "y": line, "alt": text}
        for text, (column, line) in zip(
            texts, map(sheet.position, range(len(texts))), strict=True
        )
    ]
    size = pictures.pairs.shape[0] // 3
    h = pictures.features["h"]
    return {
        "origin": pictures.origin,
        "held_out": pictures.held_out,
        "count": len(pictures.images),
        "sheet": sheet,
        "pairs": {
            "uri": sprites.png_uri(
                pictures.pairs, max(1, min(MAX_SCALE, 96 // max(size, 1)))
            ),
            "count": pictures.pairs.shape[1] // size,
        },
        **_neighbors(pictures, thumbnails, seed),
        "map": _map(h, pictures, class_names, sheet, texts, thumbnails),
        **_unusual(h, thumbnails),
    }


def _texts(pictures: Pictures, class_names) -> list[str]:
    """Returns a text for each image: its class, if known, and its number."""
    return [
        f"{class_names[label]}, image {row + 1}"
        if 0 <= label < len(class_names)
        else f"image {row + 1}"
        for row, label in enumerate(pictures.labels.tolist())
    ]


def _neighbors(pictures: Pictures, thumbnails: list[dict], seed: int) -> dict:
    """Returns queries with their nearest neighbours under each feature."""
    labels, count = pictures.labels, len(pictures.images)
    if count < 2:
        return {"queries": [], "agreement": []}
    nearest = {
        name: neighbors.nearest_others(rows, NUM_NEIGHBORS)
        for name, rows in pictures.features.items()
    }
    queries = [
        {
            "thumbnail": thumbnails[row],
            "columns": [
                {
                    "label": feature_label(name),
                    "thumbnails": [
                        {
                            **thumbnails[other],
                            "similarity": f"{similarity:.2f}",
                            "same": bool(labels[row] == labels[other] >= 0),
                        }
                        for similarity, other in zip(
                            near[row].tolist(), rows[row].tolist(), strict=True
                        )
                    ],
                }
                for name, (near, rows) in nearest.items()
            ],
        }
        for row in choose_queries(labels, seed)
    ]
    agreement = []
    known = labels >= 0
    if len(np.unique(labels[known])) > 1:
        agreement = [
            {
                "label": FEATURE_LABELS.get(name, name),
                "share": float((labels[rows] == labels[:, None])[known].mean()),
            }
            for name, (_, rows) in nearest.items()
        ]
    return {"queries": queries, "agreement": agreement}


def choose_queries(labels: np.ndarray, seed: int) -> list[int]:
    """Returns rows of at most twelve random images, spread over the classes."""
    order = np.random.default_rng((seed, 0x9E7)).permutation(len(labels))
    seen: dict[int, int] = {}
    rounds = []
    for row in order.tolist():
        label = int(labels[row])
        rounds.append(seen.get(label, 0))
        seen[label] = seen.get(label, 0) + 1
    best = np.argsort(rounds, kind="stable")[:NUM_QUERIES]
    return order[best].tolist()


def _map(h, pictures: Pictures, class_names, sheet, texts, thumbnails) -> dict | None:
    if len(h) < image_map.MIN_IMAGES:
        return None
    group = image_map.groups(h, pictures.labels, class_names)
    item = image_map.plot(image_map.layout(h), group, sheet, texts)
    return {
        "kind": group.kind,
        "item": item,
        "script": image_map.script(),
        "groups": [
            {
                "name": name,
                "color": color,
                "mark": mark,
                "count": int((group.members == index).sum()),
                "thumbnails": [
                    thumbnails[row]
                    for row in np.flatnonzero(group.members == index)[:NUM_OF_GROUP]
                ],
            }
            for index, (name, (color, mark)) in enumerate(
                zip(group.names, group.marks, strict=True)
            )
        ],
        "list": [
            {"x": entry["x"], "y": entry["y"], "text": entry["alt"]}
            for entry in thumbnails
        ],
    }


def _unusual(h: np.ndarray, thumbnails: list[dict]) -> dict:
    """Returns the most similar pairs of images, and the images least like any other."""
    if len(h) < 2:
        return {"similar": [], "outliers": []}
    mean = neighbors.mean_similarity(h, OUTLIER_NEIGHBORS)
    return {
        "similar": [
            {
                "thumbnails": [thumbnails[row] for row in rows],
                "similarity": f"{similarity:.3f}",
            }
            for similarity, *rows in most_similar_pairs(h, NUM_PAIRS)
        ],
        "outliers": [
            {**thumbnails[row], "similarity": f"{mean[row]:.2f}"}
            for row in np.argsort(mean, kind="stable")[:NUM_OUTLIERS].tolist()
        ],
    }


def most_similar_pairs(h: np.ndarray, count: int) -> list[tuple[float, int, int]]:
    """Returns the pairs of the highest cosine similarity, each row in one pair at most.

    Args:
        h: Features, `[n, d]`.
        count: Most pairs to return.

    Returns:
        Similarity and the two rows of each pair, the most similar pair first.
    """
    near, rows = neighbors.nearest_others(h, NUM_NEIGHBORS)
    pairs: list[tuple[float, int, int]] = []
    used: set[int] = set()
    for place in np.argsort(-near, axis=None, kind="stable").tolist():
        first, column = divmod(place, near.shape[1])
        second = int(rows[first, column])
        if first in used or second in used:
            continue
        used |= {first, second}
        pairs.append((float(near[first, column]), *sorted((first, second))))
        if len(pairs) == count:
            break
    return pairs
