"""The regression loss of BYOL."""

import tensorflow as tf

from tfsimclr.losses import contrastive


def regression(prediction: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Returns BYOL's loss: the mean squared distance of the normalised rows, in 0-4.

    Args:
        prediction: Predictions of the online network, `[n, d]`, any float type.
        target: Projections of the target network, `[n, d]`, row-aligned.

    Returns:
        Scalar float32; 2 - 2 * the mean cosine similarity.

    Source: Grill et al. 2020 (arXiv:2006.07733), equation 2.
    """
    squared = tf.square(
        contrastive.normalize(prediction) - contrastive.normalize(target)
    )
    return tf.reduce_mean(tf.reduce_sum(squared, axis=1))
