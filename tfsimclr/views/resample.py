"""Matrices that crop, resize, flip and blur one axis of every image of a batch.

Each of these operations is linear and separable, so any chain of them is one matrix per
axis, and `rows @ image @ columns^T` applies the whole chain.
"""

import math
import typing

import numpy as np
import tensorflow as tf

LOG_ASPECT = math.log(4 / 3)
CROP_DRAWS = 1 + 10
SIGMAS = (0.1, 2.0)
# Largest number of matrix rows that share a window of columns (see BandedMatrices).
# Measured at 96 pixels: 16 and 24 are equally fast.
BLOCK = 24


def random_boxes(
    draws, height, width, min_area: float, max_area: float = 1.0
) -> tf.Tensor:
    """Returns random crops `[n, 4]`: top, bottom, left, right in pixels, float32.

    The area is uniform in `[min_area, max_area]` of the image's area, the aspect ratio
    log-uniform in 3/4 to 4/3, the position uniform. As in torchvision's
    RandomResizedCrop a crop that does not fit into the image is drawn again, up to ten
    times; here all ten attempts are drawn at once and the first that fits is used.
    If none fits, the crop is the largest central one with an allowed aspect ratio.

    Differs: torchvision rounds boxes to whole pixels; here edges are fractional.

    Args:
        draws: Random numbers `[n, CROP_DRAWS, 2]`, uniform in 0-1: first the position,
            then area and aspect ratio of each attempt.
        height: Height of the images in pixels, integer.
        width: Width of the images in pixels, integer.
        min_area: Smallest share of the image's area, above 0, at most 1.
        max_area: Largest share of the image's area, at least `min_area`, at most 1.
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area = height * width * (min_area + (max_area - min_area) * draws[:, 1:, 0])
    root_aspect = tf.exp(LOG_ASPECT * (draws[:, 1:, 1] - 0.5))  # of width / height
    heights = tf.sqrt(area) / root_aspect  # [n, attempts]
    widths = tf.sqrt(area) * root_aspect
    fallback = tf.stack(
        [tf.minimum(height, width * 4 / 3), tf.minimum(width, height * 4 / 3)]
    )

    fits = (heights <= height) & (widths <= width)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1, output_type=tf.int32)
    attempts = tf.stack([heights, widths], axis=2)  # [n, attempts, 2]
    first_size = tf.gather(attempts, first, axis=1, batch_dims=1)  # [n, 2]
    any_fits = tf.reduce_any(fits, axis=1, keepdims=True)
    size = tf.where(any_fits, first_size, fallback)
    position = tf.where(any_fits, draws[:, 0], 0.5)
    start = position * (tf.stack([height, width]) - size)
    return tf.reshape(tf.stack([start, start + size], axis=2), [-1, 4])


def resize_matrices(
    start,
    stop,
    size: int,
    in_size,
    interpolation: str = "bilinear",
    kernels=None,
) -> tf.Tensor:
    """Returns matrices that resize the interval from `start` to `stop` of an axis.

    The result is that of `PIL.Image.resize(box=...)`: the interpolation kernel widens
    where the image shrinks (antialiasing), and pixels outside the interval contribute
    if they are inside the image.

    Args:
        start: `[n]`, float32, in pixels. If greater than `stop` the axis is flipped.
        stop: `[n]`, float32, in pixels.
        size: Length of the resized interval in pixels.
        in_size: Length of the whole axis in pixels.
        interpolation: `"bilinear"`, or `"bicubic"` (a = -0.5).
        kernels: None, or `[n, 2 radius + 1]` from `blur_kernels`: the resized axis
            is blurred, with reflected borders (the edge pixel is not repeated).

    Returns:
        `[n, size, in_size]`, float32; rows sum to 1.
    """
    if kernels is None:
        outputs = np.arange(size)[None]
    else:
        outputs = _blocks(size, kernels.shape[1])
    inputs = tf.range(tf.cast(in_size, tf.float32))[None, None]
    weights = _weights(start, stop, size, outputs, inputs, interpolation)
    if kernels is not None:
        weights = _blur_rows(weights, kernels)
    _, blocks, block, _ = weights.shape
    weights = tf.reshape(weights, [-1, blocks * block, in_size])
    return weights if blocks * block == size else weights[:, :size]


class BandedMatrices(typing.NamedTuple):
    """Resize matrices `[n, size, in_size]` stored without most of their zeros.

    The rows are divided into blocks of neighbouring rows. For each block one window of
    consecutive columns is stored, outside of which the block is zero.

    Attributes:
        size: Number of rows of a matrix.
        first: First column of the window of each block, int32 `[n, blocks]`.
        weights: The windows, float32 `[n, blocks, rows, columns]`. If `size` is not
            `blocks * rows`, the last rows of the last block are padding.
    """

    size: int
    first: tf.Tensor
    weights: tf.Tensor


def banded_resize_matrices(
    start, stop, size: int, in_size, kernels=None
) -> BandedMatrices:
    """Returns the bilinear `resize_matrices` of the same arguments in banded form.

    A row of a resize matrix has few nonzero weights, and neighbouring rows have them in
    nearly the same columns. The interval must lie inside the axis: the width of the
    windows is computed for the whole axis, the largest interval possible.
    """
    outputs = _blocks(size, 1 if kernels is None else kernels.shape[1])
    # Width of a window: the distance between the first and the last centre of a block
    # plus half a kernel at either end. The kernel is two output pixels wide, and an
    # output pixel covers in_size / size input pixels, or 1 where the image grows.
    reach = (outputs.shape[1] + 1) * tf.maximum(in_size, size)
    width = tf.minimum((reach + size - 1) // size + 1, in_size)
    centers, support = _centers(start, stop, size, outputs)
    lowest = tf.reduce_min(centers, axis=2) - support[:, None]
    first = tf.cast(tf.floor(lowest), tf.int32)
    first = tf.clip_by_value(first, 0, in_size - width)
    inputs = first[:, :, None] + tf.range(width)  # [n, blocks, width]
    inputs = tf.cast(inputs, tf.float32)
    weights = _weights(start, stop, size, outputs, inputs, "bilinear")
    if kernels is not None:
        weights = _blur_rows(weights, kernels)
    return BandedMatrices(size, first, weights)


def multiply(matrices, images, transpose: bool = False) -> tf.Tensor:
    """Returns the product of each matrix and image, `[n, size, m]` float32.

    Args:
        matrices: `[n, size, in_size]`, `[1, size, in_size]` or `BandedMatrices`.
        images: `[n, in_size, m]`, uint8 or float.
        transpose: Whether the images are `[n, m, in_size]` instead.
    """
    if not isinstance(matrices, BandedMatrices):
        images = tf.cast(images, tf.float32)
        return tf.matmul(matrices, images, transpose_b=transpose)
    if transpose:  # gather takes whole rows
        images = tf.transpose(images, [0, 2, 1])
    size, first, weights = matrices
    _, blocks, block, _ = weights.shape
    index = first[:, :, None] + tf.range(tf.shape(weights)[3])
    # Cast after gathering: bytes are cheaper to move than floats.
    images = tf.cast(tf.gather(images, index, batch_dims=1), tf.float32)
    products = tf.matmul(weights, images)  # [n, blocks, block, m]
    products = tf.reshape(products, [-1, blocks * block, tf.shape(images)[3]])
    return products if blocks * block == size else products[:, :size]


def _blocks(size: int, kernel_size: int) -> np.ndarray:
    """Returns the output pixels that each block of rows needs before the blur.

    The blur of a block reads `radius` more pixels at either end; at the borders of the
    image these are reflected.

    Returns:
        Indices `[blocks, b]`, int, in 0 .. size - 1.
    """
    radius = kernel_size // 2
    blocks = -(-size // BLOCK)
    rows = -(-size // blocks)
    index = rows * np.arange(blocks)[:, None] + np.arange(-radius, rows + radius)
    return size - 1 - np.abs(size - 1 - np.abs(index))


def _centers(start, stop, size, outputs):
    """Returns positions of output pixels and the kernel's scale, in input pixels.

    Returns:
        Centers `[n, blocks, b]` and scale `[n]`, at least 1; the bilinear kernel
        reaches this far to either side.
    """
    scale = (stop - start) / size  # [n]
    outputs = tf.constant(outputs + 0.5, tf.float32)
    centers = start[:, None, None] + scale[:, None, None] * outputs
    return centers, tf.maximum(tf.abs(scale), 1.0)


def _weights(start, stop, size, outputs, inputs, interpolation):
    """Returns the weight of each input pixel in each output pixel.

    Args:
        start: As in `resize_matrices`.
        stop: As in `resize_matrices`.
        size: As in `resize_matrices`.
        outputs: Indices of output pixels, `[blocks, b]`.
        inputs: Indices of input pixels, float32 `[n or 1, blocks or 1, m]`.
        interpolation: Key of `INTERPOLATIONS`.

    Returns:
        `[n, blocks, b, m]`, float32; the last axis sums to 1.
    """
    centers, support = _centers(start, stop, size, outputs)
    step = 1 / support[:, None, None]
    inputs = (inputs + 0.5) * step
    distance = tf.abs(inputs[:, :, None] - (centers * step)[..., None])
    weights = INTERPOLATIONS[interpolation](distance)
    return weights / tf.reduce_sum(weights, axis=3, keepdims=True)


def _bilinear(x):
    return tf.nn.relu(1 - x)


def _bicubic(x):
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return tf.where(x < 1, near, tf.where(x < 2, far, 0.0))


INTERPOLATIONS = {"bilinear": _bilinear, "bicubic": _bicubic}


def blur_radius(size: int) -> int:
    """Returns the radius of the blur kernel: its width is a tenth of the image.

    The width 2 radius + 1 is 3 at 32 pixels, 9 at 96 and 23 at 224. Differs: SimCLR's
    radius is 0 below 20 pixels, ours is at least 1.

    Args:
        size: Side of the image in pixels.

    Source: Chen et al. 2020 (arXiv:2002.05709), appendix A.
    """
    return min(max(size // 10 // 2, 1), size - 1)


def random_sigmas(draws, probability: float) -> tf.Tensor:
    """Returns the blur of each image, `[n]`: sigma in pixels, 0 for no blur.

    Args:
        draws: Random numbers `[n, 2]`, uniform in 0-1.
        probability: Probability of a blur; its sigma is uniform in 0.1 to 2.
    """
    low, high = SIGMAS
    sigma = low + (high - low) * draws[:, 1]
    return tf.where(draws[:, 0] < probability, sigma, 0.0)


def blur_kernels(sigma, radius: int) -> tf.Tensor:
    """Returns Gaussian kernels `[n, 2 radius + 1]` that sum to 1.

    Args:
        sigma: Standard deviations in pixels, `[n]`; 0 gives the identity.
        radius: From `blur_radius`.
    """
    squares = tf.constant(np.arange(-radius, radius + 1) ** 2, tf.float32)
    return tf.nn.softmax(-squares / (2 * tf.maximum(sigma, 1e-3)[:, None] ** 2))


def _blur_rows(weights, kernels):
    """Convolves the rows of resize matrices with blur kernels.

    Args:
        weights: `[n, blocks, b, m]`.
        kernels: `[n, 2 radius + 1]`.

    Returns:
        `[n, blocks, b - 2 radius, m]`.
    """
    count, b = kernels.shape[1], weights.shape[2]
    block = b - count + 1
    shifts = np.stack([np.eye(block, b, k, dtype="float32") for k in range(count)])
    bands = tf.matmul(kernels, shifts.reshape(count, -1))
    return tf.matmul(tf.reshape(bands, [-1, 1, block, b]), weights)
