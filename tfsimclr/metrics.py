"""Measures of a representation's health: small pure functions, float32."""

import tensorflow as tf


def contrastive_top1(z_a: tf.Tensor, z_b: tf.Tensor) -> tf.Tensor:
    """Returns how often an anchor's most similar row is its other view.

    Args:
        z_a: Projections of the first views, `[n, d]`, any float type.
        z_b: Projections of the second views, row-aligned with `z_a`.

    Returns:
        Scalar float32 in 0-1 over the 2n anchors, each with 2n - 1 candidates (cosine
        similarity); 1 / (2n - 1) at chance.
    """
    z = _unit_rows(tf.concat([z_a, z_b], axis=0))  # [2n, d]
    n = tf.shape(z)[0] // 2
    similarity = tf.matmul(z, z, transpose_b=True)  # [2n, 2n]
    similarity = tf.linalg.set_diag(similarity, tf.fill([2 * n], -2.0))
    positives = tf.math.floormod(tf.range(2 * n) + n, 2 * n)
    nearest = tf.argmax(similarity, axis=1, output_type=tf.int32)
    return tf.reduce_mean(tf.cast(nearest == positives, tf.float32))


def alignment(z_a: tf.Tensor, z_b: tf.Tensor) -> tf.Tensor:
    """Returns the mean squared distance of the two views' normalised rows, in 0-4.

    Source: Wang & Isola 2020 (arXiv:2005.10242), section 4.1, alpha = 2.
    """
    difference = _unit_rows(z_a) - _unit_rows(z_b)
    return tf.reduce_mean(tf.reduce_sum(tf.square(difference), axis=1))


def uniformity(z: tf.Tensor) -> tf.Tensor:
    """Returns log E exp(-2 |z_i - z_j|^2) over pairs i != j; 0 collapsed, down to -4.

    Args:
        z: `[n, d]` with n >= 2, any float type; rows are normalised here.

    Source: Wang & Isola 2020 (arXiv:2005.10242), section 4.1, t = 2.
    """
    z = _unit_rows(z)
    n = tf.shape(z)[0]
    squared_distance = 2.0 - 2.0 * tf.matmul(z, z, transpose_b=True)
    exponents = tf.linalg.set_diag(
        -2.0 * squared_distance, tf.fill([n], tf.float32.min)
    )
    num_pairs = tf.cast(n * (n - 1), tf.float32)
    return tf.reduce_logsumexp(exponents) - tf.math.log(num_pairs)


def feature_std(h: tf.Tensor) -> tf.Tensor:
    """Returns the spread of the normalised rows: 0 collapsed, about 1 isotropic.

    The standard deviation of each dimension of the normalised rows, averaged over the
    dimensions, times sqrt(d).

    Source: Chen & He 2021 (arXiv:2011.10566), section 4.1 (there without the sqrt(d)).
    """
    h = _unit_rows(h)
    width = tf.cast(tf.shape(h)[1], tf.float32)
    # Two passes: E x^2 - (E x)^2 would leave rounding noise where all rows are equal.
    return tf.sqrt(width) * tf.reduce_mean(tf.math.reduce_std(h, axis=0))


def effective_rank(h: tf.Tensor) -> tf.Tensor:
    """Returns how many directions the features `[n, d]` use: 1 collapsed, at most d.

    The exponential of the entropy of the singular values of the centred features.

    Source: Roy & Vetterli 2007, "The effective rank", definition 1.
    """
    h = tf.cast(h, tf.float32)
    scale = tf.reduce_max(tf.abs(h))
    h = h - tf.reduce_mean(h, axis=0)
    # Rounding of the mean must not look like a feature.
    h = tf.where(tf.abs(h) > 1e-6 * scale, h, 0.0)
    values = tf.linalg.svd(h, compute_uv=False)
    share = tf.math.divide_no_nan(values, tf.reduce_sum(values))
    return tf.exp(-tf.reduce_sum(tf.math.xlogy(share, share)))


def _unit_rows(z: tf.Tensor) -> tf.Tensor:
    return tf.math.l2_normalize(tf.cast(z, tf.float32), axis=1)
