"""The batches of a run: a pure function of seed and step."""

import functools

import numpy as np
import tensorflow as tf

from tfsimclr.errors import UserError


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the number of whole batches in an epoch, without the remainder.

    Raises:
        UserError: If there is not one whole batch.
    """
    if not 1 <= batch_size <= num_images:
        raise UserError(
            f"batch_size must lie between 1 and the {num_images} images of the data "
            f"set, got {batch_size}. Try --batch_size={max(1, num_images // 2)} or add "
            "images."
        )
    return num_images // batch_size


def training_batches(
    images: np.ndarray,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    labels: np.ndarray | None = None,
    parts: range | None = None,
    num_parts: int = 1,
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
        parts: Which of the `num_parts` equal parts of every batch to return, one after
            the other, for devices that share the batches; None is whole batches.
        num_parts: Number of devices; a divisor of the batch size.

    Returns:
        Data set of uint8 `[batch_size / num_parts, s, s, 3]`; with labels, of pairs of
        it and int64 `[batch_size / num_parts]`. Its length is known without `parts`;
        with them it begins again at its end, which `tf.distribute` needs to keep the
        static shape.
    """
    per_epoch = steps_per_epoch(len(images), batch_size)
    if not 0 <= start_step <= stop_step:
        raise UserError(
            "expected 0 <= start_step <= stop_step, "
            f"got start_step={start_step} and stop_step={stop_step}."
        )

    if batch_size % num_parts:
        raise UserError(
            f"batch_size={batch_size} must be a multiple of the {num_parts} devices."
        )
    parts_of_step = range(1) if parts is None else parts
    size = batch_size // num_parts

    arrays = [images] if labels is None else [images, labels]
    types = [tf.uint8, tf.int64][: len(arrays)]

    def gather(number: np.ndarray) -> list[np.ndarray]:
        step, part = divmod(int(number), len(parts_of_step))
        epoch, piece = divmod(step, per_epoch)
        order = permutation(len(images), seed, epoch)
        first = piece * batch_size + parts_of_step[part] * size
        rows = order[first : first + size]
        return [array[rows] for array in arrays]

    def load(number: tf.Tensor):
        batch = tf.numpy_function(gather, [number], types, stateful=False)
        pairs = zip(batch, arrays, strict=True)
        batch = [tf.ensure_shape(x, (size, *a.shape[1:])) for x, a in pairs]
        return batch[0] if labels is None else tuple(batch)

    count = len(parts_of_step)
    numbers = tf.data.Dataset.range(start_step * count, stop_step * count)
    if parts is not None:
        numbers = numbers.repeat()
    loaded = numbers.map(load, num_parallel_calls=2 * count, deterministic=True)
    options = tf.data.Options()
    # There is nothing to tune, and at its end the tuner is waited for: up to 2 s a fit.
    options.autotune.enabled = False
    return loaded.prefetch(2 * count).with_options(options)


def validation_batches(images, batch_size: int) -> tf.data.Dataset:
    """Returns batches of held-out images, the same in every epoch.

    All batches have one size, because a loss depends on the number of negatives: the
    last one is filled up with images of the batch before it. Fewer images than a batch
    are one smaller batch.

    Args:
        images: Uint8 `[n, s, s, 3]`.
        batch_size: Images per batch.

    Returns:
        Data set of uint8 `[min(batch_size, n), s, s, 3]`.
    """
    size = min(batch_size, len(images))
    shape = (size, *images.shape[1:])
    starts = sorted({*range(0, len(images) - size, size), len(images) - size})

    def gather(start: np.ndarray) -> np.ndarray:
        return images[int(start) : int(start) + size]

    def load(start: tf.Tensor):
        batch = tf.numpy_function(gather, [start], tf.uint8, stateful=False)
        return tf.ensure_shape(batch, shape)

    return tf.data.Dataset.from_tensor_slices(starts).map(load).prefetch(1)


class Rows:
    """Some rows of an array, read when they are indexed: no copy of the whole.

    Args:
        array: `[n, ...]`, such as the memory-mapped images of a store.
        rows: Int64 `[m]`.
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray):
        self.array = array
        self.rows = rows
        self.shape = (len(rows), *array.shape[1:])
        self.dtype = array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index) -> np.ndarray:
        return self.array[self.rows[index]]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


@functools.lru_cache(maxsize=2)  # batches made in parallel straddle two epochs
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of one epoch: all of 0..n-1, a pure function of its arguments.

    Int64 `[n]`, read-only.
    """
    order = np.random.default_rng((seed % 2**64, epoch)).permutation(n)
    order.flags.writeable = False
    return order
