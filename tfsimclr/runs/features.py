"""Features of images: those of a run's network and of the baselines beside it."""

import numpy as np

from tfsimclr.data import dataset as datasets
from tfsimclr.data import sampling
from tfsimclr.networks.initial_weights import InitialWeights
from tfsimclr.runs import loading
from tfsimclr.settings.config import Config
from tfsimclr.views import random_view

PIXEL_SIZE = 32
MAX_HELD_OUT = 1000


def held_out(
    config: Config, dataset: datasets.DataSet
) -> tuple[datasets.Split | None, str]:
    """Returns at most 1,000 images that a run was not trained on, and their origin.

    They are from the test split or else from the share that `--val_share` holds out,
    always the same ones; None if there are neither.

    Args:
        config: Resolved.
        dataset: The data of the run.
    """
    if dataset.test and len(dataset.test.images):
        return subset(dataset.test), "test split"
    pretrain = dataset.pretrain
    if pretrain is None or not config.val_share:
        return None, ""
    _, rows = sampling.pretraining_rows(
        len(pretrain.images), config.num_pretrain_images, config.val_share
    )
    split = datasets.Split(pretrain.images[rows], pretrain.labels[rows])
    return subset(split), "images held out from training"


def subset(split: datasets.Split) -> datasets.Split:
    """Returns at most 1,000 images of a split, always the same ones."""
    order = np.random.default_rng(0).permutation(len(split.images))
    rows = np.sort(order[:MAX_HELD_OUT])
    return datasets.Split(split.images[rows], split.labels[rows])


def extract(
    config: Config,
    model,
    *image_sets: np.ndarray,
    weights: InitialWeights | None = None,
) -> list[dict]:
    """Returns the un-augmented features of sets of images, in the order of the report.

    With `weights`, "init_h" is the h of an encoder that has them, untrained.

    Args:
        config: Resolved.
        model: The trained model.
        *image_sets: Each `[n, H, W, 3]` in 0-255, uint8 or float.
        weights: Weights that the encoder started from, or None if they were random.

    Returns:
        For each set `{"pixels": [n, d], "random_h": ..., "h": ..., "head_1": ...,
        "z": ...}`, float32.
    """
    baselines = {"random_h": loading.untrained(config)}
    if weights is not None:
        baselines["init_h"] = loading.untrained(config, weights=weights)
    return [
        {
            "pixels": pixels(images, config.image_size),
            **{name: net.features(images)["h"] for name, net in baselines.items()},
            **model.features(images),
        }
        for images in image_sets
    ]


def pixels(images, image_size: int) -> np.ndarray:
    """Returns the images themselves as features: at most 32 pixels a side, in 0-1.

    Args:
        images: `[n, H, W, 3]` in 0-255.
        image_size: Side of a view in pixels.

    Returns:
        `[n, 3 s^2]` float32 with s = min(image_size, 32).
    """
    size = min(image_size, PIXEL_SIZE)
    blocks = [
        random_view.plain_view(images[i : i + 1024], size).numpy()
        for i in range(0, len(images), 1024)
    ]
    return np.concatenate(blocks).reshape(len(images), -1)
