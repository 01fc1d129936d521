"""Matrices that crop, resize, mirror and blur one axis of every image of a batch.

Each of these operations is linear and separable, so a chain of them is one matrix per
axis, and `rows @ image @ columns^T` does them all.
"""

import math

import tensorflow as tf

LOG_ASPECT = math.log(4 / 3)
CROP_DRAWS = 1 + 10
SIGMAS = (0.1, 2.0)


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


def resize_matrix(start, stop, size, in_size, kernel: str = "bilinear") -> tf.Tensor:
    """Returns the matrices that resize the stretch `start` to `stop` of an axis.

    They do what `PIL.Image.resize(box=...)` does: the kernel widens where the image
    shrinks (antialiasing), and pixels beside the box count if they are in the image.

    Args:
        start: `[n]`, float32, in pixels. Greater than `stop` mirrors the axis.
        stop: `[n]`, likewise.
        size: Pixels that come out.
        in_size: Pixels of the whole axis.
        kernel: `"bilinear"`, or `"bicubic"` (a = -0.5).

    Returns:
        `[n, size, in_size]`, float32; rows sum to 1.
    """
    scale = (stop - start) / tf.cast(size, tf.float32)  # [n]
    step = 1 / tf.maximum(tf.abs(scale), 1.0)
    outputs = tf.range(tf.cast(size, tf.float32)) + 0.5
    inputs = tf.range(tf.cast(in_size, tf.float32)) + 0.5
    centers = start[:, None] + scale[:, None] * outputs  # [n, size]
    distance = tf.abs(
        inputs * step[:, None, None] - (centers * step[:, None])[:, :, None]
    )
    weights = KERNELS[kernel](distance)
    return weights / tf.reduce_sum(weights, axis=2, keepdims=True)


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


def blur_matrix(sigma, size: int, radius: int) -> tf.Tensor:
    """Returns Gaussian blurs of an axis, `[n, size, size]`, for `sigma` `[n]`.

    The kernel has `2 radius + 1` taps that sum to 1, the border is mirrored without
    repeating the edge, sigma 0 is the identity.
    """
    offsets = tf.range(-radius, radius + 1)
    squares = tf.cast(offsets * offsets, tf.float32)
    taps = tf.nn.softmax(-squares / (2 * tf.maximum(sigma, 1e-3)[:, None] ** 2))
    source = tf.abs(tf.range(size)[None, :] + offsets[:, None])  # [taps, size]
    source = size - 1 - tf.abs(size - 1 - source)
    shifts = tf.reshape(tf.one_hot(source, size), [2 * radius + 1, size * size])
    return tf.reshape(taps @ shifts, [-1, size, size])
