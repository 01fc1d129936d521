"""Confidence intervals of the difference of two accuracies on the same test images."""

import math
import statistics
from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """The difference of two accuracies, in 0-1, with its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(
    correct_a: np.ndarray, correct_b: np.ndarray, level: float = 0.95
) -> Difference:
    """Returns the accuracy of a minus that of b, with a confidence interval.

    The interval is over test images: it tells how much the difference would vary with
    another test set of the same kind. It does not tell how much it varies with the
    seed of the training. Only the images on which exactly one of the two is right
    count, as in McNemar's test.

    Args:
        correct_a: bool `[n]`, whether a is right on each image.
        correct_b: bool `[n]`, for the same images.
        level: Confidence level, in 0-1.

    Source: Agresti and Min 2005, "Simple improved confidence intervals for comparing
    matched proportions", Statistics in Medicine 24: Wald's interval after half an image
    is added to each of the four cells of the table.
    """
    a, b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    n = len(a)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    center = (only_a - only_b) / (n + 2)
    spread = (only_a + only_b + 1) / (n + 2) - center**2
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    half = z * math.sqrt(spread / (n + 2))
    value = (only_a - only_b) / n
    return Difference(value, max(-1.0, center - half), min(1.0, center + half))
