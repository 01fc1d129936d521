"""Every seeded subset and stratified split of images."""

import numpy as np

TEST_SHARE = 0.2


def labelled_rows(split, limit: int = 0) -> np.ndarray:
    """Returns the rows of a split that have a label, at most `limit` if not 0."""
    rows = np.flatnonzero(split.labels >= 0)
    if limit and limit < len(rows):
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:limit])
    return rows


def num_held_out(count: int) -> int:
    """Returns how many of a class's images are the test set: a fifth, but at least 1.

    A class of one image has none.
    """
    return round(TEST_SHARE * count) or int(count > 1)


def held_out_fifth(labels: np.ndarray) -> np.ndarray:
    """Returns which images are the test set: a fixed fifth per class, bool `[n]`."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        count = num_held_out(len(members))
        order = np.random.default_rng((0, int(label))).permutation(members)
        chosen[order[:count]] = True
    return chosen


def evenly_spread(count: int, limit: int) -> np.ndarray:
    """Returns at most `limit` of `count` rows, from the first to the last one."""
    return np.linspace(0, count - 1, min(limit, count)).astype(int)


def random_subset(images: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` of the images, always the same ones; 0 is all."""
    if count in (0, len(images)):
        return images  # not a copy: the images may be a file larger than memory
    return images[np.sort(np.random.default_rng(0).permutation(len(images))[:count])]


def pretraining_rows(
    count: int, limit: int = 0, val_share: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows to pretrain on and the rows held out, always the same ones.

    A larger share holds out the images of a smaller one and more.

    Args:
        count: Number of images.
        limit: How many of them to use, the images of `random_subset`; 0 is all.
        val_share: Share of those that is held out.

    Returns:
        Two sorted int64 arrays without a row in common.
    """
    rows = np.arange(count)
    if limit:
        rows = np.sort(np.random.default_rng(0).permutation(count)[:limit])
    order = np.random.default_rng((0, 0x7A1)).permutation(len(rows))
    held_out = order[: num_validation(len(rows), val_share)]
    return np.delete(rows, held_out), np.sort(rows[held_out])


def num_validation(count: int, val_share: float) -> int:
    """Returns how many of the pretraining images are held out."""
    return round(val_share * count)


def stratified_mask(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns a mask `[n]` that is true for about `share` of every class."""
    mask = np.zeros(len(labels), bool)
    generator = np.random.default_rng((seed, 0x5EED))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(share * len(members))) if len(members) > 1 else 0
        mask[generator.permutation(members)[:count]] = True
    return mask


def label_fraction(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns the rows that keep their label: the same share of every class.

    At least one of every class, and all of it if the share is 1. With the same seed a
    larger share holds a smaller one.

    Args:
        labels: `[n]` integers.
        share: Above 0, at most 1.
        seed: Integer.
    """
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = np.random.default_rng((seed, int(label))).permutation(rows)
        chosen.append(order[: max(1, round(share * len(rows)))])
    return np.sort(np.concatenate(chosen))
