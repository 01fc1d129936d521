"""SimCLR: views of an image attract, all other images of the batch repel."""

import keras
import tensorflow as tf

from tfsimclr.distribution import replicas
from tfsimclr.errors import UserError
from tfsimclr.evaluation import metrics
from tfsimclr.losses import multi_view
from tfsimclr.methods.base import MomentumMethod

# Loss -> its own settings with their defaults, those of the papers' code.
LOSSES: dict[str, dict[str, float]] = {
    "nt_xent": {},
    "dcl": {},
    "dclw": {},
    "hcl": {"hcl_beta": 1.0, "hcl_tau_plus": 0.1},
    "sogclr": {"sogclr_gamma": 0.9},
}


@keras.saving.register_keras_serializable("tfsimclr")
class SimCLR(MomentumMethod):
    """SimCLR with the 2n - 2 negatives of a batch of n images.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`, e.g. `resnet.resnet(18)`.
        head: h -> `[h, head_1, ..., z]`, e.g. `heads.ProjectionHead(4)`.
        views: Makes a view of a batch, e.g. `augment.Views(image_size=96)`.
        temperature: Temperature of the loss, positive.
        seed: Seed of the views.
        loss: `nt_xent`; without the positive in the denominator `dcl` and its weighted
            form `dclw`; with hard negatives `hcl`; with a running denominator of every
            image `sogclr` (see `losses.multi_view`).
        ema_decay: 0 compares the projections with each other. Above 0 they are compared
            with those of a momentum encoder with this EMA decay: momentum SimCLR.
        ema_schedule: `constant`, or `cosine`, which raises the decay to 1.
        total_steps: Steps of the run, which `cosine` needs for training.
        loss_block_rows: 0 computes the loss at once, otherwise this many rows of the
            similarity matrix at a time (see `losses.nt_xent`).
        hcl_beta: Concentration of `hcl` on hard negatives, default 1.
        hcl_tau_plus: Probability in `hcl` that a negative is of the anchor's class,
            default 0.1.
        sogclr_gamma: Weight of the newest batch in the running denominator of `sogclr`,
            above 0, at most 1, default 0.9.
        num_images: Number of training images, for `sogclr`. Each takes 4 bytes. The
            step needs their indices: `model.fit(images, np.arange(num_images))`.
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
        hcl_beta: float | None = None,
        hcl_tau_plus: float | None = None,
        sogclr_gamma: float | None = None,
        num_images: int | None = None,
        **kwargs,
    ):
        if not temperature > 0:
            raise UserError(
                f"temperature must be above 0, got temperature={temperature}. "
                "The paper uses 0.5."
            )
        if loss not in LOSSES:
            raise UserError(f"loss must be one of {tuple(LOSSES)}, got {loss!r}.")
        loss_settings = {
            "hcl_beta": hcl_beta,
            "hcl_tau_plus": hcl_tau_plus,
            "sogclr_gamma": sogclr_gamma,
        }
        for name, value in loss_settings.items():
            if value is not None and name not in LOSSES[loss]:
                raise UserError(f"{name} means nothing to loss={loss!r}, got {value}.")
        if (loss == "sogclr") != (num_images is not None):
            raise UserError(
                "num_images, the number of training images, belongs to loss='sogclr', "
                f"got num_images={num_images} and loss={loss!r}."
            )
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
        settings = {
            name: default if loss_settings[name] is None else float(loss_settings[name])
            for name, default in LOSSES[loss].items()
        }
        self.hcl_beta = settings.get("hcl_beta")
        self.hcl_tau_plus = settings.get("hcl_tau_plus")
        self.sogclr_gamma = settings.get("sogclr_gamma")
        self.num_images = num_images
        self.log_means = None
        self._new_means = replicas.StepValue()
        self.needs_index = loss == "sogclr"
        if num_images is not None:
            # Logarithms: exp(1 / temperature) overflows at small temperatures.
            self.log_means = self.add_weight(
                shape=(num_images,),
                initializer=keras.initializers.Constant(multi_view.UNSEEN),
                dtype="float32",
                trainable=False,
                name="log_means",
            )

    def prepare_batch(self, images, labels, step=None):
        """Returns the views, and for `sogclr` the indices of the images, `[n]`."""
        views = super().prepare_batch(images, labels, step)
        if not self.needs_index or step is not None:
            return views  # held-out images have no running mean
        if labels is None:
            raise UserError(
                "loss='sogclr' needs the index of every image beside the images, got "
                "None. Use model.fit(images, np.arange(len(images)), ...)."
            )
        return *views, replicas.gather(labels)

    def objective(self, *batch, training=True):
        views, index = batch, None
        if self.needs_index and training:
            *views, index = batch
        z, keys = self._projections(views, training)
        block_rows = self.loss_block_rows
        if not training and block_rows:  # batches of any size
            count = z[0].shape[0]
            block_rows = block_rows if count and len(z) * count % block_rows == 0 else 0
        options = {"keys": keys, "block_rows": block_rows}
        loss = self._loss(z, options, index)
        # Without the positive in the denominator there is one candidate less.
        candidates = len(z) * (tf.shape(z[0])[0] - 1)
        candidates += 1 if self.loss_name in ("nt_xent", "hcl") else 0
        return loss, {
            # 0 is chance at every batch size, so runs can be compared.
            "loss_above_chance": loss - tf.math.log(tf.cast(candidates, tf.float32)),
            "contrastive_top1": metrics.multi_view_top1(z, **options),
        }

    def _loss(self, z, options: dict, index):
        if self.loss_name == "hcl":
            options = {**options, "beta": self.hcl_beta, "tau_plus": self.hcl_tau_plus}
        if self.loss_name != "sogclr":
            return getattr(multi_view, self.loss_name)(z, self.temperature, **options)
        if index is None:  # in evaluation, as if every image were new
            return multi_view.dcl(z, self.temperature, **options)
        loss, means = multi_view.sogclr(
            z,
            self.temperature,
            log_means=tf.gather(self.log_means, index),
            gamma=self.sogclr_gamma,
            **options,
        )
        self._new_means.set((index, means))  # stored after the update of this step
        return loss

    def after_update(self, step):
        super().after_update(step)
        new_means = self._new_means.take()
        if new_means is not None:
            index, means = new_means
            rows = tf.cast(index, tf.int64)[:, None]
            updated = tf.tensor_scatter_nd_update(self.log_means, rows, means)
            self.log_means.assign(updated)

    def _projections(self, views, training):
        """Returns z of every view, `[n, d]` float32 each, and the keys or None."""
        z: list = []
        keys: list = []
        for group in self.by_size(views):
            # One pass, so that batch norm sees all views of one size together.
            z += [o.p for o in self.project(*group, training=training)]
            if self.average:
                of_group = self.target(*group, training=training)
                keys += [tf.cast(key, tf.float32) for key in of_group]
        return z, keys or None

    def get_config(self):
        return {
            **super().get_config(),
            "ema_decay": self.ema_decay or 0.0,
            "temperature": self.temperature,
            "loss": self.loss_name,
            "loss_block_rows": self.loss_block_rows,
            **{name: getattr(self, name) for name in LOSSES[self.loss_name]},
            **({"num_images": self.num_images} if self.num_images else {}),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if "block_rows" in config:  # version 0.1
            config["loss_block_rows"] = config.pop("block_rows")
        return super().from_config(config)
