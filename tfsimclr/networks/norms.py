"""Normalisation layers: batch norm over sub-batches, and group norm."""

import keras
import tensorflow as tf

from tfsimclr.distribution import replicas
from tfsimclr.errors import UserError

NORMS = ("batch", "group")


@keras.saving.register_keras_serializable("tfsimclr")
class SplitBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation with separate statistics for each sub-batch ("group").

    Row i of a batch of n belongs to group i // (n / groups). In training each group is
    normalised by the mean and variance of that group alone. The moving statistics, used
    in inference, follow the average over the groups. With one group it computes what
    Keras's layer does, in a training step on several devices over the images of all of
    them; groups lie on one device each.

    Args:
        groups: Number of groups, at least 1; must divide n.
        **kwargs: Arguments of `keras.layers.BatchNormalization`; the axis is the last.

    Raises:
        UserError: If called in training on a batch that the groups do not divide.

    Source: He et al. 2020 (arXiv:1911.05722), section 3.3, on one device.
    """

    def __init__(self, groups: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups

    def call(self, inputs, training=None, mask=None):
        if self.groups == 1 and training and self.trainable:
            if replicas.batch_norm_is_shared():
                return self._over_replicas(inputs)
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
        # As in Keras: statistics of half-precision inputs are computed in float32.
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

    def _over_replicas(self, inputs):
        """Returns the inputs normalised by the statistics of all replicas together."""
        x = tf.cast(inputs, self.variable_dtype)
        mean, variance = tf.nn.moments(x, axes=list(range(len(x.shape) - 1)))
        mean, variance = replicas.combined_moments(mean, variance)
        for moving, value in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
        scale = tf.math.rsqrt(variance + self.epsilon)
        if self.scale:
            scale *= tf.cast(self.gamma, x.dtype)
        x = (x - mean) * scale
        if self.center:
            x += tf.cast(self.beta, x.dtype)
        return tf.cast(x, self.compute_dtype)

    def _is_fusible(self, inputs) -> bool:
        plain = self.scale and self.center and self.trainable and not self.synchronized
        return len(inputs.shape) == 4 and plain and self.variable_dtype == "float32"

    def _fused(self, inputs):
        """Returns the same as Keras's layer, by one operation instead of ten.

        Each of Keras's operations reads and writes the feature maps, in float32 even if
        the maps are half precision. Measured: that takes a tenth of a float32 training
        step and a quarter of a bfloat16 one.
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
        # The operation returns the sample variance (divided by count - 1); Keras
        # averages the population variance (divided by count).
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


def group_norm(channels: int, name: str, center: bool = True, **options):
    """Returns a layer that normalises groups of channels of each image by itself.

    The groups have 16 channels, or somewhat more where 16 does not divide them; fewer
    than 32 channels are one group.

    Args:
        channels: Channels of its input.
        name: Name of the layer.
        center: Whether it has an offset.
        **options: Arguments of `keras.layers.GroupNormalization`.

    Source: Wu and He 2018 (arXiv:1803.08494), section 4.1, table 3.
    """
    most = max(1, channels // 16)
    groups = next(g for g in range(most, 0, -1) if channels % g == 0)
    return keras.layers.GroupNormalization(
        groups, epsilon=1e-5, center=center, name=name, **options
    )


def set_bn_groups(network, groups: int) -> None:
    """Sets the number of groups of every batch norm of a network.

    Raises:
        UserError: If it has a batch norm of another class and groups is above 1.
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
    """Returns the row order for Shuffling BN on one device.

    In this order each group holds every `groups`-th row, so if groups^2 >= n a group
    shares at most one row with any group of the original order. A query's and its key's
    sub-batch then share only that image.

    Args:
        n: Rows of the batch.
        groups: Number of groups; must divide n.

    Source: He et al. 2020 (arXiv:1911.05722), section 3.3.
    """
    return [row for first in range(groups) for row in range(first, n, groups)]


def default_bn_groups(n: int, multiple_of: int = 1) -> int:
    """Returns the smallest divisor of n whose square is at least n.

    It is the smallest number of groups for which `shuffle_for_bn` separates the rows.

    Args:
        n: Rows of the batch.
        multiple_of: A number that the groups must be a multiple of, such as the number
            of micro-batches; a divisor of n.
    """
    return next(
        g for g in range(multiple_of, n + 1, multiple_of) if n % g == 0 and g * g >= n
    )
