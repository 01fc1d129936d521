"""Matrices that crop, resize, mirror and blur one axis of every image of a batch.

Each of these operations is linear and separable, so a chain of them is one matrix per
axis, and `rows @ image @ columns^T` does them all.
"""

import math
import typing

import numpy as np
import tensorflow as tf

LOG_ASPECT = math.log(4 / 3)
CROP_DRAWS = 1 + 10
SIGMAS = (0.1, 2.0)
# Rows of a matrix that share a window. 16 and 24 are equally fast at 96 pixels.
BLOCK = 24


def random_boxes(draws, height, width, min_area: float) -> tf.Tensor:
    """Returns random crops `[n, 4]`: top, bottom, left, right in pixels, float32.

    The area is uniform in `[min_area, 1]` of the image's, the aspect ratio log-uniform
    in 3/4 to 4/3, the place uniform. As in torchvision's RandomResizedCrop a draw that
    does not fit is drawn again; here all ten attempts are drawn at once and the first
    that fits is taken. After ten failures the crop is the largest central one whose
    aspect ratio is allowed.

    Differs: torchvision rounds boxes to whole pixels; a matrix has no need to.

    Args:
        draws: `[n, CROP_DRAWS, 2]`, uniform in 0-1: the place, then the attempts.
        height: Pixels of the images, integer.
        width: Likewise.
        min_area: Share of the image, above 0, at most 1.
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area = height * width * (min_area + (1 - min_area) * draws[:, 1:, 0])
    root_aspect = tf.exp(LOG_ASPECT * (draws[:, 1:, 1] - 0.5))  # of width / height
    heights = tf.sqrt(area) / root_aspect  # [n, attempts]
    widths = tf.sqrt(area) * root_aspect
    fallback = tf.stack(
        [tf.minimum(height, width * 4 / 3), tf.minimum(width, height * 4 / 3)]
    )

    fits = (heights <= height) & (widths <= width)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1, output_type=tf.int32)
    attempts = tf.stack([heights, widths], axis=2)  # [n, attempts, 2]
    chosen = tf.gather(attempts, first, axis=1, batch_dims=1)  # [n, 2]
    found = tf.reduce_any(fits, axis=1, keepdims=True)
    size = tf.where(found, chosen, fallback)
    place = tf.where(found, draws[:, 0], 0.5)
    start = place * (tf.stack([height, width]) - size)
    return tf.reshape(tf.stack([start, start + size], axis=2), [-1, 4])


def resize_matrices(
    start, stop, size: int, in_size, kernel: str = "bilinear", taps=None
) -> tf.Tensor:
    """Returns the matrices that resize the stretch `start` to `stop` of an axis.

    They do what `PIL.Image.resize(box=...)` does: the kernel widens where the image
    shrinks (antialiasing), and pixels beside the box count if they are in the image.

    Args:
        start: `[n]`, float32, in pixels. Greater than `stop` mirrors the axis.
        stop: `[n]`, likewise.
        size: Pixels that come out.
        in_size: Pixels of the whole axis.
        kernel: `"bilinear"`, or `"bicubic"` (a = -0.5).
        taps: None, or of `blur_taps`: what comes out is blurred, its border mirrored
            without repeating the edge.

    Returns:
        `[n, size, in_size]`, float32; rows sum to 1.
    """
    outputs = np.arange(size)[None] if taps is None else _blocks(size, taps.shape[1])
    inputs = tf.range(tf.cast(in_size, tf.float32))[None, None]
    weights = _weights(start, stop, size, outputs, inputs, kernel)
    if taps is not None:
        weights = _blurred(weights, taps)
    _, blocks, block, _ = weights.shape
    weights = tf.reshape(weights, [-1, blocks * block, in_size])
    return weights if blocks * block == size else weights[:, :size]


class BandedMatrices(typing.NamedTuple):
    """Matrices `[n, size, in_size]` of which only the part that is not zero is kept.

    Attributes:
        size: Rows of a matrix.
        first: `[n, blocks]`, int32: the column where the window of a block of rows
            begins.
        weights: `[n, blocks, rows of a block, columns of a window]`, float32. The last
            block may have rows to spare.
    """

    size: int
    first: tf.Tensor
    weights: tf.Tensor


def banded_resize_matrices(
    start, stop, size: int, in_size, taps=None
) -> BandedMatrices:
    """Returns `resize_matrix(start, stop, size, in_size, taps=taps)` as windows.

    A row of such a matrix has a few weights that are not zero, and neighbours have them
    in nearly the same place. The stretch must lie within the axis, so that no window
    needs to be wider than the whole axis makes it.
    """
    outputs = _blocks(size, 1 if taps is None else taps.shape[1])
    # The least and the greatest centre are at most this far apart, and the kernel
    # reaches beyond both: in pixels, (outputs - 1 + 2) * (in_size / size, at least 1).
    reach = (outputs.shape[1] + 1) * tf.maximum(in_size, size)
    width = tf.minimum((reach + size - 1) // size + 1, in_size)
    centers, support = _centers(start, stop, size, outputs)
    lowest = tf.reduce_min(centers, axis=2) - support[:, None]
    first = tf.cast(tf.floor(lowest), tf.int32)
    first = tf.clip_by_value(first, 0, in_size - width)
    inputs = first[:, :, None] + tf.range(width)  # [n, blocks, width]
    inputs = tf.cast(inputs, tf.float32)
    weights = _weights(start, stop, size, outputs, inputs, "bilinear")
    return BandedMatrices(
        size, first, weights if taps is None else _blurred(weights, taps)
    )


def multiply(matrices, images, transpose: bool = False) -> tf.Tensor:
    """Returns the product of each matrix and image, `[n, size, m]` float32.

    Args:
        matrices: `[n, size, in_size]`, or `[1, size, in_size]`, or `Windows`.
        images: `[n, in_size, m]`, any type.
        transpose: Whether the images are `[n, m, in_size]` instead.
    """
    if not isinstance(matrices, BandedMatrices):
        images = tf.cast(images, tf.float32)
        return tf.matmul(matrices, images, transpose_b=transpose)
    if transpose:  # a window has to be whole rows to be gathered
        images = tf.transpose(images, [0, 2, 1])
    size, first, weights = matrices
    _, blocks, block, _ = weights.shape
    index = first[:, :, None] + tf.range(tf.shape(weights)[3])
    # Bytes are cheaper to gather than floats.
    images = tf.cast(tf.gather(images, index, batch_dims=1), tf.float32)
    products = tf.matmul(weights, images)  # [n, blocks, block, m]
    products = tf.reshape(products, [-1, blocks * block, tf.shape(images)[3]])
    return products if blocks * block == size else products[:, :size]


def _blocks(size: int, taps: int) -> np.ndarray:
    """Returns which outputs each block of rows needs before a blur, `[blocks, b]`."""
    radius = taps // 2
    blocks = -(-size // BLOCK)
    rows = -(-size // blocks)
    index = rows * np.arange(blocks)[:, None] + np.arange(-radius, rows + radius)
    return size - 1 - np.abs(size - 1 - np.abs(index))


def _centers(start, stop, size, outputs):
    """Returns centers `[n, blocks, b]` and half the width of the kernel `[n]`."""
    scale = (stop - start) / size  # [n]
    outputs = tf.constant(outputs + 0.5, tf.float32)
    centers = start[:, None, None] + scale[:, None, None] * outputs
    return centers, tf.maximum(tf.abs(scale), 1.0)


def _weights(start, stop, size, outputs, inputs, kernel):
    """Returns weights `[n, blocks, b, m]` of pixels `inputs`, `[n or 1, blocks, m]`."""
    centers, support = _centers(start, stop, size, outputs)
    step = 1 / support[:, None, None]
    inputs = (inputs + 0.5) * step
    distance = tf.abs(inputs[:, :, None] - (centers * step)[..., None])
    weights = KERNELS[kernel](distance)
    return weights / tf.reduce_sum(weights, axis=3, keepdims=True)


def _bilinear(x):
    return tf.nn.relu(1 - x)


def _bicubic(x):
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return tf.where(x < 1, near, tf.where(x < 2, far, 0.0))


KERNELS = {"bilinear": _bilinear, "bicubic": _bicubic}


def blur_radius(size: int) -> int:
    """Returns the taps beside the middle one: the kernel is a tenth of the image.

    As SimCLR has it, but at least one; 3 taps at 32 pixels, 9 at 96, 23 at 224.
    """
    return min(max(size // 10 // 2, 1), size - 1)


def random_sigmas(draws, probability: float) -> tf.Tensor:
    """Returns blurs `[n]`: 0.1 to 2 with a probability, 0 (none) otherwise.

    Args:
        draws: `[n, 2]`, uniform in 0-1.
        probability: Share of the images that are blurred.
    """
    low, high = SIGMAS
    sigma = low + (high - low) * draws[:, 1]
    return tf.where(draws[:, 0] < probability, sigma, 0.0)


def blur_kernels(sigma, radius: int) -> tf.Tensor:
    """Returns Gaussian kernels `[n, 2 radius + 1]` that sum to 1, for `sigma` `[n]`.

    Sigma 0 leaves everything as it is.
    """
    squares = tf.constant(np.arange(-radius, radius + 1) ** 2, tf.float32)
    return tf.nn.softmax(-squares / (2 * tf.maximum(sigma, 1e-3)[:, None] ** 2))


def _blurred(weights, taps):
    """Returns weights `[n, blocks, b - 2 radius, m]` of weights `[n, blocks, b, m]`."""
    count, b = taps.shape[1], weights.shape[2]
    block = b - count + 1
    shifts = np.stack([np.eye(block, b, k, dtype="float32") for k in range(count)])
    bands = tf.matmul(taps, shifts.reshape(count, -1))
    return tf.matmul(tf.reshape(bands, [-1, 1, block, b]), weights)
