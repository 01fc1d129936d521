"""LARS: layer-wise adaptive learning rates for momentum SGD."""

import keras
import tensorflow as tf

from tfsimclr.errors import UserError


def trust_ratio(weight: tf.Tensor, update: tf.Tensor, trust: float) -> tf.Tensor:
    """Returns trust * |weight| / |update|, or 1 where either norm is zero.

    Args:
        weight: A layer's weight, any shape.
        update: Its gradient with decay added, same shape.
        trust: The trust coefficient, eta in the paper.

    Source: You et al. 2017 (arXiv:1708.03888), equation 6.
    """
    weight_norm, update_norm = tf.norm(weight), tf.norm(update)
    # `> 0`, not `>= 0`: a weight that starts at zero would never move, and a zero
    # gradient would give 0 / 0.
    usable = (weight_norm > 0) & (update_norm > 0)
    ratio = trust * tf.math.divide_no_nan(weight_norm, update_norm)
    return tf.where(usable, ratio, 1.0)


@keras.saving.register_keras_serializable("tfsimclr")
class LARS(keras.optimizers.Optimizer):
    """Momentum SGD whose step is proportional to each layer's weight norm.

    With gradient `g`, weight `w`, velocity `v` and learning rate `r`::

        u = g + l2 * w
        v = momentum * v + r * trust * |w| / |u| * u
        w = w - v

    The learning rate is inside the velocity. Variables of rank 0 and 1 (biases,
    batch-norm scales and offsets) get neither decay nor adaptation: `u = g`, ratio 1.

    Args:
        learning_rate: Float or `LearningRateSchedule`. At batch 128 SimCLR's
            square-root rule gives 0.85, its linear rule 0.15.
        momentum: In [0, 1).
        l2: Decay added to the gradient. Not named `weight_decay`: that attribute would
            switch on Keras's decoupled decay as well.
        trust: The trust coefficient.
        name: Name of the optimizer.
        **kwargs: Arguments of `keras.optimizers.Optimizer`.

    Raises:
        UserError: If momentum, l2 or trust is out of range.

    Example::

        model.compile(optimizer=LARS(learning_rate=0.85, momentum=0.9, l2=1e-6))

    Source: You et al. 2017 (arXiv:1708.03888), algorithm 1; momentum, decay and
    exclusions as in Chen et al. 2020 (arXiv:2002.05709), appendix B.
    """

    def __init__(
        self,
        learning_rate=0.85,
        momentum: float = 0.9,
        l2: float = 1e-6,
        trust: float = 0.001,
        name: str = "lars",
        **kwargs,
    ):
        if not 0 <= momentum < 1:
            raise UserError(f"momentum must be in [0, 1), got momentum={momentum}.")
        if l2 < 0:
            raise UserError(f"l2 must be at least 0, got l2={l2}.")
        if not trust > 0:
            raise UserError(f"trust must be above 0, got trust={trust}.")
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.l2 = l2
        self.trust = trust
        self._plain: frozenset[int] = frozenset()

    def leave_plain(self, variables) -> None:
        """Excludes variables from decay and adaptation, whatever their rank.

        Needed for a classifier that starts near zero: a step proportional to its norm
        would hardly move it.
        """
        self._plain |= {self._var_key(variable) for variable in variables}

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        rate = tf.cast(learning_rate, variable.dtype)
        velocity = self._velocities[self._get_variable_index(variable)]
        update = tf.cast(gradient, variable.dtype)
        if self._is_adapted(variable):
            update = update + self.l2 * tf.convert_to_tensor(variable)
            update = update * trust_ratio(
                tf.convert_to_tensor(variable), update, self.trust
            )
        self.assign(velocity, self.momentum * velocity + rate * update)
        self.assign_sub(variable, velocity)

    def excluded(self, variables) -> list[str]:
        """Returns the paths of the variables that get no decay and no adaptation."""
        return [
            variable.path for variable in variables if not self._is_adapted(variable)
        ]

    def get_config(self):
        settings = {"momentum": self.momentum, "l2": self.l2, "trust": self.trust}
        return {**super().get_config(), **settings}

    def _is_adapted(self, variable) -> bool:
        # By rank: `variable.name` is only "gamma" or "kernel" without the layer, so
        # matching layer names would silently exclude nothing.
        return len(variable.shape) > 1 and self._var_key(variable) not in self._plain
