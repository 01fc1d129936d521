"""Scores of a run without labels, on images that it was not trained on."""

import numpy as np
import tensorflow as tf

from tfsimclr.data import dataset as datasets
from tfsimclr.evaluation import label_free
from tfsimclr.networks.initial_weights import InitialWeights
from tfsimclr.runs import features
from tfsimclr.settings.config import Config

BATCH_SIZE = 256
# The views do not depend on the run's seed: runs are compared on the same ones.
VIEW_SEED = 0x5EED


def evaluate(
    config: Config,
    dataset: datasets.DataSet,
    model,
    weights: InitialWeights | None = None,
) -> dict | None:
    """Scores every feature of a run without labels; prints the scores.

    Args:
        config: Resolved.
        dataset: Its images that the run was not trained on are used, at most 1,000.
        model: The trained model.
        weights: Weights that the encoder started from, or None if they were random.

    Returns:
        The entry `label_free` of result.json: `num_images`; `origin` of the images;
        `features`, the scores of `evaluation.label_free.scores` by feature; and
        `verdict`, that of `evaluation.label_free.verdict`. None if the run was trained
        on all images.
    """
    split, origin = features.held_out(config, dataset)
    if split is None or len(split.images) < 2:
        return None
    images = split.images
    views = fixed_views(model, images)
    of_views = features.extract(config, model, *views, weights=weights)
    print(
        f"Without labels, on two views of {len(images):,} images that were not trained "
        "on:"
    )
    scores, percentiles = {}, {}
    for name in of_views[0]:
        pair = [of_view[name] for of_view in of_views]
        scores[name] = label_free.scores(*pair)
        if name in label_free.COMPARED:
            percentiles[name] = label_free.retrieval_auc(*pair)
        print(score_line(name, scores[name]), flush=True)
    verdict = label_free.verdict(percentiles)
    print(verdict["sentence"], flush=True)
    return {
        "num_images": len(images),
        "origin": origin,
        "features": scores,
        "verdict": verdict,
    }


def fixed_views(model, images: np.ndarray) -> list[np.ndarray]:
    """Returns two views of each image, uint8 `[n, s, s, 3]`.

    They are drawn as in the training of the run, but always with the same seed.
    """
    views: list[list] = [[], []]
    for first in range(0, len(images), BATCH_SIZE):
        for view, blocks in enumerate(views):
            seed = tf.constant([VIEW_SEED + view, first], tf.int32)
            blocks.append(model.views(images[first : first + BATCH_SIZE], seed))
    return [np.round(255 * np.concatenate(blocks)).astype(np.uint8) for blocks in views]


def score_line(name: str, scores: dict) -> str:
    """Returns the scores of a feature as a line of text."""
    return (
        f"  {name:9} AUC {scores['retrieval_auc']:.3f}   "
        f"top-1 {scores['retrieval_top1']:6.2%}   "
        f"top-5 {scores['retrieval_top5']:6.2%}   RankMe {scores['rankme']:6.1f}   "
        f"uniformity {scores['uniformity']:6.3f}   alignment {scores['alignment']:.3f}"
    )
