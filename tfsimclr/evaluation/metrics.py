"""Measures of features: health during training, accuracy in the evaluation."""

import numpy as np
import tensorflow as tf

from tfsimclr.errors import UserError


def contrastive_top1(
    z_a: tf.Tensor, z_b: tf.Tensor, keys=None, block_rows: int = 0
) -> tf.Tensor:
    """Returns the share of anchors whose most similar row is their other view.

    Args:
        z_a: Projections of the first views, `[n, d]`, any float type.
        z_b: Projections of the second views, row-aligned with `z_a`.
        keys: None, or a pair of batches `(a, b)` with which the anchors are compared
            instead of each other; the key of the same view is excluded.
        block_rows: Number of anchors at a time, a divisor of 2n; 0 means all.

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


def multi_view_top1(z, keys=None, block_rows: int = 0) -> tf.Tensor:
    """Returns the share of pairs whose positive is more similar than all negatives.

    The pairs are the ordered pairs of views of one image, the negatives the views of
    the other images. With two views it is `contrastive_top1`.

    Args:
        z: List of V >= 2 projections `[n, d]`, one for each view, any float type.
        keys: None, or a list like `z` with which the anchors are compared.
        block_rows: Number of anchors at a time, a divisor of V n; 0 means all.

    Returns:
        Scalar float32 in 0-1; 1 / (1 + V (n - 1)) at chance.
    """
    if len(z) == 2:
        return contrastive_top1(z[0], z[1], keys, block_rows)
    views = len(z)
    z = _unit_rows(tf.concat(z, axis=0))  # [V n, d]
    candidates = z if keys is None else _unit_rows(tf.concat(keys, axis=0))
    count = tf.shape(z)[0]
    n = count // views

    def correct(first):
        row = first + tf.range(block_rows or count)
        similarity = tf.matmul(tf.gather(z, row), candidates, transpose_b=True)
        same_image = tf.math.floormod(tf.range(count)[None] - row[:, None], n) == 0
        hardest = tf.reduce_max(tf.where(same_image, -2.0, similarity), axis=1)
        shifts = n * tf.range(1, views)[None]
        positives = tf.math.floormod(row[:, None] + shifts, count)
        nearer = tf.gather(similarity, positives, batch_dims=1) > hardest[:, None]
        return tf.reduce_mean(tf.cast(nearer, tf.float32))

    if not block_rows:
        return correct(0)
    return tf.reduce_mean(
        tf.map_fn(
            correct,
            tf.range(0, count, block_rows),
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
    """Returns the scaled standard deviation of the normalised rows of `[n, d]`.

    The standard deviation of each dimension, averaged over the dimensions, times
    sqrt(d): 0 for collapsed features, about 1 for isotropic ones.

    Source: Chen & He 2021 (arXiv:2011.10566), section 4.1 (there without the sqrt(d)).
    """
    h = _unit_rows(h)
    width = tf.cast(tf.shape(h)[1], tf.float32)
    # reduce_std subtracts the mean first: E x^2 - (E x)^2 would be rounding noise, not
    # 0, where all rows are equal.
    return tf.sqrt(width) * tf.reduce_mean(tf.math.reduce_std(h, axis=0))


def effective_rank(h: tf.Tensor) -> tf.Tensor:
    """Returns the effective rank of features `[n, d]`, a scalar from 1 to d.

    The exponential of the entropy of the normalised singular values of the centred
    features; 1 for collapsed features.

    Source: Roy & Vetterli 2007, "The effective rank", definition 1.
    """
    h = tf.cast(h, tf.float32)
    scale = tf.reduce_max(tf.abs(h))
    h = h - tf.reduce_mean(h, axis=0)
    # Rounding errors of the mean are set to zero, or they would count as features.
    h = tf.where(tf.abs(h) > 1e-6 * scale, h, 0.0)
    values = tf.linalg.svd(h, compute_uv=False)
    share = tf.math.divide_no_nan(values, tf.reduce_sum(values))
    return tf.exp(-tf.reduce_sum(tf.math.xlogy(share, share)))


def _unit_rows(z: tf.Tensor) -> tf.Tensor:
    return tf.math.l2_normalize(tf.cast(z, tf.float32), axis=1)


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Returns the share of images whose label is among the k highest scores, in 0-1.

    Ties count as wrong: an image whose scores are all equal is only right if k is the
    number of classes.

    Args:
        scores: `[n, classes]`.
        labels: `[n]` integers in 0 .. classes - 1.
        k: Number of classes among which the label may be.
    """
    return float(np.mean(_ranks(scores, labels) <= k))


def is_top1(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns whether each label has the highest score, bool `[n]`; see above."""
    return _ranks(scores, labels) <= 1


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of the per-class accuracies, in 0-1.

    Each class of the labels has the same weight, however many images it has, so a
    classifier that always answers the most frequent class gets 1 / classes. Ties count
    as wrong, as in `top_k_accuracy`.

    Args:
        scores: `[n, classes]`.
        labels: `[n]` integers in 0 .. classes - 1; classes without an image are left
            out of the mean.
    """
    correct = is_top1(scores, labels)
    return float(np.mean([correct[labels == c].mean() for c in np.unique(labels)]))


def majority_share(labels: np.ndarray) -> float:
    """Returns the share of the most frequent label: the accuracy without features."""
    return float(np.bincount(labels).max() / len(labels))


def confusion_matrix(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns counts `[classes, classes]`: rows are labels, columns predictions.

    Args:
        scores: `[n, classes]`; of equal highest scores the first class is predicted.
        labels: `[n]` integers in 0 .. classes - 1.
    """
    classes = scores.shape[1]
    pairs = classes * np.asarray(labels) + scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the rank of each label, from 1, `[n]`; equal scores all rank lowest."""
    score_of_label = scores[np.arange(len(labels)), labels][:, None]
    # Written as not (a < b) so that NaN scores rank above the label, not below.
    return (~(scores < score_of_label)).sum(axis=1)  # counts the label itself


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
