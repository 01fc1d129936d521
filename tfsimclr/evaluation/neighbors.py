"""Exact nearest neighbours by cosine similarity, a block at a time."""

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from tfsimclr.errors import UserError

QUERY_BLOCK = 1024
BANK_BLOCK = 16384  # with QUERY_BLOCK queries, 64 MB of similarities at a time


def normalize(features) -> np.ndarray:
    """Returns features with rows of length one, float32 `[n, d]`.

    A row of zeros stays zero: its similarity to every row is 0.

    Raises:
        UserError: If the features are not `[n, d]` or hold values that are not finite.
    """
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or not features.shape[1]:
        raise UserError(
            f"features must be [n, d], got an array of shape {list(features.shape)}."
        )
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise UserError(
            f"the features of row {row} hold values that are not finite. Leave the row "
            "out, or embed the images again."
        )
    # Divided by the largest value first, so that no square overflows or vanishes.
    largest = np.abs(features).max(axis=1, keepdims=True)
    scaled = features / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(norms > 0, norms, 1)


def top_k(
    queries, bank, k: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k rows of a bank that are most similar to each query.

    Args:
        queries: `[m, d]`; rows need not be normalised.
        bank: `[n, d]`, or an iterable of blocks `[b, d]` in the order of the rows. With
            blocks, only one of them is in memory at a time.
        k: Number of neighbours, at least 1; a k above n means n.
        exclude: `[m]` row of the bank that is left out for each query, such as the
            query itself; -1 leaves none out. With it, a k above n - 1 means n - 1.

    Returns:
        Cosine similarities, float32 `[m, k]`, falling along a row, and the rows of the
        bank, int64 `[m, k]`. Equal similarities are in the order of the rows.

    Raises:
        UserError: If the dimensions differ, or the bank is empty.
    """
    queries = normalize(queries)
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}.")
    wanted = k + (exclude is not None)
    best: list[tuple[tf.Tensor, tf.Tensor]] = []
    start = 0
    with float32_matmul():
        for block in bank_blocks(bank, queries.shape[1]):
            keys = tf.constant(block)
            for index, i in enumerate(range(0, len(queries), QUERY_BLOCK)):
                near = tf.matmul(queries[i : i + QUERY_BLOCK], keys, transpose_b=True)
                near, rows = tf.math.top_k(near, min(wanted, len(block)))
                rows = tf.cast(rows, tf.int64) + start
                if start:
                    near = tf.concat([best[index][0], near], axis=1)
                    rows = tf.concat([best[index][1], rows], axis=1)
                    near, order = tf.math.top_k(near, min(wanted, near.shape[1]))
                    rows = tf.gather(rows, order, batch_dims=1)
                    best[index] = near, rows
                else:
                    best.append((near, rows))
            start += len(block)
    if not start:
        raise UserError("there are no features to search in.")
    if not best:
        width = min(k, start)
        return np.zeros((0, width), np.float32), np.zeros((0, width), np.int64)
    near = np.concatenate([part.numpy() for part, _ in best])
    rows = np.concatenate([part.numpy() for _, part in best])
    if exclude is not None:
        near, rows = without(near, rows, np.asarray(exclude), min(k, start - 1))
    return np.clip(near, -1, 1), rows


def nearest_others(features, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k nearest neighbours of every row among the other rows.

    Args:
        features: `[n, d]` with n above 1.
        k: Number of neighbours; a k above n - 1 means n - 1.

    Returns:
        Similarities, float32 `[n, k]`, and rows, int64 `[n, k]`, as `top_k`.

    Raises:
        UserError: If there are fewer than two rows.
    """
    features = normalize(features)
    if len(features) < 2:
        raise UserError(f"neighbours need at least two images, got {len(features)}.")
    return top_k(features, features, k, exclude=np.arange(len(features)))


def mean_similarity(features, k: int = 10) -> np.ndarray:
    """Returns each row's mean cosine similarity to its k nearest other rows.

    A low value marks an outlier: an image unlike every other.

    Args:
        features: `[n, d]` with n above 1.
        k: Number of neighbours; a k above n - 1 means n - 1.

    Returns:
        Float32 `[n]` in -1 to 1.

    Source: Ramaswamy et al. 2000 (SIGMOD), the k-nearest-neighbour outlier score, with
    the mean in place of the k-th distance (Angiulli and Pizzuti 2002).
    """
    return nearest_others(features, k)[0].mean(axis=1)


def bank_blocks(bank, dim: int) -> Iterator[np.ndarray]:
    """Yields the normalised blocks of a bank, none of them empty.

    Args:
        bank: `[n, d]`, or an iterable of blocks `[b, d]`.
        dim: The d that every block must have.

    Raises:
        UserError: If a block has another d.
    """
    blocks: Iterable = bank
    if isinstance(bank, np.ndarray):
        blocks = (bank[i : i + BANK_BLOCK] for i in range(0, len(bank), BANK_BLOCK))
    for block in blocks:
        if not len(block):
            continue
        if np.ndim(block) != 2 or np.shape(block)[1] != dim:
            raise UserError(
                f"the queries have {dim} dimensions, and the features to search in "
                f"have the shape {list(np.shape(block))}. Both must be of one layer of "
                "one model."
            )
        yield normalize(block)


@contextlib.contextmanager
def float32_matmul():
    """Multiplies matrices in float32 inside the block.

    TensorFlow rounds to TensorFloat-32 on a GPU, which has 3 decimal digits: too few to
    tell a duplicate (similarity 0.999) from a similar image.
    """
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def without(
    near: np.ndarray, rows: np.ndarray, exclude: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first k neighbours other than the excluded row of each query.

    Args:
        near: Similarities, `[m, n]`.
        rows: The rows that have them, `[m, n]`.
        exclude: Row to leave out for each query, `[m]`; -1 leaves none out.
        k: Neighbours to return, less than n if rows are left out.
    """
    kept = rows != exclude[:, None]
    # A stable sort moves the excluded one to the end and keeps the order of the rest.
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(near, order, 1), np.take_along_axis(rows, order, 1)
