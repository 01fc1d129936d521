"""The regression loss of BYOL."""

import tensorflow as tf

from tfsimclr.losses.normalization import normalize


def regression(prediction: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Returns BYOL's loss: the mean squared distance of the normalised rows, in 0-4.

    Args:
        prediction: Predictions of the online network, `[n, d]`, any float type.
        target: Projections of the target network, `[n, d]`, row-aligned.

    Returns:
        Scalar float32; 2 - 2 * the mean cosine similarity.

    Source: Grill et al. 2020 (arXiv:2006.07733), equation 2.
    """
    squared = tf.square(normalize(prediction) - normalize(target))
    return tf.reduce_mean(tf.reduce_sum(squared, axis=1))


def regression_of_views(predictions: list, targets: list) -> tf.Tensor:
    """Returns twice the mean of `regression` over pairs of different views.

    With two views it is the sum over both directions, as in BYOL.

    Args:
        predictions: Predictions of V views, `[n, d]` each.
        targets: Targets of the first of these views, at least two, `[n, d]` each.

    Returns:
        Scalar float32.
    """
    pairs = [
        regression(prediction, target)
        for i, prediction in enumerate(predictions)
        for j, target in enumerate(targets)
        if i != j
    ]
    return tf.add_n(pairs) * (2 / len(pairs))
