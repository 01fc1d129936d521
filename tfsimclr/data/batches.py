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
        raise UserError(
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


@functools.lru_cache(maxsize=2)  # batches made in parallel straddle two epochs
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of one epoch: all of 0..n-1, a pure function of its arguments.

    Int64 `[n]`, read-only.
    """
    order = np.random.default_rng((seed % 2**64, epoch)).permutation(n)
    order.flags.writeable = False
    return order
