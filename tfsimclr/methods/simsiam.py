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
        **kwargs: `seed` of the views, `num_views`, `num_local_views` and `local_views`
            for more than two views of an image (see `Method`), and arguments of
            `keras.Model`.

    With more views the loss is twice the mean over the ordered pairs of a view and
    another, large view.

    Source: Chen and He 2021 (arXiv:2011.10566), algorithm 1. Their loss is the negative
    cosine similarity; ours, BYOL's, is 2 + 2 of it, the sum over both directions.
    """

    metric_names = ("contrastive_top1",)
    takes_many_views = True

    def __init__(
        self, encoder, head, views, predictor=None, stop_gradient=True, **kwargs
    ):
        super().__init__(encoder, head, views, predictor=predictor, **kwargs)
        self.stop_gradient = stop_gradient

    def objective(self, *views, training=True):
        outputs = [self.project(view, training=training)[0] for view in views]
        p = [output.p for output in outputs]
        targets = [output.z for output in outputs[: self.num_views]]
        if self.stop_gradient:
            targets = [tf.stop_gradient(z) for z in targets]
        loss = losses.regression_of_views(p, targets)
        return loss, {"contrastive_top1": metrics.contrastive_top1(p[0], p[1])}

    def get_config(self):
        return {**super().get_config(), "stop_gradient": self.stop_gradient}
