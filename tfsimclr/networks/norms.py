"""Batch normalisation over groups of a batch, as if each lay on a device of its own."""

import keras
import tensorflow as tf

from tfsimclr.errors import UserError


@keras.saving.register_keras_serializable("tfsimclr")
class SplitBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation whose statistics are those of a part of the batch.

    Row i of a batch of n belongs to group i // (n / groups). In training each group is
    normalised by its own mean and variance; the moving statistics, which are used
    otherwise, follow the groups' average. With one group it is Keras's layer.

    Args:
        groups: Groups of a batch, at least 1; must divide n.
        **kwargs: Of `keras.layers.BatchNormalization`; the axis is the last one.

    Source: He et al. 2020 (arXiv:1911.05722), section 3.3, on one device.
    """

    def __init__(self, groups: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups

    def call(self, inputs, training=None, mask=None):
        if self.groups == 1 and training and self._is_fusible(inputs):
            return self._fused(inputs)
        if self.groups == 1 or not training:
            return super().call(inputs, training=training, mask=mask)
        n = inputs.shape[0]
        if n is not None and n % self.groups:
            raise UserError(
                f"{self.groups} groups do not divide a batch of {n}. Take another "
                "batch size or number of groups."
            )
        # As Keras does: statistics of half precision are computed in float32.
        x = keras.ops.cast(inputs, self.variable_dtype)
        x = keras.ops.reshape(x, (self.groups, -1, *inputs.shape[1:]))
        within = tuple(range(1, len(x.shape) - 1))
        mean, variance = keras.ops.moments(x, axes=within, keepdims=True)
        for moving, value in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            value = keras.ops.reshape(value, (self.groups, -1))
            value = keras.ops.mean(value, axis=0)
            moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
        scale = keras.ops.rsqrt(variance + self.epsilon)
        if self.scale:
            scale *= keras.ops.cast(self.gamma, x.dtype)
        x = (x - mean) * scale
        if self.center:
            x += keras.ops.cast(self.beta, x.dtype)
        shape = (-1 if n is None else n, *inputs.shape[1:])
        return keras.ops.cast(keras.ops.reshape(x, shape), self.compute_dtype)

    def _is_fusible(self, inputs) -> bool:
        plain = self.scale and self.center and self.trainable and not self.synchronized
        return len(inputs.shape) == 4 and plain and self.variable_dtype == "float32"

    def _fused(self, inputs):
        """Returns what Keras's layer does, by one operation in place of ten.

        Keras's go through memory one by one, in float32 also where the maps have half
        its width: a tenth of a float32 step, a quarter of a bfloat16 one.
        """
        maps, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=keras.ops.cast(inputs, self.compute_dtype),
            scale=keras.ops.convert_to_tensor(self.gamma),
            offset=keras.ops.convert_to_tensor(self.beta),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            is_training=True,
        )
        # The operation returns the sample variance, Keras keeps the population's.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        variance *= tf.maximum(count - 1.0, 1.0) / count
        for moving, value in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
        return maps

    def get_config(self):
        return {**super().get_config(), "groups": self.groups}


def set_bn_groups(network, groups: int) -> None:
    """Sets the number of groups of every batch norm of a network.

    Raises:
        UserError: If it has batch norms that cannot be split.
    """
    for layer in network._flatten_layers():
        if isinstance(layer, SplitBatchNormalization):
            layer.groups = groups
        elif isinstance(layer, keras.layers.BatchNormalization) and groups > 1:
            raise UserError(
                f"{layer.path} normalises over the whole batch. Make it a "
                f"norms.SplitBatchNormalization to have {groups} groups."
            )


def shuffle_for_bn(n: int, groups: int) -> list[int]:
    """Returns an order of n rows that deals them out to the groups one by one.

    A group of this order and a group of rows that follow each other have at most one
    row in common if groups^2 >= n.
    """
    return [row for first in range(groups) for row in range(first, n, groups)]


def default_bn_groups(n: int) -> int:
    """Returns the smallest divisor of n whose square is at least n (see `spread`)."""
    return next(g for g in range(1, n + 1) if n % g == 0 and g * g >= n)
