"""Networks that follow others as a moving average."""

import math

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("tfsimclr")
class Average(keras.layers.Layer):
    """A twin of a chain of networks whose weights are a moving average of theirs.

    It starts as their copy. `update` moves what they learn (kernels, scales, offsets);
    batch norm's own statistics follow the batches that the twin sees. Nothing of it is
    learned by gradient.

    Args:
        networks: Built layers, called one after the other; each may return a list, of
            which the last entry goes on.
        decay: Share of the old average that stays at an update, 0 to 1; 1 never moves.
        total_steps: None keeps the decay; otherwise it rises to 1 over this many
            steps on half a cosine, as in BYOL.
        **kwargs: Of a Keras layer.

    Raises:
        ValueError: If the decay is not in 0-1.

    Sources: He et al. 2020 (arXiv:1911.05722), equation 2; Grill et al. 2020
    (arXiv:2006.07733), section 3.2 and appendix J.
    """

    def __init__(
        self, networks, decay: float, total_steps: int | None = None, **kwargs
    ):
        if not 0 <= decay <= 1:
            raise ValueError(
                f"The decay of a moving average must be from 0 to 1, got {decay}. "
                "0.99 to 0.999 are usual."
            )
        super().__init__(autocast=False, **kwargs)
        self.decay = decay
        self.total_steps = total_steps
        self.originals = _Untracked(networks)
        self.twins = [_copy(network) for network in networks]
        self.built = True

    def call(self, x, training=False):
        for twin in self.twins:
            x = twin(x, training=training)
            x = x[-1] if isinstance(x, list) else x
        return tf.stop_gradient(x)

    def decay_at(self, step) -> tf.Tensor:
        """Returns the decay of the update that follows a step (0, 1, ...)."""
        if self.total_steps is None:
            return tf.constant(self.decay, tf.float32)
        progress = tf.cast(step, tf.float32) / self.total_steps
        progress = tf.clip_by_value(progress, 0.0, 1.0)
        return 1.0 - (1.0 - self.decay) * (tf.cos(math.pi * progress) + 1.0) / 2.0

    def update(self, step) -> None:
        """Moves the average, with the decay of a step (0, 1, ...)."""
        decay = self.decay_at(step)
        for network, twin in zip(self.originals.items, self.twins, strict=True):
            for new, old in zip(
                network.trainable_variables, twin.trainable_variables, strict=True
            ):
                rate = tf.cast(decay, old.dtype)
                old.assign(old * rate + new * (1 - rate))


class _Untracked:
    """Keeps layers out of Keras's sight: they belong to the model, not to the twin."""

    def __init__(self, items):
        self.items = list(items)


def _copy(network):
    config = keras.saving.serialize_keras_object(network)
    twin = keras.saving.deserialize_keras_object(config)
    twin.set_weights(network.get_weights())  # it drew its own
    return twin
