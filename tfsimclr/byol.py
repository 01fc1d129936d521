"""BYOL: one view predicts what a moving average makes of the other; no negatives."""

import keras

from tfsimclr import ema as moving_averages
from tfsimclr import losses, metrics
from tfsimclr.method import Method


@keras.saving.register_keras_serializable("tfsimclr")
class BYOL(Method):
    """BYOL: the online network predicts its own moving average, both views both ways.

    Nothing repels here: that the features do not collapse rests on the predictor and on
    the average. `ema=1` never moves the target, which stays the untrained network: the
    experiment with which the paper begins.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`, e.g. `resnet.resnet(18)`.
        head: h -> `[h, head_1, ..., z]`; the paper's has two layers and batch norm
            after the hidden one (`batch_norm="hidden"`).
        views: Makes a view of a batch, e.g. `augment.Views(image_size=96)`.
        predictor: A head like `head`, with its dim; None predicts nothing, and
            collapses.
        ema: Share of the target that stays at a step, 0 to 1; the paper begins at
            0.996.
        total_steps: Steps over which `ema` rises to 1 on half a cosine; None keeps it.
        seed: Of the views.
        **kwargs: Of `keras.Model`.

    Source: Grill et al. 2020 (arXiv:2006.07733), section 3.1; section 2 for `ema=1`.
    """

    logged = ("contrastive_top1",)
    defaults = {
        "ema": 0.996,
        "ema_schedule": "cosine",
        "pred_layers": 2,
        "proj_batch_norm": "hidden",
    }

    def __init__(
        self,
        encoder,
        head,
        views,
        predictor=None,
        ema: float = 0.996,
        total_steps: int | None = None,
        seed: int = 0,
        **kwargs,
    ):
        if predictor is not None and predictor.dim != head.dim:
            raise ValueError(
                "The predictor must have the width of the head's output, "
                f"dim={head.dim}, got dim={predictor.dim}."
            )
        super().__init__(encoder, head, views, seed, predictor, **kwargs)
        self.ema = ema
        self.total_steps = total_steps
        self.average = moving_averages.Average([encoder, head], ema, total_steps)

    def objective(self, view_a, view_b):
        online = [self.predicted(view) for view in (view_a, view_b)]
        # Each view in a pass of its own, as in the paper: batch norm sees one view.
        target = [self.average(view, training=True) for view in (view_b, view_a)]
        pairs = zip(online, target, strict=True)
        loss = sum(losses.regression(*pair) for pair in pairs)
        return loss, {"contrastive_top1": metrics.contrastive_top1(*online)}

    def after_update(self):
        self.average.update(self.step - 1)

    def get_config(self):
        own = {"ema": self.ema, "total_steps": self.total_steps}
        return {**super().get_config(), **own}
