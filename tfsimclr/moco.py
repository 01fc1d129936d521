"""MoCo: keys of a slowly moving encoder, kept in a queue, are the negatives."""

import keras
import tensorflow as tf

from tfsimclr import ema as moving_averages
from tfsimclr import losses, norms
from tfsimclr.method import Method


@keras.saving.register_keras_serializable("tfsimclr")
class MoCo(Method):
    """MoCo with a queue (v1, v2) or, with a predictor and no queue, as v3.

    With a queue, view a gives the queries and view b the keys; the key of the same
    image is the positive, the keys of earlier batches are the negatives. Without one,
    both views give both, and the other images' keys of the batch are the negatives.

    A key is no secret if its batch statistics give away which batch it is of: the query
    has seen the same ones. So the batch is normalised in groups, and those of the
    queries share one image at most with those of the keys (He et al., section 3.3).
    Batch norms of the encoder and the head must be `norms.SplitBatchNormalization`.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`, e.g. `resnet.resnet(18)`.
        head: h -> `[h, head_1, ..., z]`: of one layer in v1, of two in v2.
        views: Makes a view of a batch, e.g. `augment.Views(image_size=96)`.
        temperature: Positive; 0.07 in v1, 0.2 in v2.
        ema: Share of the key encoder that stays at a step; the paper has 0.999, fewer
            than some thousand steps want less.
        total_steps: Steps over which `ema` rises to 1 on half a cosine; None keeps it.
        queue_size: Keys to keep, a multiple of n, and clearly fewer than there are
            images, or older keys of a query's own image repel it. 0: no queue.
        bn_groups: Groups of a batch, a divisor of n with a square of at least n.
            1 normalises the batch as a whole: with a queue it leaks, without one all
            keys are of the query's batch, and it is what v3 does.
        predictor: None, or a head that follows z in the queries alone.
        seed: Of the views and of the queue, which starts with random rows.
        **kwargs: Of `keras.Model`.

    Sources: He et al. 2020 (arXiv:1911.05722); v2 Chen et al. 2020 (arXiv:2003.04297);
    v3 Chen et al. 2021 (arXiv:2104.02057), algorithm 1.
    """

    logged = ("loss_above_chance", "contrastive_top1")
    defaults = {"ema": 0.999, "ema_schedule": "constant"}

    def __init__(
        self,
        encoder,
        head,
        views,
        temperature: float = 0.2,
        ema: float = 0.999,
        total_steps: int | None = None,
        queue_size: int = 65536,
        bn_groups: int = 16,
        predictor=None,
        seed: int = 0,
        **kwargs,
    ):
        if not temperature > 0:
            raise ValueError(
                f"temperature must be above 0, got temperature={temperature}. "
                "MoCo has 0.07, its second version 0.2."
            )
        super().__init__(encoder, head, views, seed, predictor, **kwargs)
        self.temperature = temperature
        self.ema = ema
        self.total_steps = total_steps
        self.queue_size = queue_size
        self.bn_groups = bn_groups
        self.average = moving_averages.Average([encoder, head], ema, total_steps)
        # The twins too: a head's settings do not tell its groups.
        for network in (encoder, head, *self.average.twins):
            norms.split(network, bn_groups)
        self.queue = None
        if queue_size:
            self.queue = self.add_weight(
                shape=(queue_size, head.dim),
                initializer="zeros",
                dtype="float32",
                trainable=False,
                name="queue",
            )
            rows = tf.random.stateless_normal((queue_size, head.dim), (seed, 0))
            self.queue.assign(losses.normalize(rows))

    def objective(self, view_a, view_b):
        if self.queue is None:
            return self._symmetric(view_a, view_b)
        query, key = self.predicted(view_a), self.key(view_b)
        queue = tf.identity(self.queue)
        loss = losses.info_nce(query, key, self.temperature, queue)
        positive = tf.reduce_sum(losses.normalize(query) * key, axis=1)
        hardest = tf.reduce_max(
            tf.matmul(losses.normalize(query), queue, transpose_b=True), axis=1
        )
        self._enqueue(key)
        return loss, self._logs(loss, positive > hardest, self.queue_size + 1)

    def key(self, view):
        """Returns the keys of a view, `[n, d]` float32, rows of length one."""
        n = view.shape[0]
        if n is None or n % self.bn_groups:
            raise ValueError(
                f"MoCo needs batches of one size that {self.bn_groups} groups divide, "
                f"got {n or 'batches of any size'}. Drop the remainder, or change "
                "bn_groups."
            )
        order = norms.spread(n, self.bn_groups)
        back = sorted(range(n), key=order.__getitem__)
        z = self.average(tf.gather(view, order), training=True)
        return losses.normalize(tf.gather(z, back))

    def _symmetric(self, view_a, view_b):
        pairs = [
            (self.predicted(one), self.key(other))
            for one, other in ((view_a, view_b), (view_b, view_a))
        ]
        loss = sum(losses.info_nce(*pair, self.temperature) for pair in pairs) / 2
        best = [tf.argmax(tf.matmul(q, k, transpose_b=True), axis=1) for q, k in pairs]
        n = tf.shape(best[0], out_type=tf.int64)[0]
        return loss, self._logs(
            loss, tf.concat(best, 0) == tf.tile(tf.range(n), [2]), n
        )

    def _logs(self, loss, correct, candidates):
        chance = tf.math.log(tf.cast(candidates, tf.float32))
        return {
            "loss_above_chance": loss - chance,
            "contrastive_top1": tf.reduce_mean(tf.cast(correct, tf.float32)),
        }

    def _enqueue(self, key):
        """Puts a batch of keys in the place of the oldest."""
        n = key.shape[0]
        if self.queue_size % n:
            raise ValueError(
                f"queue_size must be a multiple of the batch, got {self.queue_size} "
                f"and {n}."
            )
        # By the step, so that there is no second place to be restored.
        first = tf.cast(self.step, tf.int64) * n % self.queue_size
        place = tf.range(n, dtype=tf.int64) + first
        self.queue.assign(tf.tensor_scatter_nd_update(self.queue, place[:, None], key))

    def after_update(self):
        self.average.update(self.step - 1)

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "ema": self.ema,
            "total_steps": self.total_steps,
            "queue_size": self.queue_size,
            "bn_groups": self.bn_groups,
        }
