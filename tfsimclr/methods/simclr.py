"""SimCLR: views of an image attract, all other images of the batch repel."""

import keras
import tensorflow as tf

from tfsimclr.errors import UserError
from tfsimclr.evaluation import metrics
from tfsimclr.losses import multi_view
from tfsimclr.methods.base import MomentumMethod

LOSSES = ("nt_xent", "dcl", "dclw")


@keras.saving.register_keras_serializable("tfsimclr")
class SimCLR(MomentumMethod):
    """SimCLR with the 2n - 2 negatives of a batch of n images.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`, e.g. `resnet.resnet(18)`.
        head: h -> `[h, head_1, ..., z]`, e.g. `heads.ProjectionHead(4)`.
        views: Makes a view of a batch, e.g. `augment.Views(image_size=96)`.
        temperature: Temperature of the loss, positive.
        seed: Seed of the views.
        loss: `nt_xent`, or without the positive in the denominator `dcl` and its
            weighted form `dclw` (see `losses`).
        ema_decay: 0 compares the projections with each other. Above 0 they are compared
            with those of a momentum encoder with this EMA decay: momentum SimCLR.
        ema_schedule: `constant`, or `cosine`, which raises the decay to 1.
        total_steps: Steps of the run, which `cosine` needs for training.
        loss_block_rows: 0 computes the loss at once, otherwise this many rows of the
            similarity matrix at a time (see `losses.nt_xent`).
        **kwargs: `num_views`, `num_local_views` and `local_views` for more than two
            views of an image (see `Method`), and arguments of `keras.Model`.

    All views of one size pass through the networks together, so that batch norm sees
    them together. Local views are a pass of their own; the moving statistics follow
    both passes.

    Example::

        model = SimCLR(resnet.resnet(18), heads.ProjectionHead(4), augment.Views(96))
        model.compile(optimizer=lars.LARS(0.85))
        model.fit(images, batch_size=128, epochs=40)

    Sources: Chen et al. 2020 (arXiv:2002.05709), algorithm 1; for more than two views
    Caron et al. 2020 (arXiv:2006.09882), section 3.2 and appendix A.8.
    """

    metric_names = ("loss_above_chance", "contrastive_top1")
    takes_many_views = True

    def __init__(
        self,
        encoder,
        head,
        views,
        temperature: float = 0.5,
        seed: int = 0,
        loss: str = "nt_xent",
        ema_decay: float = 0.0,
        ema_schedule: str = "constant",
        total_steps: int | None = None,
        loss_block_rows: int = 0,
        **kwargs,
    ):
        if not temperature > 0:
            raise UserError(
                f"temperature must be above 0, got temperature={temperature}. "
                "The paper uses 0.5."
            )
        if loss not in LOSSES:
            raise UserError(f"loss must be one of {LOSSES}, got {loss!r}.")
        super().__init__(
            encoder,
            head,
            views,
            ema_decay=ema_decay or None,
            ema_schedule=ema_schedule,
            total_steps=total_steps,
            seed=seed,
            **kwargs,
        )
        self.temperature = temperature
        # Not `self.loss`, which Keras sets in `compile`.
        self.loss_name = loss
        self.loss_block_rows = loss_block_rows

    def objective(self, *views, training=True):
        z, keys = self._projections(views, training)
        options = {"keys": keys, "block_rows": self.loss_block_rows}
        loss = getattr(multi_view, self.loss_name)(z, self.temperature, **options)
        # Without the positive in the denominator there is one candidate less.
        candidates = len(z) * (tf.shape(z[0])[0] - 1)
        candidates += 1 if self.loss_name == "nt_xent" else 0
        return loss, {
            # 0 is chance at every batch size, so runs can be compared.
            "loss_above_chance": loss - tf.math.log(tf.cast(candidates, tf.float32)),
            "contrastive_top1": metrics.multi_view_top1(z, **options),
        }

    def _projections(self, views, training):
        """Returns z of every view, `[n, d]` float32 each, and the keys or None."""
        z: list = []
        keys: list = []
        for group in self.by_size(views):
            # One pass, so that batch norm sees all views of one size together.
            stacked = tf.concat(group, axis=0)
            z += tf.split(self.project(stacked, training).p, len(group))
            if self.average:
                key = self.average(stacked, training=training)
                keys += tf.split(tf.cast(key, tf.float32), len(group))
        return z, keys or None

    def get_config(self):
        return {
            **super().get_config(),
            "ema_decay": self.ema_decay or 0.0,
            "temperature": self.temperature,
            "loss": self.loss_name,
            "loss_block_rows": self.loss_block_rows,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if "block_rows" in config:  # version 0.1
            config["loss_block_rows"] = config.pop("block_rows")
        return super().from_config(config)
