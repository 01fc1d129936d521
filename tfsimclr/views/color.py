"""Colour jitter and grayscale as one affine map of RGB per image.

In YIQ (luma Y, chroma I and Q) brightness scales all three channels; contrast scales
all three and adds a constant to Y so that the mean luma stays; saturation scales I and
Q; hue rotates them; grayscale sets them to zero. Without clipping between them these
operations commute: all 24 orders give the same map (tests/views/test_color.py checks
each). So the order is not drawn at random, and four numbers describe the map of an
image: the scale of Y, the scale and the angle of (I, Q), and the constant.
"""

import math

import numpy as np
import tensorflow as tf

# The NTSC matrix, rounded as in TensorFlow Addons.
RGB_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]
)
LUMA = RGB_TO_YIQ[0]
JITTER_PROBABILITY = 0.8


def _maps_of_luma_and_chroma() -> np.ndarray:
    """Returns RGB maps `[3, 9]`: luma only, chroma only, chroma rotated 90 degrees."""
    luma = np.diag([1.0, 0.0, 0.0])
    chroma = np.diag([0.0, 1.0, 1.0])
    rotated_chroma = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    maps = np.stack([luma, chroma, rotated_chroma])
    maps = np.linalg.inv(RGB_TO_YIQ) @ maps @ RGB_TO_YIQ
    return maps.reshape(3, 9).astype("float32")


LUMA_AND_CHROMA = _maps_of_luma_and_chroma()


def random_jitter(draws, strength: float) -> tf.Tensor:
    """Returns the colour jitter of each image, `[n, 4]`.

    The columns are factors of brightness, contrast and saturation, uniform in
    `[max(0, 1 - 0.8 strength), 1 + 0.8 strength]`, and a hue shift in turns, uniform
    in +-0.2 strength. With probability 0.2 an image is left unchanged (1, 1, 1, 0).

    Args:
        draws: Random numbers `[n, 5]`, uniform in 0-1.
        strength: SimCLR's s, at least 0.

    Source: Chen et al. 2020 (arXiv:2002.05709), appendix A; torchvision's ColorJitter.
    """
    spread, max_hue = 0.8 * strength, 0.2 * strength
    low = tf.constant([max(0.0, 1 - spread)] * 3 + [-max_hue])
    high = tf.constant([1 + spread] * 3 + [max_hue])
    jitter = low + (high - low) * draws[:, 1:]
    return tf.where(draws[:, :1] < JITTER_PROBABILITY, jitter, [1.0, 1.0, 1.0, 0.0])


def affine_maps(jitter, grayscale, means) -> tf.Tensor:
    """Returns one affine map of RGB per image, `[n, 3, 4]`; the last column is added.

    Args:
        jitter: `[n, 4]`, the result of `random_jitter`.
        grayscale: Whether each image becomes gray, bool `[n]`.
        means: Mean RGB of each image, `[n, 3]`. Contrast keeps the luma of this mean;
            the other operations only scale that luma.
    """
    brightness, contrast, saturation, hue = tf.unstack(jitter, axis=1)
    gain = brightness * contrast
    chroma = gain * tf.where(grayscale, 0.0, saturation)
    angle = -2 * math.pi * hue  # the sign of HSV: a positive hue turns red to green
    weights = tf.stack([gain, chroma * tf.cos(angle), chroma * tf.sin(angle)], axis=1)
    matrices = tf.reshape(tf.matmul(weights, LUMA_AND_CHROMA), [-1, 3, 3])
    luma = tf.linalg.matvec(means, tf.constant(LUMA, tf.float32))
    constant = brightness * (1 - contrast) * luma
    offsets = tf.tile(constant[:, None, None], [1, 3, 1])
    return tf.concat([matrices, offsets], axis=2)
