"""Projection heads that return the output of every layer."""

import functools

import keras

from tfsimclr.errors import UserError
from tfsimclr.networks import norms

MAX_LAYERS = 8

# Functions of keras.activations that are not elementwise or need arguments.
_NOT_ACTIVATIONS = ("get", "serialize", "deserialize", "glu", "threshold")


@keras.saving.register_keras_serializable("tfsimclr")
class ProjectionHead(keras.layers.Layer):
    """Dense layers from h to z, with everything in between.

    `head_i` is the output of hidden layer i after its activation, `z` the output of
    the last layer, which has no activation. No layer has a bias, except the last with
    `bias=True`.

    Args:
        num_layers: Dense layers, 1 to 8. The paper's best result uses 4.
        dim: Width of z.
        hidden_dim: Width of the hidden layers; None takes the width of h.
        activation: Name of an elementwise Keras activation, for the hidden layers.
        batch_norm: Whether batch normalisation follows each layer: before the
            activation of hidden layers, without an offset after the last layer, as in
            SimCLR. "hidden" omits it after the last layer, as in BYOL.
        bias: Whether the last layer has a bias, as a classifier does.
        norm: `batch`, or `group` for group norm wherever `batch_norm` asks for batch
            norm.
        **kwargs: `name`, `dtype` and `trainable` of a Keras layer.

    Called on h `[n, d]` it returns a list of 1 + num_layers tensors: h itself, the
    hidden layers, `[n, hidden_dim]` each, and z `[n, dim]`. `names.feature_names` gives
    their names.

    Raises:
        UserError: If an argument is out of range, or h is not `[n, d]` with known d.

    Source: Chen et al. 2020 (arXiv:2002.05709), section 2.1; for taking features from
    the middle of the head Chen et al. 2020 (arXiv:2006.10029), section 2.
    """

    def __init__(
        self,
        num_layers: int = 2,
        dim: int = 64,
        hidden_dim: int | None = None,
        activation: str = "relu",
        batch_norm: bool | str = False,
        bias: bool = False,
        norm: str = "batch",
        **kwargs,
    ):
        # The dense layers cast their inputs; h itself must be returned uncast.
        super().__init__(autocast=False, **kwargs)
        _check_count("num_layers", num_layers, 1, MAX_LAYERS)
        _check_count("dim", dim, 1)
        if hidden_dim is not None:
            _check_count("hidden_dim", hidden_dim, 1)
        if batch_norm not in (True, False, "hidden"):
            raise UserError(
                f"batch_norm must be True, False or 'hidden', got {batch_norm!r}."
            )
        if norm not in norms.NORMS:
            raise UserError(f"norm must be one of {norms.NORMS}, got {norm!r}.")
        self.num_layers = num_layers
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.activation = activation
        self.batch_norm = batch_norm
        self.bias = bias
        self.norm = norm
        self._activate = _activation(activation)
        self._denses: list = []
        self._norms: list = []

    def build(self, h_shape):
        if len(h_shape) != 2 or h_shape[-1] is None:
            raise UserError(
                "A projection head takes features [n, d] with d known, got the shape "
                f"{tuple(h_shape)}. Pool the encoder's output over its positions."
            )
        width = h_shape[-1]
        for i in range(self.num_layers):
            last = i == self.num_layers - 1
            units = self.dim if last else self.hidden_dim or h_shape[-1]
            name = "z" if last else f"head_{i + 1}"
            dense = keras.layers.Dense(
                units,
                use_bias=self.bias and last,
                dtype=self.dtype_policy,
                name=name,
            )
            dense.build((None, width))
            self._denses.append(dense)
            if self._normalised(i):
                norm = self._norm(units, name, last)
                norm.build((None, units))
                self._norms.append(norm)
            width = units

    def _norm(self, units: int, name: str, last: bool):
        options = {"center": not last, "dtype": self.dtype_policy}
        if self.norm == "group":
            return norms.group_norm(units, f"{name}_gn", **options)
        return norms.SplitBatchNormalization(
            momentum=0.9, epsilon=1e-5, name=f"{name}_bn", **options
        )

    def call(self, h, training=False):
        outputs = [h]
        for i, dense in enumerate(self._denses):
            x = dense(outputs[-1])
            if self._normalised(i):
                x = self._norms[i](x, training=training)
            outputs.append(x if dense is self._denses[-1] else self._activate(x))
        return outputs

    @property
    def last(self):
        """The layer that computes z; it exists once the head is built."""
        return self._denses[-1]

    def take_hidden_layers(self, other: "ProjectionHead") -> None:
        """Copies the weights of the first layers of another head to the hidden layers.

        Args:
            other: A built head whose layers have the same widths.
        """
        for target, source in zip(self._denses[:-1], other._denses, strict=False):
            target.set_weights(source.get_weights())
        for target, source in zip(self._norms, other._norms, strict=False):
            target.set_weights(source.get_weights())

    def _normalised(self, layer: int) -> bool:
        hidden = layer < self.num_layers - 1
        return self.batch_norm is True or (self.batch_norm == "hidden" and hidden)

    def compute_output_shape(self, h_shape):
        n, d = h_shape
        hidden = [(n, self.hidden_dim or d)] * (self.num_layers - 1)
        return [(n, d), *hidden, (n, self.dim)]

    def get_config(self):
        settings = {
            "num_layers": self.num_layers,
            "dim": self.dim,
            "hidden_dim": self.hidden_dim,
            "activation": self.activation,
            "batch_norm": self.batch_norm,
            "bias": self.bias,
            "norm": self.norm,
        }
        return {**super().get_config(), **settings}


def _activation(name):
    if name not in activation_names():
        raise UserError(
            f"activation must be one of {activation_names()}, got {name!r}."
        )
    function = getattr(keras.activations, name)
    if name == "leaky_relu":
        # Differs: Keras's default slope is 0.2; PyTorch's, used by the paper, is 0.01.
        return functools.partial(function, negative_slope=0.01)
    return function


def activation_names() -> list[str]:
    """Returns the names of the activations a head accepts."""
    names = [n for n in dir(keras.activations) if not n.startswith("_")]
    return [
        n
        for n in names
        if n not in _NOT_ACTIVATIONS and callable(getattr(keras.activations, n))
    ]


def _check_count(argument, value, minimum, maximum=None):
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    too_large = maximum is not None and is_integer and value > maximum
    if not is_integer or value < minimum or too_large:
        expected = (
            f"from {minimum} to {maximum}" if maximum else f"of at least {minimum}"
        )
        raise UserError(f"{argument} must be a whole number {expected}, got {value!r}.")
