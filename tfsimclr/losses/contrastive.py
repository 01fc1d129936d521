"""Contrastive losses of two batches of projections, always in float32."""

import math

import tensorflow as tf

from tfsimclr.errors import UserError
from tfsimclr.losses import blockwise


def normalize(z: tf.Tensor) -> tf.Tensor:
    """Returns the rows of z scaled to length one; zero rows stay zero.

    Args:
        z: `[n, d]`, any float type.

    Returns:
        `[n, d]`, float32.
    """
    # Cast before normalising: 1e-12 is zero in float16.
    z = tf.cast(z, tf.float32)
    squared = tf.reduce_sum(tf.square(z), axis=1, keepdims=True)
    # The gradient of tf.math.l2_normalize at a zero row is 1e6, infinite in float16.
    return z * tf.math.rsqrt(tf.where(squared > 1e-12, squared, 1.0))


def chance(n: int) -> float:
    """Returns the NT-Xent loss of `n` pairs at chance: ln(2n - 1)."""
    return math.log(2 * n - 1)


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
    anchors, candidates = _anchors_and_candidates(z_a, z_b, temperature, keys)
    positive = _positive(anchors, candidates) / temperature
    every = blockwise.log_sum_exp(anchors, candidates, temperature, False, block_rows)
    return tf.reduce_mean(every - positive)


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
    anchors, candidates = _anchors_and_candidates(z_a, z_b, temperature, keys)
    positive = _positive(anchors, candidates) / temperature
    negatives = blockwise.log_sum_exp(
        anchors, candidates, temperature, True, block_rows
    )
    return tf.reduce_mean(negatives - positive)


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
    anchors, candidates = _anchors_and_candidates(z_a, z_b, temperature, keys)
    similarity = _positive(anchors, candidates)
    by_view = tf.reshape(similarity, [2, -1])
    n = tf.cast(tf.shape(by_view)[1], tf.float32)
    weight = tf.reshape(2.0 - n * tf.nn.softmax(by_view / 0.5, axis=1), [-1])
    negatives = blockwise.log_sum_exp(
        anchors, candidates, temperature, True, block_rows
    )
    return tf.reduce_mean(negatives - weight * similarity / temperature)


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


def _positive(anchors, candidates):
    """Returns the similarity of every anchor to the other view of its image, `[2n]`."""
    a, b = tf.split(candidates, 2)
    return tf.reduce_sum(anchors * tf.concat([b, a], axis=0), axis=1)


def _anchors_and_candidates(
    z_a, z_b, temperature: float, keys
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns anchors and candidates, `[2n, d]` each, rows of length one."""
    anchors = normalize(tf.concat(_validated_pair(z_a, z_b, temperature), axis=0))
    if keys is None:
        return anchors, anchors
    key_a, key_b = keys
    _validated_pair(z_a, key_a, temperature)
    return anchors, normalize(
        tf.concat(_validated_pair(key_a, key_b, temperature), axis=0)
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
