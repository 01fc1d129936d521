"""k-NN evaluation: a weighted vote of the nearest neighbours."""

import numpy as np
import tensorflow as tf

from tfsimclr.errors import UserError
from tfsimclr.evaluation import metrics


def default_k(num_train: int, num_classes: int) -> int:
    """Returns k: 200, or the average number of images per class if that is smaller."""
    return max(1, min(200, num_train // num_classes))


def knn_votes(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
    block: int = 512,
) -> np.ndarray:
    """Returns the votes `[n, classes]` of the k most similar training images.

    Similarity is the cosine similarity (rows are normalised here). The weight of a vote
    is exp(similarity / temperature), divided by that of the nearest neighbour.

    Args:
        train: `[m, d]` features.
        train_labels: `[m]` integers in 0 .. num_classes - 1.
        test: `[n, d]` features.
        num_classes: Number of classes.
        k: Number of neighbours; a k above m means m.
        temperature: Temperature of the weights; smaller favours near neighbours.
        block: Test images at a time; the memory needed is block * m floats.

    Raises:
        UserError: If features and labels do not fit, or a setting is out of range.

    Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4.
    """
    train_labels = metrics.checked_labels(train, train_labels, num_classes)
    if np.shape(test)[1:] != np.shape(train)[1:] or not len(test):
        raise UserError(
            "test must be [n, d] with the d of train, and not empty, got "
            f"{list(np.shape(test))} and {list(np.shape(train))}."
        )
    if k < 1 or block < 1 or not temperature > 0:
        raise UserError(
            "k and block must be at least 1 and temperature above 0, got "
            f"k={k}, block={block}, temperature={temperature}."
        )
    k = min(k, len(train))
    bank = tf.math.l2_normalize(tf.constant(train, tf.float32), axis=1)
    classes = tf.constant(train_labels, tf.int32)

    def votes(queries):
        queries = tf.math.l2_normalize(tf.constant(queries, tf.float32), axis=1)
        near, rows = tf.math.top_k(tf.matmul(queries, bank, transpose_b=True), k)
        # Divided by the largest weight, so that none overflows.
        weights = tf.exp((near - near[:, :1]) / temperature)  # [b, k]
        neighbours = tf.one_hot(tf.gather(classes, rows), num_classes)  # [b, k, c]
        return tf.einsum("bk,bkc->bc", weights, neighbours).numpy()

    blocks = [test[i : i + block] for i in range(0, len(test), block)]
    return np.concatenate([votes(queries) for queries in blocks])
