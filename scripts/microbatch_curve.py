"""The loss of a batch in micro-batches beside that of the plain step, step by step.

    python scripts/microbatch_curve.py FOLDER --out=results/memory

FOLDER has images in any folders. A small ResNet is trained with SimCLR three times from
the same weights, on the same views: in micro-batches; in whole batches with batch norm
over sub-batches of the same images; and in whole batches with batch norm over all of
them. The first two compute the same numbers in two ways. The third shows how much the
statistics of batch norm change the loss.
"""

import argparse
import csv
import pathlib

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from tfsimclr.data import batches
from tfsimclr.methods.simclr import SimCLR
from tfsimclr.networks import heads, norms, resnet
from tfsimclr.views.random_view import Views

SIZE = 32
RATE = 1e-3


class SubBatchSimCLR(SimCLR):
    """The plain step, in which batch norm sees both views of a part of the images."""

    num_parts = 1

    def pass_through(self, call, networks, views, order=None, training=True):
        n, count = views[0].shape[0], len(views)
        # The rows of the concatenated views, a part of the images after the other.
        rows = np.arange(n).reshape(self.num_parts, -1)
        rows = np.concatenate([rows + n * i for i in range(count)], axis=1).ravel()
        outputs = call(tf.gather(tf.concat(views, axis=0), rows))
        back = np.argsort(rows)
        split = [tf.split(tf.gather(o, back), count) for o in outputs]
        return [list(of_view) for of_view in zip(*split, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--images", type=int, default=10240)
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--microbatch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    images = load(arguments.folder, arguments.images)
    batch, size = arguments.batch_size, arguments.microbatch_size
    losses = {}
    for name in ("micro-batches", "sub-batches", "whole batch"):
        model = build(name, batch, size)
        data = batches.training_batches(images, batch, 0, 0, arguments.steps)
        record = Losses()
        model.fit(data, shuffle=False, verbose=0, callbacks=[record])
        losses[name] = record.values
        print(name, record.values[0], record.values[-1], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "loss_curves.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *losses])
        for step, values in enumerate(zip(*losses.values(), strict=True), 1):
            writer.writerow([step, *(f"{value:.6f}" for value in values)])
    reference = np.array(losses["sub-batches"])
    for name in ("micro-batches", "whole batch"):
        difference = np.abs(np.array(losses[name]) - reference)
        print(
            f"{name} less sub-batches: at most {difference.max():.2g}, at the first "
            f"step {difference[0]:.2g}"
        )


def build(name: str, batch: int, size: int) -> SimCLR:
    """Returns a compiled model; all of them have the same weights and views."""
    keras.utils.set_random_seed(0)
    encoder = resnet.resnet(10, 0.125, "medium")
    head = heads.ProjectionHead(2)
    if name == "micro-batches":
        model = SimCLR(encoder, head, Views(SIZE), microbatch_size=size)
    else:
        model = SubBatchSimCLR(encoder, head, Views(SIZE))
    if name == "sub-batches":
        model.num_parts = batch // size
        for network in (encoder, head):
            norms.set_bn_groups(network, model.num_parts)
    model.compile(optimizer=keras.optimizers.Adam(RATE))
    return model


class Losses(keras.callbacks.Callback):
    """Records the loss of every step."""

    def __init__(self):
        super().__init__()
        self.values: list[float] = []
        self._sum = 0.0

    def on_train_batch_end(self, batch, logs=None):
        # Keras reports the mean of the steps so far.
        total = float(logs["loss"]) * (batch + 1)
        self.values.append(total - self._sum)
        self._sum = total


def load(folder: pathlib.Path, count: int) -> np.ndarray:
    """Returns images `[n, s, s, 3]`, uint8, evenly spread over the files."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png"))
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, count).astype(int)]
    images = [Image.open(p).convert("RGB").resize((SIZE, SIZE)) for p in chosen]
    return np.stack([np.asarray(image) for image in images])


if __name__ == "__main__":
    main()
