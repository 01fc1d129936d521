"""MoCo: a queue of keys from a momentum encoder provides the negatives."""

import keras
import tensorflow as tf

from tfsimclr import losses
from tfsimclr.distribution import replicas
from tfsimclr.errors import UserError
from tfsimclr.methods.base import MomentumMethod
from tfsimclr.networks import norms
from tfsimclr.views import pending


@keras.saving.register_keras_serializable("tfsimclr")
class MoCo(MomentumMethod):
    """MoCo with a queue (v1, v2) or, with a predictor and no queue, as v3.

    With a queue, view a gives the queries and view b the keys; the key of the same
    image is the positive, the keys of earlier batches are the negatives. Without one,
    both views give both, and the other images' keys of the batch are the negatives.

    Batch norm leaks information: if queries and keys are normalised over the same
    images, the model can find the positive from shared batch statistics. MoCo prevents
    this with Shuffling BN across GPUs. On one device, batch norm runs over `bn_groups`
    sub-batches and keys are shuffled, so that a query's and its key's sub-batch share
    only that image (He et al., section 3.3). Batch norms of the encoder and the head
    must be `norms.SplitBatchNormalization`.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`, e.g. `resnet.resnet(18)`.
        head: h -> `[h, head_1, ..., z]`: of one layer in v1, of two in v2.
        views: Makes a view of a batch, e.g. `augment.Views(image_size=96)`.
        temperature: Positive; 0.07 in v1, 0.2 in v2.
        ema_decay: EMA decay of the momentum encoder; 0.999 in the paper. 0.99 suits
            runs of a few thousand steps.
        ema_schedule: `constant`, or `cosine`, which raises the decay to 1.
        total_steps: Steps of the run, which `cosine` needs for training.
        queue_size: Keys in the queue, a multiple of n, and clearly fewer than there are
            images, or older keys of a query's own image repel it. 0: no queue.
        bn_groups: Sub-batches for batch norm, a divisor of n with a square of at least
            n. 1 normalises the batch as a whole: with a queue that leaks information;
            without one all keys are of the query's batch, and v3 does it. With
            `microbatch_size` a multiple of the micro-batches of a batch, or 1.
        predictor: None, or a head that follows z in the queries alone.
        seed: Seed of the views and of the queue, which starts with random rows.
        **kwargs: Arguments of `keras.Model`.

    Sources: He et al. 2020 (arXiv:1911.05722); v2 Chen et al. 2020 (arXiv:2003.04297);
    v3 Chen et al. 2021 (arXiv:2104.02057), algorithm 1.
    """

    metric_names = ("loss_above_chance", "contrastive_top1")

    def __init__(
        self,
        encoder,
        head,
        views,
        temperature: float = 0.2,
        ema_decay: float = 0.999,
        queue_size: int = 65536,
        bn_groups: int = 16,
        seed: int = 0,
        **kwargs,
    ):
        if not temperature > 0:
            raise UserError(
                f"temperature must be above 0, got temperature={temperature}. "
                "MoCo has 0.07, its second version 0.2."
            )
        super().__init__(encoder, head, views, ema_decay=ema_decay, seed=seed, **kwargs)
        self.temperature = temperature
        self.queue_size = queue_size
        self.bn_groups = bn_groups
        # The momentum encoder too: a head's config does not hold its groups.
        for network in (encoder, head, *self.average.target()):
            norms.set_bn_groups(network, bn_groups)
        self.queue = None
        self._new_keys = replicas.StepValue()
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

    def objective(self, view_a, view_b, training=True):
        if training:
            self._divide_into_groups(pending.batch_size(view_a))
        if self.queue is None:
            return self._symmetric(view_a, view_b, training)
        query = self.project(view_a, training=training)[0].p
        key = self.key(view_b, training)
        queue = tf.identity(self.queue)
        loss = losses.info_nce(query, key, self.temperature, queue)
        query = losses.normalize(query)
        positive = tf.reduce_sum(query * key, axis=1)
        hardest = tf.reduce_max(tf.matmul(query, queue, transpose_b=True), axis=1)
        if training:
            self._new_keys.set(key)  # enqueued after the update of this step
        return loss, self._logs(loss, positive > hardest, self.queue_size + 1)

    def key(self, view, training=True):
        """Returns the keys of a view, `[n, d]` float32, rows of length one."""
        if not training:  # no batch statistics, so nothing to shuffle
            return losses.normalize(self.target(view, training=False)[0])
        n = pending.batch_size(view)
        self._divide_into_groups(n)
        if self.bn_groups == 1 and replicas.count() > 1:  # the order stays as it is
            return losses.normalize(self.target(view)[0])
        n *= replicas.count()
        order = norms.shuffle_for_bn(n, self.bn_groups)
        back = sorted(range(n), key=order.__getitem__)
        (z,) = self.target(view, order=order)
        return losses.normalize(tf.gather(z, back))

    def _divide_into_groups(self, n: int | None) -> None:
        """Sets the groups of every batch norm for n images on each device."""
        devices = replicas.count()
        pieces = devices * (n // (self.microbatch_size or n)) if n else 1
        n = n and n * devices
        if n is None or n % self.bn_groups:
            raise UserError(
                f"MoCo needs batches of one size that {self.bn_groups} groups divide, "
                f"got {n or 'batches of any size'}. Drop the remainder, or change "
                "bn_groups."
            )
        if self.bn_groups > 1 and self.bn_groups % pieces:
            parts = "micro-batches" if self.microbatch_size else "devices"
            raise UserError(
                f"bn_groups={self.bn_groups} must be a multiple of the {pieces} "
                f"{parts} of a batch of {n}. Take another bn_groups or number of "
                f"{parts}."
            )
        for network in (self.encoder, self.head, *self.average.target()):
            norms.set_bn_groups(network, max(1, self.bn_groups // pieces))

    @property
    def _separates_batch_norm(self) -> bool:
        return super()._separates_batch_norm or self.bn_groups > 1

    def _symmetric(self, view_a, view_b, training):
        pairs = [
            (self.project(one, training=training)[0].p, self.key(other, training))
            for one, other in ((view_a, view_b), (view_b, view_a))
        ]
        loss = sum(losses.info_nce(*pair, self.temperature) for pair in pairs) / 2
        nearest = [
            tf.argmax(tf.matmul(query, key, transpose_b=True), axis=1)
            for query, key in pairs
        ]
        n = tf.shape(nearest[0], out_type=tf.int64)[0]
        correct = tf.concat(nearest, 0) == tf.tile(tf.range(n), [2])
        return loss, self._logs(loss, correct, n)

    def _logs(self, loss, correct, candidates):
        chance = tf.math.log(tf.cast(candidates, tf.float32))
        return {
            "loss_above_chance": loss - chance,
            "contrastive_top1": tf.reduce_mean(tf.cast(correct, tf.float32)),
        }

    def after_update(self, step):
        super().after_update(step)
        if self.queue is not None:
            self._enqueue(self._new_keys.take(), step)

    def _enqueue(self, key, step):
        """Replaces the oldest keys by a batch of new ones."""
        n = key.shape[0]
        if self.queue_size % n:
            raise UserError(
                f"queue_size must be a multiple of the batch, got {self.queue_size} "
                f"and {n}."
            )
        # The position follows from the step, so a checkpoint need not hold it.
        first = tf.cast(step, tf.int64) * n % self.queue_size
        rows = tf.range(n, dtype=tf.int64) + first
        self.queue.assign(tf.tensor_scatter_nd_update(self.queue, rows[:, None], key))

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "queue_size": self.queue_size,
            "bn_groups": self.bn_groups,
        }
