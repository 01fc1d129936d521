"""Measures of a representation's health: small pure functions, float32."""

import numpy as np
import tensorflow as tf

from tfsimclr.errors import UserError


def contrastive_top1(
    z_a: tf.Tensor, z_b: tf.Tensor, keys=None, block_rows: int = 0
) -> tf.Tensor:
    """Returns how often an anchor's most similar row is its other view.

    Args:
        z_a: Projections of the first views, `[n, d]`, any float type.
        z_b: Projections of the second views, row-aligned with `z_a`.
        keys: None, or the `(a, b)` that the anchors are compared with in place of
            themselves; an anchor's own key is no candidate.
        block_rows: Anchors at a time, a divisor of 2n; 0 is all.

    Returns:
        Scalar float32 in 0-1 over the 2n anchors, each with 2n - 1 candidates (cosine
        similarity); 1 / (2n - 1) at chance.
    """
    z = _unit_rows(tf.concat([z_a, z_b], axis=0))  # [2n, d]
    candidates = z if keys is None else _unit_rows(tf.concat(keys, axis=0))
    count = tf.shape(z)[0]

    def correct(first):
        row = first + tf.range(block_rows or count)
        similarity = tf.matmul(tf.gather(z, row), candidates, transpose_b=True)
        itself = tf.range(count)[None] == row[:, None]
        nearest = tf.argmax(
            tf.where(itself, -2.0, similarity), axis=1, output_type=tf.int32
        )
        positive = tf.math.floormod(row + count // 2, count)
        return tf.reduce_mean(tf.cast(nearest == positive, tf.float32))

    if not block_rows:
        return correct(0)
    firsts = tf.range(0, count, block_rows)
    return tf.reduce_mean(
        tf.map_fn(
            correct,
            firsts,
            fn_output_signature=tf.TensorSpec([], tf.float32),
            parallel_iterations=1,
        )
    )


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


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Returns how often the label is among the k highest scores, in 0-1.

    A tie counts against the classifier: scores that are all equal score nothing
    unless k covers every class.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    # Not `scores >= own`: where the scores are no numbers, that would rank first.
    at_least_as_high = (~(scores < own)).sum(axis=1)  # the label itself included
    return float(np.mean(at_least_as_high <= k))


def checked_labels(features, labels, num_classes: int) -> np.ndarray:
    """Returns the labels as an array.

    Args:
        features: `[n, d]`.
        labels: `[n]` integers in 0 .. num_classes - 1.
        num_classes: Number of classes.

    Raises:
        UserError: If features and labels do not fit each other or the classes.
    """
    labels = np.asarray(labels)
    shapes = np.shape(features), labels.shape
    if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1] or not len(labels):
        raise UserError(
            "features must be [n, d] and labels [n], of the same n and at least one, "
            f"got {list(shapes[0])} and {list(shapes[1])}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"labels must be integers, got {labels.dtype}.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"labels must be in 0 .. {num_classes - 1}, got {labels.min()} .. "
            f"{labels.max()}. Leave images without a label (-1) out."
        )
    return labels
