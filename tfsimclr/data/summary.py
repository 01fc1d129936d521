"""What was understood of a data set, for the terminal and for result.json."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from tfsimclr import files
from tfsimclr.data import depth, images

_MAX_NAMED = 5
_MAX_CLASSES = 10
_MAX_LENGTH = 100
_DARK = 51  # a fifth of 255
_QUANTILE = 0.99


class Statistics:
    """Statistics of prepared images, which are added block by block.

    Two images are duplicates if their prepared pixels are equal: such are copies of a
    file, also under other names or with other metadata.
    """

    def __init__(self):
        self._hashes: dict[str, list[int]] = {}
        self._histogram = np.zeros(256, np.int64)

    def add(self, split: str, block: np.ndarray) -> None:
        """Adds images, uint8 `[k, s, s, 3]`."""
        hashes = [int(files.sha256(image)[:16], 16) for image in block]
        self._hashes.setdefault(split, []).extend(hashes)
        self._histogram += np.bincount(block.ravel(), minlength=256)

    def result(self) -> dict:
        """Returns the values and duplicates of all images that were added."""
        hashes = {k: np.array(v, np.uint64) for k, v in self._hashes.items()}
        everything = np.concatenate([*hashes.values(), np.zeros(0, np.uint64)])
        test = hashes.pop("test", np.zeros(0, np.uint64))
        others = np.concatenate([*hashes.values(), np.zeros(0, np.uint64)])
        count = len(everything)
        repeated = count - len(np.unique(everything))
        present = np.flatnonzero(self._histogram)
        share = np.cumsum(self._histogram) / max(1, self._histogram.sum())
        return {
            "values": {
                "smallest": int(present.min(initial=255)),
                "largest": int(present.max(initial=0)),
                "quantile_99": int(np.searchsorted(share, _QUANTILE)),
            },
            "duplicates": {
                "images": repeated,
                "share": repeated / max(1, count),
                "test_images_in_training": int(np.isin(test, others).sum()),
            },
        }


def wide_result(
    wide: Mapping[str, tuple[int, float, float]], ranges: Mapping[str, depth.Range]
) -> dict:
    """Returns what result.json says about images with more than 8 bits."""
    return {
        kind: {
            "images": count,
            "smallest": low,
            "largest": high,
            "range": [ranges[kind].low, ranges[kind].high],
        }
        for kind, (count, low, high) in wide.items()
    }


def interpretation_lines(name: str, source) -> list[str]:
    """Returns what can be said before the images are read."""
    lines = [f"Data: {name}" + (f" {source.place}" if source.place else "")]
    if source.found:
        lines.append(f"found: {_counts(source.found)}")
    if source.left_aside:
        lines.append(f"left aside: {_counts(source.left_aside)}{_hint(source)}")
    splits = [f"{split} {_images(source.count(split))}" for split in source.splits]
    lines.append(f"splits: {', '.join(splits)}")
    if source.notes:
        lines.append("note: " + "; ".join(source.notes))
    return _indented(lines)


def content_lines(content: Mapping) -> list[str]:
    """Returns what can be said when the images are prepared.

    Args:
        content: As returned by `content`.
    """
    lines = []
    classes = content["classes"]
    if classes:
        counts = [f"{c['name']} {c['train'] + c['test']}" for c in classes]
        rest = len(counts) - _MAX_CLASSES
        listed = ", ".join(counts[:_MAX_CLASSES])
        more = f" and {rest} more" if rest > 0 else ""
        lines.append(f"classes: {len(classes)}: {listed}{more}")
    if content["unreadable"]:
        lines.append(_unreadable_line(content["unreadable"]))
    if "values" in content:
        lines.append(_values_line(content))
    if content.get("several_frames"):
        count = content["several_frames"]
        lines.append(
            f"note: {count} file{'s hold' if count > 1 else ' holds'} several pages or "
            "frames; the first of each is used"
        )
    if "duplicates" in content:
        lines.append(_duplicates_line(content))
    return _indented(lines)


def content(dataset, source, opened) -> dict:
    """Returns the content of `data` in result.json.

    Args:
        dataset: The `dataset.DataSet`, of which splits and class names are used.
        source: Where the images come from.
        opened: Its store.
    """
    names = ("unlabeled", "train", "test")
    splits = {name: getattr(dataset, name) for name in names}
    num_classes = len(dataset.class_names)
    counts = {
        name: np.bincount(
            split.labels[split.labels >= 0] if split else [], minlength=num_classes
        ).tolist()
        for name, split in splits.items()
    }
    return as_text(
        {
            "found": dict(source.found),
            "left_aside": dict(source.left_aside),
            "unreadable": list(opened.skipped),
            "images": {k: len(split.images) for k, split in splits.items() if split},
            "classes": [
                {"name": n, "train": counts["train"][i], "test": counts["test"][i]}
                for i, n in enumerate(dataset.class_names)
            ],
            "notes": list(source.notes),
            **opened.summary,
        }
    )


def unreadable_kinds(reasons: Sequence[str]) -> str:
    """Returns the reasons and how often each occurs, the most frequent first."""
    counts: dict[str, int] = {}
    for reason in reasons:
        # Without numbers such as "(12 bytes not processed)", which differ.
        key = re.sub(r"\s*\(?\d+ bytes?[^,;]*\)?", "", reason)
        counts[key] = counts.get(key, 0) + 1
    ordered = dict(sorted(counts.items(), key=lambda item: -item[1]))
    return _counts({f"x {key}": count for key, count in ordered.items()})


def _counts(counts: Mapping[str, int]) -> str:
    """Returns "200 .heic, 3 .csv and 2 kinds more", the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    named = [
        f"{count} {key.replace('images', 'image', 1) if count == 1 else key}"
        for key, count in ordered[:_MAX_NAMED]
    ]
    rest = len(ordered) - len(named)
    more = f" and {rest} more kind{'s' * (rest > 1)}" if rest else ""
    return ", ".join(named) + more


def _hint(source) -> str:
    photos = sorted(images.CONVERTIBLE & set(source.left_aside))
    if not photos:
        return ""
    hints = []
    heif = [photo for photo in photos if photo in images.HEIF_EXTENSIONS]
    others = [photo for photo in photos if photo not in images.HEIF_EXTENSIONS]
    if heif:
        hints.append(f"pip install 'tfsimclr[heif]' to use {', '.join(heif)}")
    if others:
        hints.append(f"convert {', '.join(others)} to JPEG or PNG to use them")
    return f" ({'; '.join(hints)})"


def _unreadable_line(unreadable: Sequence[str]) -> str:
    # The end of a path and the reason tell more than its beginning.
    ends = [x if len(x) < _MAX_LENGTH else f"...{x[-_MAX_LENGTH:]}" for x in unreadable]
    shown = ", ".join(ends[:2])
    return f"unreadable: {len(unreadable)}, such as {shown}"


def _values_line(content: Mapping) -> str:
    values, parts = content["values"], []
    for kind, wide in content.get("wide", {}).items():
        low, high = wide["range"]
        part = f"{wide['smallest']:g} to {wide['largest']:g}"
        if kind == depth.INTEGER and 0 <= wide["smallest"] and wide["largest"] < 65536:
            part += f", {wide['largest'] / depth.MAX_UINT16:.1%} of 16 bits"
        noun = f"{kind} values" if kind == depth.FLOAT else "more than 8 bits"
        part = f"{_images(wide['images'])} of {noun} hold {part}"
        parts.append(f"{part}; {low:g} to {high:g} becomes 0 to 255 (--max_value)")
        if wide["largest"] > high:
            parts.append("larger values are clipped")
    if not parts:
        parts.append(f"{values['smallest']} to {values['largest']}")
    if values["quantile_99"] < _DARK:
        parts.append(
            f"dark: {_QUANTILE:.0%} of the values are at most {values['quantile_99']} "
            "of 255"
        )
    return "values: " + "; ".join(parts)


def _duplicates_line(content: Mapping) -> str:
    duplicates = content["duplicates"]
    both, line = duplicates["test_images_in_training"], "duplicates: "
    line += f"{duplicates['share']:.1%} of the images"
    if duplicates["images"]:
        line += f" ({duplicates['images']})"
    if both:
        line += f"; {both} of the test images are also among the training images"
    elif "test" in content["images"]:
        line += "; no test image is among the training images"
    return line


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _indented(lines: Sequence[str]) -> list[str]:
    """Returns the lines, each of which is one line whatever names are in it."""
    return [
        "  " * (not line.startswith("Data:")) + " ".join(line.split()) for line in lines
    ]


def as_text(value):
    """Returns a value whose text is UTF-8; names of files may hold any bytes."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {as_text(k): as_text(v) for k, v in value.items()}
    if isinstance(value, list):
        return [as_text(item) for item in value]
    return value
