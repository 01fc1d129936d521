"""Losses of projections and of logits, always computed in float32."""

from tfsimclr.losses.classification import cross_entropy, distillation
from tfsimclr.losses.contrastive import (
    chance,
    dcl,
    dclw,
    info_nce,
    nt_xent,
)
from tfsimclr.losses.normalization import normalize
from tfsimclr.losses.regression import regression, regression_of_views

__all__ = [
    "chance",
    "cross_entropy",
    "dcl",
    "dclw",
    "distillation",
    "info_nce",
    "normalize",
    "nt_xent",
    "regression",
    "regression_of_views",
]
