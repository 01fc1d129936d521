"""How well the embeddings of a run find images of a class, and planted duplicates.

python scripts/embedding_quality.py RUN --images=FOLDER --out=results/embeddings

FOLDER has one folder per class. The features compared are pixels, h of the untrained
encoder, and h and z of the run.

Retrieval: every image is a query among all others; precision at 10 is the share of its
ten most similar images that have its class. By chance it is one in the number of
classes.

Duplicates: a copy of some images is added as a JPEG of low quality, cropped, mirrored
and brighter. A pair of an image and its copy, or of two copies of one image, is a
duplicate. Recall is the share of the pairs of an image and its copy at a similarity of
at least a threshold; precision the share of planted pairs among all pairs found.
Duplicates that the collection holds anyway count as errors. The threshold of a feature
is the lowest at which the precision is at least a target.
"""

import argparse
import json
import pathlib
import tempfile

import numpy as np
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from tfsimclr import __version__, files
from tfsimclr.data import collection as collections
from tfsimclr.evaluation import duplicates, neighbors
from tfsimclr.runs import features as extraction
from tfsimclr.runs import loading, results
from tfsimclr.settings import flagfiles

TOP = 10
PRECISIONS = (0.9, 0.5)
KINDS = ("jpeg", "crop", "mirror", "brighter")
NAMES = {
    "jpeg": "JPEG of quality 50",
    "crop": "cropped to 7/8 of the side",
    "mirror": "mirrored",
    "brighter": "30 % brighter",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path, help="Run folder.")
    parser.add_argument("--images", required=True, help="Folder of class folders.")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--copied", type=int, default=500, help="Images with copies.")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            options.run, options.images, pathlib.Path(folder), options.copied
        )
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    files.write_atomically(options.out / "quality.json", text.encode())
    page = report(result)
    files.write_atomically(options.out / "quality.md", page.encode())
    print(page)


def measure(
    run: pathlib.Path, images: str, folder: pathlib.Path, num_copied: int
) -> dict:
    """Returns the scores of all features.

    Args:
        run: The run folder.
        images: Folder of class folders.
        folder: An empty folder for the copies.
        num_copied: Number of images of which copies are made.
    """
    config = flagfiles.read_config(run / "flags.txt")
    trained, meta = loading.model(config, run)
    opened = collections.open_collection(images, config.image_size)
    order = np.random.default_rng(0).permutation(len(opened))
    copied = np.sort(order[:num_copied])
    copies = collections.from_paths(
        plant_copies([opened.paths[row] for row in copied], folder), config.image_size
    )
    originals = all_features(config, trained, opened)
    planted = all_features(config, trained, copies)
    labels = np.array([label or "" for label in opened.labels])
    scores = {}
    for name, values in originals.items():
        scores[name] = {
            "precision_at_10": precision_at(values, labels),
            "duplicates": duplicate_scores(values, planted[name], copied),
        }
    return {
        "command": "python scripts/embedding_quality.py RUN --images=FOLDER "
        "--out=results/embeddings",
        "versions": {"tfsimclr": __version__, "tensorflow": tf.__version__},
        "git_commit": results.git_commit(),
        "method": config.method,
        "backbone": config.backbone,
        "epochs": len(meta["rows"]),
        "images": len(opened),
        "copied": num_copied,
        "features": scores,
    }


def plant_copies(paths: list[str], folder: pathlib.Path) -> list[str]:
    """Writes copies of images; returns their paths, the kinds of an image together."""
    result = []
    for number, path in enumerate(paths):
        with Image.open(path) as file:
            image = file.convert("RGB")
        side = min(image.size) * 7 // 8
        left, top = np.random.default_rng((1, number)).integers(
            0, np.array(image.size) - side + 1
        )
        box = (int(left), int(top), int(left) + side, int(top) + side)
        changed = {
            "jpeg": (image, 50),
            "crop": (image.crop(box), 95),
            "mirror": (ImageOps.mirror(image), 95),
            "brighter": (ImageEnhance.Brightness(image).enhance(1.3), 95),
        }
        for kind in KINDS:
            copy, quality = changed[kind]
            copy.save(folder / f"{number:06}-{kind}.jpg", quality=quality)
            result.append(str(folder / f"{number:06}-{kind}.jpg"))
    return result


def all_features(config, trained, opened: collections.Collection) -> dict:
    """Returns `{feature: [n, d]}`: pixels, untrained h, h and z."""
    images = np.concatenate([batch.images for batch in opened.batches(1024)])
    (features,) = extraction.extract(config, trained, images)
    return {name: features[name] for name in ("pixels", "random_h", "h", "z")}


def precision_at(features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns the precision at 10 of the queries of each class, and of all."""
    rows = neighbors.nearest_others(features, TOP)[1]
    hits = (labels[rows] == labels[:, None]).mean(axis=1)
    by_class = {str(c): float(hits[labels == c].mean()) for c in np.unique(labels)}
    return {"all": float(hits.mean()), **by_class}


def duplicate_scores(
    originals: np.ndarray, planted: np.ndarray, copied: np.ndarray
) -> list[dict]:
    """Returns precision and recall at the threshold of every target precision.

    Args:
        originals: Features of the images, `[n, d]`.
        planted: Features of the copies, `[m * kinds, d]`, the kinds of an image
            together.
        copied: Row of the image of each group of copies, `[m]`.
    """
    features = np.concatenate([originals, planted])
    families = np.concatenate(
        [np.arange(len(originals)), np.repeat(copied, len(KINDS))]
    )
    first, second, values = most_similar_pairs(features, 40 * len(planted))
    order = np.argsort(-values, kind="stable")
    values = values[order]
    is_true = families[first[order]] == families[second[order]]
    precision = np.cumsum(is_true) / np.arange(1, len(is_true) + 1)
    unit = neighbors.normalize(features)
    own = np.einsum(
        "mkd,md->mk",
        unit[len(originals) :].reshape(len(copied), len(KINDS), -1),
        unit[copied],
    )
    scores = []
    for target in PRECISIONS:
        last = int(np.flatnonzero(precision >= target).max(initial=0))
        found = own >= values[last]
        recall = {kind: float(found[:, i].mean()) for i, kind in enumerate(KINDS)}
        scores.append(
            {
                "target_precision": target,
                "threshold": float(values[last]),
                "precision": float(precision[last]),
                "recall": {"all": float(found.mean()), **recall},
            }
        )
    return scores


def most_similar_pairs(features: np.ndarray, count: int):
    """Returns the pairs of the highest similarities, at least `count` of them."""
    near = neighbors.nearest_others(features, 20)[0].ravel()
    lowest = np.sort(near)[-min(count, len(near))]
    return duplicates.pairs_above(features, float(lowest))


def report(result: dict) -> str:
    """Returns the scores as a Markdown page."""
    features = result["features"]
    lines = [
        "# Quality of search",
        "",
        f"`{result['command']}`, commit {result['git_commit']}, tfsimclr "
        f"{result['versions']['tfsimclr']}, TensorFlow "
        f"{result['versions']['tensorflow']}: {result['method']}, "
        f"{result['backbone']}, {result['epochs']} epochs. {result['images']:,} "
        "images.",
        "",
        "Retrieval: precision at 10, %.",
        "",
    ]
    classes = list(next(iter(features.values()))["precision_at_10"])
    lines += [
        "| feature | " + " | ".join(classes) + " |",
        "|---" * (len(classes) + 1) + "|",
    ]
    for name, scores in features.items():
        cells = (f"{100 * scores['precision_at_10'][c]:.1f}" for c in classes)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Copies of {result['copied']} images: recall at the lowest threshold with a "
        "precision of at least the target, %.",
        "",
        "| feature | target precision | threshold | precision | all | "
        + " | ".join(NAMES[kind] for kind in KINDS)
        + " |",
        "|---" * (5 + len(KINDS)) + "|",
    ]
    for name, scores in features.items():
        for row in scores["duplicates"]:
            recall = (f"{100 * row['recall'][k]:.1f}" for k in ("all", *KINDS))
            lines.append(
                f"| {name} | {100 * row['target_precision']:.0f} | "
                f"{row['threshold']:.4f} | {100 * row['precision']:.1f} | "
                + " | ".join(recall)
                + " |"
            )
    return "\n".join(lines) + "\n"
