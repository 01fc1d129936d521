"""The images that Keras's verbs take: their batches and the scale of their pixels.

Training, evaluation and `features` take images in 0-255, as files hold them; `call` and
`predict` take the network's own input, in 0-1. The wrong scale gives features that look
sound, so what cannot be meant is refused.
"""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tfsimclr.errors import UserError

CHECKED_IMAGES = 32


def batches(images, batch_size: int) -> Iterator:
    """Yields the images of whatever `fit` takes, a batch `[n, H, W, 3]` at a time.

    Args:
        images: An array `[n, H, W, 3]`; or batches: a `tf.data.Dataset`, a `PyDataset`,
            a generator or another iterable. If a batch is a pair, the second entry, the
            labels, is left out.
        batch_size: Images at a time, of an array.

    Raises:
        UserError: If there are batches without end.
    """
    if isinstance(images, tf.data.Dataset):
        if images.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise UserError("The data set repeats without end. Limit it with take().")
    elif isinstance(images, keras.utils.PyDataset):
        if images.num_batches is None:
            raise UserError("The PyDataset has no num_batches, so it has no end.")
    for batch in _batches(images, batch_size):
        shape = tuple(getattr(batch, "shape", ()))
        if len(shape) != 4 or shape[-1] != 3:
            raise UserError(
                "Expected batches of RGB images, [n, height, width, 3], got "
                f"{list(shape) or type(batch).__name__}. Use batch() on a data set of "
                "single images."
            )
        yield batch


def _batches(images, batch_size: int) -> Iterator:
    if isinstance(images, keras.utils.PyDataset):
        for index in range(images.num_batches):
            yield keras.utils.unpack_x_y_sample_weight(images[index])[0]
    elif hasattr(images, "shape"):
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size]
    else:
        for batch in images:
            yield keras.utils.unpack_x_y_sample_weight(batch)[0]


def check_0_255(data, verb: str) -> None:
    """Refuses images that are not in 0-255, of any data that `fit` takes.

    Only float images can be wrong. Of arrays the first images are read, of data sets
    the first batch; generators, which can be read only once, are not checked.

    Args:
        data: The argument x of the verb.
        verb: Name of the verb, for the message.

    Raises:
        UserError: If no value is above 1, and not all are 0.
    """
    images = _first_float_images(data)
    if images is not None and 0 < images.max(initial=0) <= 1:
        raise UserError(
            f"{verb} takes images in 0-255, got float images without a value above "
            f"{images.max():.3g}. Multiply them by 255; only `call` and `predict` take "
            "0-1."
        )


def check_0_1(data, verb: str) -> None:
    """Refuses images that are not in 0-1, as `check_0_255`."""
    images = _first_float_images(data)
    # Resizing by a cubic filter overshoots a little.
    if images is not None and images.max(initial=0) > 2:
        raise UserError(
            f"{verb} takes images in 0-1, got values up to {images.max():.4g}. Divide "
            "them by 255, or use `features`, which takes 0-255 and any size."
        )


def check_float(images, verb: str) -> None:
    """Refuses integers, which are in 0-255, where images in 0-1 are expected."""
    dtype = getattr(images, "dtype", None)
    if dtype is not None and not tf.as_dtype(dtype).is_floating:
        raise UserError(
            f"{verb} takes float images in 0-1, got {tf.as_dtype(dtype).name}. Divide "
            "them by 255, or use `features`, which takes 0-255 and any size."
        )


def _first_float_images(data) -> np.ndarray | None:
    """Returns some images if they are floats and can be read again, else None."""
    if isinstance(data, tf.data.Dataset):
        spec = keras.utils.unpack_x_y_sample_weight(data.element_spec)[0]
        # Of integers not one batch is read: a shuffled data set would fill its buffer.
        if not getattr(spec, "dtype", tf.uint8).is_floating:
            return None
        data = next(_batches(data.take(1), 1), np.zeros(0, np.float32))
    elif isinstance(data, keras.utils.PyDataset):
        data = keras.utils.unpack_x_y_sample_weight(data[0])[0]
    if not hasattr(data, "shape") or not hasattr(data, "dtype"):
        return None
    if not tf.as_dtype(data.dtype).is_floating:
        return None
    return np.asarray(data[:CHECKED_IMAGES])
