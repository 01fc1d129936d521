"""Contrastive losses of two batches of projections, always in float32.

`multi_view` has them for any number of views.
"""

import math

import tensorflow as tf

from tfsimclr.errors import UserError
from tfsimclr.losses import multi_view
from tfsimclr.losses.normalization import normalize


def chance(n: int, views: int = 2) -> float:
    """Returns the NT-Xent loss of `views` views of `n` images at chance.

    It is ln(2n - 1) for two views, ln(1 + V (n - 1)) for V.
    """
    return math.log(1 + views * (n - 1))


def nt_xent(
    z_a: tf.Tensor, z_b: tf.Tensor, temperature: float, keys=None, block_rows: int = 0
) -> tf.Tensor:
    """Returns the mean NT-Xent loss of two batches of projections.

    Every one of the 2n projections is an anchor; its other view is the positive, the
    remaining 2n - 2 rows of both views are negatives.

    Args:
        z_a: Projections of the first views, `[n, d]`, any float type.
        z_b: Projections of the second views, row-aligned with `z_a`.
        temperature: Positive scalar; smaller is sharper.
        keys: None, or a pair of batches `(a, b)` with the shapes of `z_a` and `z_b`,
            with which the anchors are compared instead of each other: projections of a
            momentum encoder, for example. The key of the same view is excluded.
        block_rows: 0 computes all similarities, `[2n, 2n]`, at once; otherwise this
            many rows at a time, in the gradient too, which saves memory and computes
            the similarities twice. Must divide 2n.

    Returns:
        Scalar float32, the mean over the 2n anchors; ln(2n - 1) at chance.

    Raises:
        UserError: If the temperature is not positive or the shapes do not fit.

    Source: Chen et al. 2020 (arXiv:2002.05709), section 2.1, equation 1.
    """
    return multi_view.nt_xent([z_a, z_b], temperature, keys, block_rows)


def dcl(
    z_a: tf.Tensor, z_b: tf.Tensor, temperature: float, keys=None, block_rows: int = 0
) -> tf.Tensor:
    """Returns the decoupled contrastive loss: NT-Xent without positive in denominator.

    In NT-Xent the gradient of a pair shrinks as the pair gets closer, and more so the
    fewer negatives there are. Without the positive in the denominator it does not.

    Arguments and errors are those of `nt_xent`.

    Returns:
        Scalar float32, the mean over the 2n anchors; ln(2n - 2) at chance; may be
        negative.

    Source: Yeh et al. 2022 (arXiv:2110.06848), equation 6.
    """
    return multi_view.dcl([z_a, z_b], temperature, keys, block_rows)


def dclw(
    z_a: tf.Tensor, z_b: tf.Tensor, temperature: float, keys=None, block_rows: int = 0
) -> tf.Tensor:
    """Returns the decoupled loss with larger weights for positives farther apart.

    The weight of pair i is 2 - exp(s_i / 0.5) / mean_j exp(s_j / 0.5), where s are the
    cosine similarities of the pairs; the weights of a batch have mean 1.

    Arguments and errors are those of `nt_xent`.

    Returns:
        Scalar float32, the mean over the 2n anchors; ln(2n - 2) at chance.

    Source: Yeh et al. 2022 (arXiv:2110.06848), equation 7 and the sigma of its code.
    """
    return multi_view.dclw([z_a, z_b], temperature, keys, block_rows)


def info_nce(
    query: tf.Tensor, key: tf.Tensor, temperature: float, queue=None
) -> tf.Tensor:
    """Returns the one-sided InfoNCE loss: each query against all keys.

    Args:
        query: `[n, d]`, any float type.
        key: `[n, d]`; row i is the positive of query i.
        temperature: Positive scalar.
        queue: None, then the other n - 1 keys are the negatives; or the negatives,
            `[k, d]`, rows of length one.

    Returns:
        Scalar float32, the mean over the n queries; at chance ln(n), or ln(1 + k) with
        a queue.

    Raises:
        UserError: If the temperature is not positive or the shapes do not fit.

    Source: van den Oord et al. 2018 (arXiv:1807.03748), equation 4; with a queue He et
    al. 2020 (arXiv:1911.05722), equation 1.
    """
    query, key = _validated_pair(query, key, temperature)
    query, key = normalize(query), normalize(key)
    if queue is None:
        logits = tf.matmul(query, key, transpose_b=True) / temperature
        labels = tf.range(tf.shape(logits)[0])
    else:
        positive = tf.reduce_sum(query * key, axis=1, keepdims=True)
        negatives = tf.matmul(query, queue, transpose_b=True)
        logits = tf.concat([positive, negatives], axis=1) / temperature
        labels = tf.zeros([tf.shape(query)[0]], tf.int32)
    # The operation subtracts the largest logit, so it does not overflow at small
    # temperatures.
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    )


def _validated_pair(z_a, z_b, temperature: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both batches as tensors, or raises UserError if they do not fit."""
    z_a, z_b = tf.convert_to_tensor(z_a), tf.convert_to_tensor(z_b)
    if not temperature > 0:
        raise UserError(
            f"temperature must be above 0, got temperature={temperature}. "
            "The paper uses 0.5."
        )
    if z_a.shape.rank != 2 or not z_a.shape.is_compatible_with(z_b.shape):
        raise UserError(
            "The two batches of projections must be [n, d] of the same shape, "
            f"got {z_a.shape} and {z_b.shape}."
        )
    return z_a, z_b
