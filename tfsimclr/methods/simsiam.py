"""SimSiam: one view predicts the other's projection, behind a stop-gradient."""

import keras
import tensorflow as tf

from tfsimclr import losses
from tfsimclr.evaluation import metrics
from tfsimclr.methods.base import Method


@keras.saving.register_keras_serializable("tfsimclr")
class SimSiam(Method):
    """SimSiam: BYOL without a momentum network.

    Both views pass through the same network. The prediction p of one view is drawn to
    the projection z of the other, and no gradient flows through z. Without that
    stop-gradient, or without the predictor, all features become the same (section 4).

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`, e.g. `resnet.resnet(18)`.
        head: h -> `[h, head_1, ..., z]`; the paper's has three layers and batch norm
            after each (`batch_norm=True`).
        views: Makes a view of a batch, e.g. `augment.Views(image_size=96)`.
        predictor: A head with the dim of `head`; the paper's is a bottleneck of two
            layers, a quarter of `dim` wide, with `batch_norm="hidden"`.
        stop_gradient: Whether to stop the gradient through z; False shows the collapse.
        **kwargs: `seed` of the views, and arguments of `keras.Model`.

    Source: Chen and He 2021 (arXiv:2011.10566), algorithm 1. Their loss is the negative
    cosine similarity; ours, BYOL's, is 2 + 2 of it, the sum over both directions.
    """

    metric_names = ("contrastive_top1",)

    def __init__(
        self, encoder, head, views, predictor=None, stop_gradient=True, **kwargs
    ):
        super().__init__(encoder, head, views, predictor=predictor, **kwargs)
        self.stop_gradient = stop_gradient

    def objective(self, view_a, view_b):
        a, b = self.project(view_a), self.project(view_b)
        z_a, z_b = a.z, b.z
        if self.stop_gradient:
            z_a, z_b = tf.stop_gradient(z_a), tf.stop_gradient(z_b)
        loss = losses.regression(a.p, z_b) + losses.regression(b.p, z_a)
        return loss, {"contrastive_top1": metrics.contrastive_top1(a.p, b.p)}

    def get_config(self):
        return {**super().get_config(), "stop_gradient": self.stop_gradient}
