"""How many epochs a start from weights saves: adapts to five classes from five others.

    python scripts/init_epochs.py textures --out=results/init
    python scripts/init_epochs.py FOLDER --out=results/init

FOLDER has train/<class>/ and test/<class>/ with images, ten classes. A small ResNet is
pretrained with SimCLR on the images of the first five classes. Then, with each seed,
one run on the images of the other five starts from random weights and others from the
weights of the first run, with two learning rates. A linear classifier on h, trained on
the labels of these images, is scored on their test images after some of the epochs.
"""

import argparse
import json
import pathlib
import platform
import time

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from tfsimclr import __version__
from tfsimclr.data import batches, textures
from tfsimclr.evaluation import linear, metrics
from tfsimclr.methods.simclr import SimCLR
from tfsimclr.networks import heads, resnet
from tfsimclr.optimizers import schedules
from tfsimclr.runs import results
from tfsimclr.views.random_view import Views

SIZE = 32
BATCH = 128
RATE = 3e-4  # the default of Adam
# Name -> learning rate, epochs of warm-up, whether it starts from weights.
RUNS = {
    "random weights": (RATE, 0, False),
    "weights, same rate": (RATE, 0, True),
    "weights, half the rate, warm-up": (RATE / 2, 1, True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--images", type=int, default=1280, help="of five classes")
    parser.add_argument("--source_epochs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    load = load_textures if arguments.data == "textures" else load_folder
    source, target, test = load(arguments.data, arguments.images)
    start = time.monotonic()
    first = SourceWeights(train(source[0], 0, arguments.source_epochs, RATE, 0))
    rows = []
    for seed in range(arguments.seeds):
        for name, (rate, warmup, starts_from_weights) in RUNS.items():
            weights = first.values if starts_from_weights else None
            for epoch, model in run(target[0], seed, arguments, rate, warmup, weights):
                top1 = score(model, target, test)
                rows.append({"run": name, "seed": seed, "epoch": epoch, "top1": top1})
                print(rows[-1], f"{time.monotonic() - start:.0f} s", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "textures" if arguments.data == "textures" else "folder"
    content = {
        "command": f"python scripts/init_epochs.py {name} --images={arguments.images} "
        f"--source_epochs={arguments.source_epochs} --epochs={arguments.epochs} "
        f"--seeds={arguments.seeds}",
        "commit": results.git_commit(),
        "versions": {
            "tfsimclr": __version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "python": platform.python_version(),
        },
        "num_images": {"source": len(source[0]), "target": len(target[0])},
        "num_test_images": len(test[0]),
        "rows": rows,
    }
    path = arguments.out / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


class SourceWeights:
    """The weights of the encoder of the first run."""

    def __init__(self, model):
        self.values = model.encoder.get_weights()


def train(images, seed, epochs, rate, warmup):
    for _, model in run(images, seed, _Epochs(epochs), rate, warmup, None):
        last = model
    return last


class _Epochs:
    def __init__(self, epochs):
        self.epochs = epochs


def run(images, seed, arguments, rate, warmup, weights):
    """Yields (epochs done, model), the untrained one first."""
    keras.utils.set_random_seed(seed)
    encoder = resnet.resnet(10, 0.25, "medium")
    if weights is not None:
        encoder.set_weights(weights)
    model = SimCLR(encoder, heads.ProjectionHead(2), Views(SIZE), seed=seed)
    steps = len(images) // BATCH
    schedule = schedules.Schedule(rate, arguments.epochs * steps, warmup * steps)
    model.compile(optimizer=keras.optimizers.Adam(schedule))
    yield 0, model
    points = [1, 2, 4, 7, 12, 20, 40]
    done = 0
    for epoch in [p for p in points if p < arguments.epochs] + [arguments.epochs]:
        first, last = done * steps, epoch * steps
        model.fit(
            batches.training_batches(images, BATCH, seed, first, last),
            steps_per_epoch=last - first,
            shuffle=False,
            verbose=0,
        )
        done = epoch
        yield epoch, model


def score(model, target, test):
    """Returns the top-1 of a linear classifier on h."""
    images, labels = target
    classifier = linear.linear_classifier(
        model.features(images)["h"], labels, 5, learning_rate=3e-3, epochs=60
    )
    logits = linear.predict(classifier, model.features(test[0])["h"])
    return metrics.top_k_accuracy(logits, test[1], 1)


def table(rows) -> str:
    """Returns, for each run, the first epoch at which the mean reaches the score."""
    curves: dict = {}
    for row in rows:
        curves.setdefault(row["run"], {}).setdefault(row["epoch"], []).append(
            row["top1"]
        )
    means = {
        run: {epoch: float(np.mean(v)) for epoch, v in curve.items()}
        for run, curve in curves.items()
    }
    scratch = means["random weights"]
    goal = scratch[max(scratch)]
    lines = [
        f"Score to reach, that of random weights at the end: {goal:.2%}",
        "| run | before training | at the end | epochs to the score |",
        "|---|---|---|---|",
    ]
    for run, curve in means.items():
        reached = [epoch for epoch, mean in sorted(curve.items()) if mean >= goal]
        ends = [np.std(curves[run][epoch], ddof=1) for epoch in (0, max(curve))]
        lines.append(
            f"| {run} | {curve[0]:.2%} ± {ends[0]:.2%} | {curve[max(curve)]:.2%} ± "
            f"{ends[1]:.2%} | {reached[0] if reached else 'not reached'} |"
        )
    return "\n".join(lines)


def load_textures(_, count):
    """Returns (images, labels) of five classes, of the five others, and of a test."""
    images, _ = textures.make("unlabeled", SIZE)
    labels = np.arange(len(images)) % 10  # the classes take turns
    tests, test_labels = textures.make("test", SIZE)
    return split(images, labels, tests, np.array(test_labels), count)


def load_folder(folder, count):
    """Returns (images, labels) of five classes, of the five others, and of a test."""
    names = sorted(p.name for p in (pathlib.Path(folder) / "train").iterdir())
    parts = []
    for part, per_class in (("train", count // 5), ("test", 200)):
        images, labels = [], []
        for label, name in enumerate(names):
            paths = sorted((pathlib.Path(folder) / part / name).iterdir())[:per_class]
            images += [np.array(Image.open(p).convert("RGB")) for p in paths]
            labels += [label] * len(paths)
        parts += [np.array(images), np.array(labels)]
    return split(*parts, count)


def split(images, labels, tests, test_labels, count):
    parts = []
    for rows in (labels < 5, labels >= 5):
        chosen = np.flatnonzero(rows)
        chosen = np.random.default_rng(0).permutation(chosen)[:count]
        parts.append((images[chosen], labels[chosen] % 5))
    rows = test_labels >= 5
    return *parts, (tests[rows], test_labels[rows] % 5)


if __name__ == "__main__":
    main()
