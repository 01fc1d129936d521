"""SimCLR: two views of an image attract, all others of the batch repel."""

import keras
import tensorflow as tf

from tfsimclr import ema as moving_averages
from tfsimclr import losses, metrics
from tfsimclr.method import Method

LOSSES = ("nt_xent", "dcl", "dclw")


@keras.saving.register_keras_serializable("tfsimclr")
class SimCLR(Method):
    """SimCLR over the 2n - 2 negatives of a batch.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`, e.g. `resnet.resnet(18)`.
        head: h -> `[h, head_1, ..., z]`, e.g. `heads.ProjectionHead(4)`.
        views: Makes a view of a batch, e.g. `augment.Views(image_size=96)`.
        temperature: Of the loss, positive.
        seed: Of the views.
        loss: `nt_xent`, or without the positive in the denominator `dcl` and its
            weighted form `dclw` (see `losses`).
        ema: 0 compares the projections with each other. Otherwise they are compared
            with those of a moving average of encoder and head, and this is the share
            of the average that stays at a step: momentum SimCLR.
        total_steps: Steps over which `ema` rises to 1 on half a cosine; None keeps it.
        block_rows: 0 computes the loss at once, otherwise this many rows of the
            similarities at a time (see `losses.nt_xent`).
        **kwargs: Of `keras.Model`.

    Example::

        model = SimCLR(resnet.resnet(18), heads.ProjectionHead(4), augment.Views(96))
        model.compile(optimizer=lars.LARS(0.85))
        model.fit(images, batch_size=128, epochs=40)

    Source: Chen et al. 2020 (arXiv:2002.05709), algorithm 1.
    """

    logged = ("loss_above_chance", "contrastive_top1")
    defaults = {"ema": 0.0, "ema_schedule": "constant"}

    def __init__(
        self,
        encoder,
        head,
        views,
        temperature: float = 0.5,
        seed: int = 0,
        loss: str = "nt_xent",
        ema: float = 0.0,
        total_steps: int | None = None,
        block_rows: int = 0,
        **kwargs,
    ):
        if not temperature > 0:
            raise ValueError(
                f"temperature must be above 0, got temperature={temperature}. "
                "The paper uses 0.5."
            )
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {loss!r}.")
        super().__init__(encoder, head, views, seed=seed, **kwargs)
        self.temperature = temperature
        self.loss_name = loss
        self.ema = ema
        self.block_rows = block_rows
        self.total_steps = total_steps
        self.average = None
        if ema:
            self.average = moving_averages.Average([encoder, head], ema, total_steps)

    def objective(self, view_a, view_b):
        # One pass, so that batch norm sees both views of every image together.
        both = tf.concat([view_a, view_b], axis=0)
        z_a, z_b = _halves(self(both, training=True)[-1])
        keys = _halves(self.average(both, training=True)) if self.average else None
        compared = {"keys": keys, "block_rows": self.block_rows}
        loss = getattr(losses, self.loss_name)(z_a, z_b, self.temperature, **compared)
        # Without the positive in the denominator there is one candidate less.
        candidates = 2 * tf.shape(z_a)[0] - (1 if self.loss_name == "nt_xent" else 2)
        return loss, {
            # Comparable between batch sizes: 0 is chance.
            "loss_above_chance": loss - tf.math.log(tf.cast(candidates, tf.float32)),
            "contrastive_top1": metrics.contrastive_top1(z_a, z_b, **compared),
        }

    def after_update(self):
        if self.average:
            self.average.update(self.step - 1)

    def get_config(self):
        own = {
            "temperature": self.temperature,
            "loss": self.loss_name,
            "ema": self.ema,
            "total_steps": self.total_steps,
            "block_rows": self.block_rows,
        }
        return {**super().get_config(), **own}


def _halves(z):
    """Returns the projections of either view, `[n, d]` float32."""
    return tf.split(tf.cast(z, tf.float32), 2)
