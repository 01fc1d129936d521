"""A folder that holds a data set as one memory-mapped uint8 array, and its batches."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

FORMAT = 1
_PIECE_BYTES = 1 << 24
_MAX_PIECES = 512


class Unusable(Exception):
    """A store that exists but is damaged or out of date; the message says how."""


@dataclasses.dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        images: Uint8 `[n, size, size, 3]`, memory-mapped, read-only.
        labels: Int64 `[n]`; -1 means no label.
        splits: Number of images of each split; the splits lie one after the other.
        class_names: Names of the classes 0, 1, ...
        skipped: One line for every image that was left out.
    """

    images: np.ndarray
    labels: np.ndarray
    splits: dict[str, int]
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the images and labels of one split, or None if there is none."""
        if not self.splits.get(name):
            return None
        names = list(self.splits)
        start = sum(self.splits[other] for other in names[: names.index(name)])
        rows = slice(start, start + self.splits[name])
        return self.images[rows], self.labels[rows]


def open(path: str | pathlib.Path, fingerprint: str = "", verify: bool = True) -> Store:
    """Opens the store at `path` and checks it.

    Args:
        path: Folder of the store.
        fingerprint: What `create` was given.
        verify: Whether to compare the checksums, of at most 8 GB: a second or two per
            2 GB.

    Raises:
        FileNotFoundError: If there is no store.
        Unusable: If the store is damaged, of another format, or made of something else.
    """
    folder = pathlib.Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"no store at {folder}")
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise Unusable(f"has format {meta['format']}, expected {FORMAT}")
        if meta["fingerprint"] != fingerprint:
            raise Unusable("was made of other data or with other settings")
        if meta.pop("digest") != digest(meta):
            raise Unusable("is damaged: meta.json does not match its checksum")
        for name, expected in meta["checksums"].items() if verify else ():
            if not _is_whole(folder / name, expected):
                raise Unusable(f"is damaged: {name} does not match its checksums")
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
        shape = (meta["count"], meta["size"], meta["size"], 3)
        if images.shape != shape or images.dtype != np.uint8:
            raise Unusable(f"is damaged: images are {images.shape}, expected {shape}")
        if labels.shape != shape[:1] or labels.dtype != np.int64:
            raise Unusable(f"is damaged: labels are {labels.shape}")
        return Store(
            images=images,
            labels=labels,
            splits=meta["splits"],
            class_names=tuple(meta["class_names"]),
            skipped=tuple(meta["skipped"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unusable(f"is damaged: {type(error).__name__}: {error}") from error


def digest(meta: dict) -> str:
    """Returns the checksum of a store's description."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def checksums(path: pathlib.Path, pieces: Iterable[int] | None = None) -> list[str]:
    """Returns the SHA-256 of the 16 MB pieces of a file: of all, or of those asked for.

    In pieces, so that all cores share the work, which is done whenever a store is
    opened.
    """

    def checksum(piece: int) -> str:
        with path.open("rb") as file:
            file.seek(piece * _PIECE_BYTES)
            return hashlib.sha256(file.read(_PIECE_BYTES)).hexdigest()

    if pieces is None:
        pieces = range(-(-path.stat().st_size // _PIECE_BYTES))
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(checksum, pieces))


def _is_whole(path: pathlib.Path, expected: list[str]) -> bool:
    """Compares up to 8 GB of a file, spread evenly, with its checksums."""
    count = len(expected)
    checked = min(count, _MAX_PIECES)
    pieces = [index * (count - 1) // max(1, checked - 1) for index in range(checked)]
    return checksums(path, pieces) == [expected[piece] for piece in pieces]


@functools.lru_cache(maxsize=2)  # batches made in parallel straddle two epochs
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of one epoch: all of 0..n-1, a pure function of its arguments.

    Int64 `[n]`, read-only.
    """
    order = np.random.default_rng((seed % 2**64, epoch)).permutation(n)
    order.flags.writeable = False
    return order


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the number of whole batches in an epoch; the rest is left out.

    Raises:
        ValueError: If there is not one whole batch.
    """
    if not 1 <= batch_size <= num_images:
        raise ValueError(
            f"batch_size must lie between 1 and the {num_images} images of the data "
            f"set, got {batch_size}. Try --batch_size={max(1, num_images // 2)} or add "
            "images."
        )
    return num_images // batch_size


def batches(
    images: np.ndarray,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    labels: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Returns the training batches start_step, ..., stop_step - 1 of an endless run.

    Batch k depends on (seed, k) alone: it is the piece number k % steps_per_epoch of
    the permutation of epoch k // steps_per_epoch. A run that starts in the middle of an
    epoch sees what an uninterrupted one would, whatever the number of threads.

    Args:
        images: Uint8 `[n, s, s, 3]`, in memory or memory-mapped.
        batch_size: Images per batch, at most n.
        seed: Any integer.
        start_step: Global step of the first batch, from 0.
        stop_step: Global step after the last batch.
        labels: Int64 `[n]`, or None.

    Returns:
        Data set of uint8 `[batch_size, s, s, 3]`, of known length; with labels, of
        pairs of it and int64 `[batch_size]`.
    """
    per_epoch = steps_per_epoch(len(images), batch_size)
    if not 0 <= start_step <= stop_step:
        raise ValueError(
            "expected 0 <= start_step <= stop_step, "
            f"got start_step={start_step} and stop_step={stop_step}."
        )

    arrays = [images] if labels is None else [images, labels]
    types = [tf.uint8, tf.int64][: len(arrays)]

    def gather(step: np.ndarray) -> list[np.ndarray]:
        epoch, piece = divmod(int(step), per_epoch)
        order = permutation(len(images), seed, epoch)
        rows = order[piece * batch_size : (piece + 1) * batch_size]
        return [array[rows] for array in arrays]

    def load(step: tf.Tensor):
        batch = tf.numpy_function(gather, [step], types, stateful=False)
        parts = zip(batch, arrays, strict=True)
        batch = [tf.ensure_shape(x, (batch_size, *a.shape[1:])) for x, a in parts]
        return batch[0] if labels is None else tuple(batch)

    steps = tf.data.Dataset.range(start_step, stop_step)
    loaded = steps.map(load, num_parallel_calls=2, deterministic=True)
    options = tf.data.Options()
    # There is nothing to tune, and at its end the tuner is waited for: up to 2 s a fit.
    options.autotune.enabled = False
    return loaded.prefetch(2).with_options(options)
