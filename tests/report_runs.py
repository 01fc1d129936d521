"""A run that nobody trained, with names that try to break its page."""

import csv
import dataclasses
import json

import numpy as np

from tfsimclr.evaluation import neighbors
from tfsimclr.report import content
from tfsimclr.settings.config import Config

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "{{ 7 * 7 }} $\\frac{1}{0}$ & <b>bold</b> \udcff \u202e",
)
CONFIG = Config(
    dataset="folder",
    data_dir="/tmp/<i>images</i>",
    backbone="resnet10",
    width=0.25,
    image_size=16,
)
SCORES = {
    "retrieval_auc": 0.8,
    "retrieval_top1": 0.3,
    "retrieval_top5": 0.5,
    "rankme": 12.5,
    "uniformity": -2.0,
    "alignment": 0.4,
}


def result(**changes) -> dict:
    """Returns a result.json of three classes."""
    names = ("pixels", "random_h", "h", "z")
    features = {
        name: {
            "top1": 0.4 + 0.1 * place,
            "top5": None,
            "knn": 0.5,
            "mean_class_accuracy": 0.45,
            "majority_share": 0.34,
            "dim": 8,
        }
        for place, name in enumerate(names)
    }
    return {
        "config": dataclasses.asdict(CONFIG),
        "versions": {"tfsimclr": "0.3.0", "python": "3.11"},
        "seed": 0,
        "git_commit": None,
        "device": "CPU",
        "pretrain": {
            "epochs": 3,
            "steps": 30,
            "seconds": 75.0,
            "images_per_second": 900.0,
            "peak_memory_bytes": 10**9,
        },
        "features": features,
        "feature": "h",
        "top1": features["h"]["top1"],
        "class_names": [name.encode(errors="replace").decode() for name in HOSTILE],
        "num_images": {"unlabeled": 100, "test": 60},
        "label_free": {
            "num_images": 60,
            "origin": "test split",
            "features": {name: SCORES for name in names},
            "verdict": {
                "learned": True,
                "baseline": "pixels",
                "difference": 0.2,
                "interval": [0.1, 0.3],
                "sentence": "The sentence of the verdict.",
            },
        },
        **changes,
    }


def write_run(folder, **changes):
    """Writes the files of a run into a new folder."""
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result(**changes)))
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["epoch", "loss", "loss_above_chance", "contrastive_top1"]
        writer.writerow([*columns, "gradient_norm", "val_loss_above_chance"])
        for epoch in range(1, 4):
            writer.writerow([epoch, 4 / epoch, 1 / epoch, 0.1 * epoch, 10**epoch, ""])
    with (folder / "confusion.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", *result()["class_names"]])
        for name, row in zip(
            result()["class_names"], ([15, 3, 2], [1, 19, 0], [4, 6, 10]), strict=True
        ):
            writer.writerow([name, *row])
    return folder


def pictures(count=60, labelled=True):
    """Returns random images in three groups."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    centers = 4 * np.eye(3, 8)[labels]
    features = {
        name: neighbors.normalize(noise * rng.normal(size=(count, 8)) + centers)
        for name, noise in (("pixels", 9), ("random_h", 4), ("h", 0.7))
    }
    features["h"][7] = features["h"][5]
    return content.Pictures(
        images=rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8),
        labels=labels if labelled else np.full(count, -1),
        origin="test split",
        held_out=True,
        features=features,
        pairs=rng.random((48, 128, 3)),
    )
