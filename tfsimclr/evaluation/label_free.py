"""Scores of features that need no labels, from two random views of each image."""

import math

import numpy as np

from tfsimclr.errors import UserError
from tfsimclr.evaluation import metrics, neighbors

# Below this many images a share in percent says little, and so does its interval.
MIN_IMAGES = 30
# The features that the verdict compares: the baselines and h.
COMPARED = ("pixels", "random_h", "init_h", "h")
NORMAL_95 = 1.959964


def retrieval_ranks(
    queries: np.ndarray, candidates: np.ndarray, block: int = 1024
) -> np.ndarray:
    """Returns the rank, from 1, of each query's own image among all images, int `[n]`.

    The ranking is by cosine similarity. Equal similarities all rank lowest, so
    collapsed features have rank n.

    Args:
        queries: Features of one view of each image, `[n, d]`.
        candidates: Features of another view, row-aligned with `queries`.
        block: Queries at a time; the memory needed is block * n floats.

    Raises:
        UserError: If the shapes differ, a value is not finite, or there is one image or
            none.
    """
    if np.ndim(queries) != 2 or np.shape(queries) != np.shape(candidates):
        raise UserError(
            "queries and candidates must be [n, d] of the same n and d, got "
            f"{list(np.shape(queries))} and {list(np.shape(candidates))}."
        )
    if len(queries) < 2:
        raise UserError(f"Retrieval needs at least two images, got {len(queries)}.")
    queries, candidates = map(neighbors.normalize, (queries, candidates))
    ranks = []
    for first in range(0, len(queries), block):
        similarity = queries[first : first + block] @ candidates.T
        own = np.take_along_axis(
            similarity, first + np.arange(len(similarity))[:, None], axis=1
        )
        # Rounding differs between the columns of a product, so features that are equal
        # have similarities that are only nearly equal.
        ranks.append((similarity >= own - 1e-6).sum(axis=1))
    return np.concatenate(ranks)


def retrieval_auc(view_a: np.ndarray, view_b: np.ndarray) -> np.ndarray:
    """Returns for each image the share of others that are farther than its other view.

    The mean of both directions, `[n]` in 0-1. The mean over the images is the area
    under the ROC curve of telling pairs of one image from pairs of two images, averaged
    over the queries: 0.5 at chance, 0 for collapsed features.

    Args:
        view_a: Features of one view of each image, `[n, d]`.
        view_b: Features of the other view, row-aligned.

    Raises:
        UserError: As `retrieval_ranks`.
    """
    ranks = np.stack(_both_directions(view_a, view_b))
    return 1 - (ranks - 1).mean(axis=0) / (len(view_a) - 1)


def _both_directions(view_a, view_b) -> list[np.ndarray]:
    return [retrieval_ranks(view_a, view_b), retrieval_ranks(view_b, view_a)]


def rankme(features: np.ndarray) -> float:
    """Returns RankMe, the smooth rank of features `[n, d]`, from 1 to min(n, d).

    The exponential of the entropy of the normalised singular values; the features are
    not centred. 1 if all features are zero.

    Source: Garrido et al. 2023 (arXiv:2210.02885), equations 1 and 2.
    """
    values = np.linalg.svd(np.asarray(features, np.float32), compute_uv=False)
    total = values.sum()
    if not total > 0:
        return 1.0
    share = values / total + 1e-7
    return float(np.exp(-np.sum(share * np.log(share))))


def scores(view_a: np.ndarray, view_b: np.ndarray) -> dict[str, float]:
    """Returns the scores of one feature.

    Args:
        view_a: Features of one view of each of n images, `[n, d]` float32.
        view_b: Features of the other view, row-aligned.

    Returns:
        `retrieval_top1` and `retrieval_top5`: the share of views, in 0-1, whose image's
        other view is the nearest, or among the five nearest, of the n other views;
        `retrieval_auc`, the mean of the function of that name; `rankme`; `uniformity`
        (0 collapsed, down to -4); and `alignment` (0-4).
    """
    ranks = np.stack(_both_directions(view_a, view_b))
    return {
        "retrieval_top1": float((ranks <= 1).mean()),
        "retrieval_top5": float((ranks <= 5).mean()),
        "retrieval_auc": float(1 - (ranks - 1).mean() / (len(view_a) - 1)),
        "rankme": rankme(view_a),
        "uniformity": float(metrics.uniformity(view_a)),
        "alignment": float(metrics.alignment(view_a, view_b)),
    }


def verdict(percentiles: dict[str, np.ndarray]) -> dict:
    """Returns whether h tells an image's other view from other images.

    The rule: h is compared with the best baseline, image by image. The encoder has
    learned if the 95 % interval of the mean difference lies above zero.

    Args:
        percentiles: `retrieval_auc` of the features `h` and of the baselines, which are
            `pixels`, `random_h` and, where a run starts from given weights, `init_h`;
            each `[n]`, of the same images.

    Returns:
        `learned` (None with fewer than 30 images), `baseline` (the name of the best
        one), `difference` and `interval` (of h minus baseline) and `sentence`.
    """
    means = {name: float(np.mean(values)) for name, values in percentiles.items()}
    count = len(percentiles["h"])
    best = max((name for name in means if name != "h"), key=lambda name: means[name])
    differences = percentiles["h"] - percentiles[best]
    mean = float(differences.mean())
    half = NORMAL_95 * float(differences.std()) / math.sqrt(count)
    interval = [mean - half, mean + half]
    learned = bool(interval[0] > 0) if count >= MIN_IMAGES else None
    return {
        "learned": learned,
        "baseline": best,
        "difference": mean,
        "interval": interval,
        "sentence": _sentence(means, count, learned),
    }


_NAMES = {"pixels": "pixels", "random_h": "untrained", "init_h": "initial weights"}


def _sentence(means: dict[str, float], count: int, learned: bool | None) -> str:
    texts = {name: f"{mean:.0%}" for name, mean in means.items()}
    if any(texts[name] == texts["h"] for name in texts if name != "h"):
        texts = {name: f"{mean:.1%}" for name, mean in means.items()}
    texts = {name: text.replace("%", " %") for name, text in texts.items()}
    others = ", ".join(
        f"{_NAMES[name]} {text}" for name, text in texts.items() if name != "h"
    )
    start = (
        f"By h, an image's other view is nearer than {texts['h']} of {count - 1:,} "
        f"other images; {others}: "
    )
    if learned is None:
        return start + f"no verdict, which needs at least {MIN_IMAGES} images."
    if learned:
        return start + "the encoder has learned."
    # In docs/evaluation.md most encoders without a difference had learned classes.
    return start + "this does not show that the encoder has learned."
