"""Momentum networks: exponential moving averages of other networks."""

import math

import keras
import tensorflow as tf

from tfsimclr.errors import UserError

SCHEDULES = ("constant", "cosine")


@keras.saving.register_keras_serializable("tfsimclr")
class MomentumNetwork(keras.layers.Layer):
    """An exponential moving average of a chain of networks.

    It is the momentum encoder of MoCo and the target network of BYOL. It starts as a
    copy of the online networks. `update` moves its trainable variables (kernels,
    scales, offsets) towards theirs; the moving statistics of batch norm follow the
    batches on which this network itself is called. No gradient passes through it.

    Args:
        networks: The online networks: built layers that are called one after the
            other. If one returns a list, its last entry is passed on.
        decay: EMA decay from 0 (a copy after each step) to 1 (never changes).
        schedule: `constant`, or `cosine`, which raises the decay to 1 over
            `total_steps`, as in BYOL.
        total_steps: Steps of the run; required by the `cosine` schedule.
        **kwargs: Arguments of a Keras layer.

    Raises:
        UserError: If the decay is not in 0-1, or the schedule unknown.

    Sources: He et al. 2020 (arXiv:1911.05722), equation 2; Grill et al. 2020
    (arXiv:2006.07733), section 3.2 and appendix J.
    """

    def __init__(
        self,
        networks,
        decay: float,
        schedule: str = "constant",
        total_steps: int | None = None,
        **kwargs,
    ):
        if not 0 <= decay <= 1:
            raise UserError(
                f"The decay of a moving average must be from 0 to 1, got {decay}. "
                "0.99 to 0.999 are usual."
            )
        if schedule not in SCHEDULES:
            raise UserError(f"schedule must be one of {SCHEDULES}, got {schedule!r}.")
        super().__init__(autocast=False, **kwargs)
        self.decay = decay
        self.schedule = schedule
        self.total_steps = total_steps
        self.online = _Untracked(networks)
        # The attribute's name is part of saved weights (see MomentumMethod).
        self.twins = [_copy(network) for network in networks]
        self.built = True

    def target(self) -> list:
        """Returns the copies whose weights are the moving averages."""
        # A method: Keras would save the weights under the name of a property.
        return list(self.twins)

    def call(self, x, training=False):
        for network in self.twins:
            x = network(x, training=training)
            x = x[-1] if isinstance(x, list) else x
        return tf.stop_gradient(x)

    def decay_at(self, step) -> tf.Tensor:
        """Returns the EMA decay of the update after a step (0, 1, ...)."""
        if self.schedule == "constant":
            return tf.constant(self.decay, tf.float32)
        if self.total_steps is None:
            raise UserError("schedule='cosine' needs total_steps, got None.")
        progress = tf.cast(step, tf.float32) / self.total_steps
        progress = tf.clip_by_value(progress, 0.0, 1.0)
        return 1.0 - (1.0 - self.decay) * (tf.cos(math.pi * progress) + 1.0) / 2.0

    def update(self, step) -> None:
        """Moves the average after a step (0, 1, ...)."""
        decay = self.decay_at(step)
        for online, target in zip(self.online.items, self.twins, strict=True):
            for new, old in zip(
                online.trainable_variables, target.trainable_variables, strict=True
            ):
                rate = tf.cast(decay, old.dtype)
                old.assign(old * rate + new * (1 - rate))


class _Untracked:
    """Keeps Keras from tracking the online layers as part of the moving average."""

    def __init__(self, items):
        self.items = list(items)


def _copy(network):
    config = keras.saving.serialize_keras_object(network)
    copy = keras.saving.deserialize_keras_object(config)
    copy.set_weights(network.get_weights())  # deserialising draws new random weights
    return copy
