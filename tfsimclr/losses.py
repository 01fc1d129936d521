"""Contrastive losses of two batches of projections, always in float32."""

import math

import tensorflow as tf


def normalize(z: tf.Tensor) -> tf.Tensor:
    """Returns the rows of `z` (`[n, d]`, any float type) at length one, in float32."""
    # Cast first: 1e-12 is zero in float16.
    z = tf.cast(z, tf.float32)
    squared = tf.reduce_sum(tf.square(z), axis=1, keepdims=True)
    # Not l2_normalize: at a zero row its gradient is 1e6, infinite back in float16.
    return z * tf.math.rsqrt(tf.where(squared > 1e-12, squared, 1.0))


def chance(n: int) -> float:
    """Returns the NT-Xent loss of `n` pairs that carry no information: ln(2n - 1)."""
    return math.log(2 * n - 1)


def nt_xent(z_a: tf.Tensor, z_b: tf.Tensor, temperature: float) -> tf.Tensor:
    """Returns the mean NT-Xent loss of two batches of projections.

    Every one of the 2n projections is an anchor; its other view is the positive, the
    remaining 2n - 2 rows of both views are negatives.

    Args:
        z_a: Projections of the first views, `[n, d]`, any float type.
        z_b: Projections of the second views, row-aligned with `z_a`.
        temperature: Positive scalar; smaller is sharper.

    Returns:
        Scalar float32, the mean over the 2n anchors; ln(2n - 1) at chance.

    Raises:
        ValueError: If the temperature is not positive or the shapes do not fit.

    Source: Chen et al. 2020 (arXiv:2002.05709), section 2.1, equation 1.
    """
    z_a, z_b = _checked(z_a, z_b, temperature)
    n = tf.shape(z_a)[0]
    z = normalize(tf.concat([z_a, z_b], axis=0))  # [2n, d]
    logits = tf.matmul(z, z, transpose_b=True) / temperature  # [2n, 2n]
    # An anchor is not its own candidate. Float32's lowest value, not -inf: the softmax
    # gives it weight zero, and n = 1 or identical rows stay finite.
    logits = tf.linalg.set_diag(logits, tf.fill([2 * n], tf.float32.min))
    positives = tf.math.floormod(tf.range(2 * n) + n, 2 * n)
    # Log-sum-exp inside: sums of exp(1 / temperature) overflow below 0.012.
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=positives, logits=logits)
    )


def info_nce(query: tf.Tensor, key: tf.Tensor, temperature: float) -> tf.Tensor:
    """Returns the one-sided InfoNCE loss: each query against all keys of the batch.

    Args:
        query: `[n, d]`, any float type.
        key: `[n, d]`; row i is the positive of query i, the others its n - 1 negatives.
        temperature: Positive scalar.

    Returns:
        Scalar float32, the mean over the n queries; ln(n) at chance.

    Raises:
        ValueError: If the temperature is not positive or the shapes do not fit.

    Source: van den Oord et al. 2018 (arXiv:1807.03748), equation 4.
    """
    query, key = _checked(query, key, temperature)
    logits = tf.matmul(normalize(query), normalize(key), transpose_b=True) / temperature
    positives = tf.range(tf.shape(logits)[0])
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=positives, logits=logits)
    )


def _checked(z_a, z_b, temperature: float) -> tuple[tf.Tensor, tf.Tensor]:
    z_a, z_b = tf.convert_to_tensor(z_a), tf.convert_to_tensor(z_b)
    if not temperature > 0:
        raise ValueError(
            f"temperature must be above 0, got temperature={temperature}. "
            "The paper uses 0.5."
        )
    if z_a.shape.rank != 2 or not z_a.shape.is_compatible_with(z_b.shape):
        raise ValueError(
            "The two batches of projections must be [n, d] of the same shape, "
            f"got {z_a.shape} and {z_b.shape}."
        )
    return z_a, z_b
