"""A diverse subset of images, such as those to label first."""

import numpy as np

from tfsimclr.errors import UserError
from tfsimclr.evaluation import neighbors


def k_centre(features, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns k rows that cover all others, by the greedy k-centre algorithm.

    The first row is the one most similar to the mean of all. Each next row is the one
    least similar to the rows selected so far. The largest distance of any row to its
    nearest selected one is at most twice the smallest possible.

    Args:
        features: `[n, d]`; rows need not be normalised.
        k: Number of rows, 1 to n.

    Returns:
        The rows, int64 `[k]`, in the order of their selection, so that the first m of
        them are the selection of m; and the cosine similarity of each to the nearest
        row selected before it, float32 `[k]`, -1 for the first.

    Raises:
        UserError: If k is out of range.

    Source: Gonzalez 1985 (Theoretical Computer Science 38), algorithm 1; for labelling
    Sener and Savarese 2018 (arXiv:1708.00489), algorithm 1.
    """
    features = neighbors.normalize(features)
    if not 1 <= k <= len(features):
        raise UserError(
            f"the number of images to select must lie between 1 and the "
            f"{len(features)} images there are, got {k}."
        )
    rows = [int(np.argmax(features @ features.mean(axis=0)))]
    similarities = [-1.0]
    nearest = np.full(len(features), -1, np.float32)
    for _ in range(1, k):
        nearest = np.maximum(nearest, features @ features[rows[-1]])
        # A selected row is not selected again, not even among equal rows.
        nearest[rows[-1]] = np.inf
        rows.append(int(np.argmin(nearest)))
        similarities.append(float(nearest[rows[-1]]))
    return np.array(rows, np.int64), np.clip(np.array(similarities, np.float32), -1, 1)
