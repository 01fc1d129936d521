"""Near-duplicates: groups of images whose features are nearly parallel."""

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import tensorflow as tf

from tfsimclr.errors import UserError
from tfsimclr.evaluation import neighbors

MAX_PAIRS = 5_000_000


def pairs_above(
    features, similarity: float, max_pairs: int = MAX_PAIRS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns all pairs of rows whose cosine similarity is at least `similarity`.

    Args:
        features: `[n, d]`.
        similarity: Smallest cosine similarity of a pair, in -1 to 1.
        max_pairs: Most pairs to collect; the memory needed is 20 bytes each.

    Returns:
        Rows `i` and `j`, int64 `[p]`, with i < j and sorted by i, then j; and the
        similarities, float32 `[p]`.

    Raises:
        UserError: If there are more than `max_pairs`.
    """
    features = neighbors.normalize(features)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    count, block = 0, neighbors.QUERY_BLOCK
    with neighbors.float32_matmul():
        for i in range(0, len(features), block):
            queries = tf.constant(features[i : i + block])
            for j in range(i, len(features), neighbors.BANK_BLOCK):
                bank = features[j : j + neighbors.BANK_BLOCK]
                near = tf.matmul(queries, bank, transpose_b=True)
                rows = tf.where(near >= similarity)
                values = tf.gather_nd(near, rows).numpy()
                first, second = rows.numpy().T + [[i], [j]]
                upper = first < second
                parts.append((first[upper], second[upper], values[upper]))
                count += int(upper.sum())
                if count > max_pairs:
                    raise too_many_pairs(max_pairs, similarity)
    if not parts:
        empty = np.zeros(0, np.int64)
        return empty, empty, np.zeros(0, np.float32)
    first, second, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((second, first))
    return first[order], second[order], np.clip(values[order], -1, 1)


def too_many_pairs(max_pairs: int, similarity: float) -> UserError:
    """Returns the error of more pairs than are collected."""
    return UserError(
        f"more than {max_pairs:,} pairs of images have a similarity of at least "
        f"{similarity:g}: these are not duplicates. Choose a higher similarity."
    )


def groups(num_rows: int, first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    """Returns the groups that pairs of rows connect.

    Two rows are in one group if a chain of pairs connects them, so two members need not
    be a pair themselves.

    Args:
        num_rows: Number of rows.
        first: One row of each pair, `[p]`.
        second: The other row.

    Returns:
        The groups of two rows or more, each as its sorted rows; the largest group
        first, equally large ones by their first row.
    """
    members = np.unique(np.concatenate([first, second])).astype(np.int64)
    if not len(members):
        return []
    edges = scipy.sparse.coo_array(
        (np.ones(len(first), bool), (first, second)), shape=(num_rows, num_rows)
    )
    _, components = scipy.sparse.csgraph.connected_components(edges, directed=False)
    order = np.argsort(components[members], kind="stable")
    starts = np.flatnonzero(np.diff(components[members[order]], prepend=-1))
    rows_of_groups = np.split(members[order], starts[1:])
    return sorted(rows_of_groups, key=lambda rows: (-len(rows), rows[0]))


def best_similarity(
    num_rows: int, first: np.ndarray, second: np.ndarray, similarities: np.ndarray
) -> np.ndarray:
    """Returns the highest similarity of the pairs of every row, -1 without a pair.

    Float32 `[num_rows]`; the other arguments are those of `pairs_above`.
    """
    best = np.full(num_rows, -1, np.float32)
    np.maximum.at(best, first, similarities)
    np.maximum.at(best, second, similarities)
    return best
