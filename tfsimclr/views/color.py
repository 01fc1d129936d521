"""Colour jitter and grayscale as one affine map of colour per image.

In YIQ (luma Y, chroma I and Q) brightness scales all three, contrast scales all three
and adds a grey that keeps the image's mean luma, saturation scales the chroma, hue
turns it, and grayscale drops it. Without clipping in between these commute: every order
in which an image could draw them gives the same map (tests/test_color.py goes through
all 24). So no order is drawn, and the map of an image comes from four numbers: a gain
of luma, a gain and an angle of chroma, and a grey.
"""

import math

import numpy as np
import tensorflow as tf

# NTSC, with the digits TensorFlow Addons uses.
RGB_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]
)
LUMA = RGB_TO_YIQ[0]
JITTER_PROBABILITY = 0.8


def _maps_of_luma_and_chroma() -> np.ndarray:
    """Returns `[3, 9]`: luma kept, chroma kept, chroma turned by 90 degrees."""
    luma = np.diag([1.0, 0.0, 0.0])
    chroma = np.diag([0.0, 1.0, 1.0])
    turned = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    maps = np.stack([luma, chroma, turned])
    maps = np.linalg.inv(RGB_TO_YIQ) @ maps @ RGB_TO_YIQ
    return maps.reshape(3, 9).astype("float32")


LUMA_AND_CHROMA = _maps_of_luma_and_chroma()


def random_jitter(draws, strength: float) -> tf.Tensor:
    """Returns `[n, 4]`: factors of brightness, contrast, saturation; hue in turns.

    Brightness, contrast and saturation are uniform in `[max(0, 1 - x), 1 + x]` with
    x = 0.8 strength, hue in +- 0.2 strength; one image in five keeps 1, 1, 1, 0.

    Args:
        draws: `[n, 5]`, uniform in 0-1.
        strength: SimCLR's s, at least 0.

    Source: Chen et al. 2020 (arXiv:2002.05709), appendix A; torchvision's ColorJitter.
    """
    spread, turn = 0.8 * strength, 0.2 * strength
    low = tf.constant([max(0.0, 1 - spread)] * 3 + [-turn])
    high = tf.constant([1 + spread] * 3 + [turn])
    jitter = low + (high - low) * draws[:, 1:]
    return tf.where(draws[:, :1] < JITTER_PROBABILITY, jitter, [1.0, 1.0, 1.0, 0.0])


def affine_maps(jitter, grayscale, means) -> tf.Tensor:
    """Returns one affine map of RGB per image, `[n, 3, 4]`, the offset last.

    Args:
        jitter: `[n, 4]`, as `random_jitter` returns it.
        grayscale: `[n]`, bool.
        means: Mean colour of each image, `[n, 3]`. Contrast is about its luma, which
            the other operations only scale.
    """
    brightness, contrast, saturation, hue = tf.unstack(jitter, axis=1)
    gain = brightness * contrast
    chroma = gain * tf.where(grayscale, 0.0, saturation)
    angle = -2 * math.pi * hue  # as in HSV, red turns towards green
    weights = tf.stack([gain, chroma * tf.cos(angle), chroma * tf.sin(angle)], axis=1)
    matrices = tf.reshape(tf.matmul(weights, LUMA_AND_CHROMA), [-1, 3, 3])
    luma = tf.linalg.matvec(means, tf.constant(LUMA, tf.float32))
    grey = brightness * (1 - contrast) * luma
    offsets = tf.tile(grey[:, None, None], [1, 3, 1])
    return tf.concat([matrices, offsets], axis=2)
