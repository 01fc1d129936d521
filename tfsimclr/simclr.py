"""SimCLR: two views of an image attract, all others of the batch repel."""

import keras
import tensorflow as tf

from tfsimclr import losses, metrics
from tfsimclr.method import Method


@keras.saving.register_keras_serializable("tfsimclr")
class SimCLR(Method):
    """SimCLR over the 2n - 2 negatives of a batch.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`, e.g. `resnet.resnet(18)`.
        head: h -> `[h, head_1, ..., z]`, e.g. `heads.ProjectionHead(4)`.
        views: Makes a view of a batch, e.g. `augment.Views(image_size=96)`.
        temperature: Of NT-Xent, positive.
        seed: Of the views.
        **kwargs: Of `keras.Model`.

    Example::

        model = SimCLR(resnet.resnet(18), heads.ProjectionHead(4), augment.Views(96))
        model.compile(optimizer=lars.LARS(0.85))
        model.fit(images, batch_size=128, epochs=40)

    Source: Chen et al. 2020 (arXiv:2002.05709), algorithm 1.
    """

    logged = ("loss_above_chance", "contrastive_top1")

    def __init__(
        self, encoder, head, views, temperature: float = 0.5, seed: int = 0, **kwargs
    ):
        if not temperature > 0:
            raise ValueError(
                f"temperature must be above 0, got temperature={temperature}. "
                "The paper uses 0.5."
            )
        super().__init__(encoder, head, views, seed=seed, **kwargs)
        self.temperature = temperature

    def objective(self, view_a, view_b):
        # One pass, so that batch norm sees both views of every image together.
        z = self(tf.concat([view_a, view_b], axis=0), training=True)[-1]  # [2n, d]
        z_a, z_b = tf.split(tf.cast(z, tf.float32), 2)
        loss = losses.nt_xent(z_a, z_b, self.temperature)
        candidates = tf.cast(tf.shape(z)[0] - 1, tf.float32)
        return loss, {
            # Comparable between batch sizes: 0 is chance, ln(2n - 1).
            "loss_above_chance": loss - tf.math.log(candidates),
            "contrastive_top1": metrics.contrastive_top1(z_a, z_b),
        }

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}
