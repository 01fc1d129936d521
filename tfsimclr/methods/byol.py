"""BYOL: one view predicts the target network's projection of the other."""

import keras

from tfsimclr import losses
from tfsimclr.evaluation import metrics
from tfsimclr.methods.base import MomentumMethod


@keras.saving.register_keras_serializable("tfsimclr")
class BYOL(MomentumMethod):
    """BYOL: the online network predicts its target network, without negatives.

    The predictor and the stop-gradient on the target network prevent collapse.
    `ema_decay=1` never moves the target network, which stays untrained: the experiment
    with which the paper begins.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`, e.g. `resnet.resnet(18)`.
        head: h -> `[h, head_1, ..., z]`; the paper's has two layers and batch norm
            after the hidden one (`batch_norm="hidden"`).
        views: Makes a view of a batch, e.g. `augment.Views(image_size=96)`.
        predictor: A head like `head`, with its dim. Without one (None) the features
            collapse.
        ema_decay: EMA decay of the target network, 0 to 1; the paper begins at 0.996.
        ema_schedule: `constant`, or `cosine`, which raises the decay to 1.
        total_steps: Steps of the run, which `cosine` needs for training.
        **kwargs: `seed` of the views, `num_views`, `num_local_views` and `local_views`
            for more than two views of an image (see `Method`), and arguments of
            `keras.Model`.

    The target network sees only the large views. The loss is twice the mean over the
    ordered pairs of a view and the target of another, large view.

    Source: Grill et al. 2020 (arXiv:2006.07733), section 3.1; section 2 for
    `ema_decay=1`.
    """

    metric_names = ("contrastive_top1",)
    takes_many_views = True

    def __init__(
        self,
        encoder,
        head,
        views,
        predictor=None,
        ema_decay: float = 0.996,
        **kwargs,
    ):
        super().__init__(
            encoder, head, views, ema_decay=ema_decay, predictor=predictor, **kwargs
        )

    def objective(self, *views, training=True):
        # Each view in a pass of its own, as in the paper: batch norm sees one view.
        p = [self.project(view, training=training)[0].p for view in views]
        targets = [
            self.target(view, training=training)[0] for view in views[: self.num_views]
        ]
        loss = losses.regression_of_views(p, targets)
        return loss, {"contrastive_top1": metrics.contrastive_top1(p[0], p[1])}
