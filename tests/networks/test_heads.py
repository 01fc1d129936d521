"""The projection head against NumPy, layer by layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsimclr.networks import heads
from tfsimclr.networks.names import feature_names

pytestmark = pytest.mark.quick

WIDTH = 6

FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "linear": lambda x: x,
    "softplus": lambda x: np.log1p(np.exp(x)),
}


@pytest.fixture(autouse=True)
def same_weights_in_every_run():
    keras.utils.set_random_seed(0)


def features(n=5, width=WIDTH, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype("float32")


def kernels(head):
    return [v.numpy().astype("float64") for v in head.variables if v.name == "kernel"]


@pytest.mark.parametrize("num_layers", range(1, 9))
def test_every_layer_is_returned_and_named(num_layers):
    head = heads.ProjectionHead(num_layers, dim=3, hidden_dim=4)
    h = features()
    outputs = head(h)
    names = feature_names(num_layers)
    hidden = [f"head_{i}" for i in range(1, num_layers)]
    assert names == ("h", *hidden, "z")
    assert isinstance(outputs, list)
    shapes = dict(zip(names, [tuple(x.shape) for x in outputs], strict=True))
    assert shapes == {"h": (5, 6), **dict.fromkeys(hidden, (5, 4)), "z": (5, 3)}
    np.testing.assert_array_equal(outputs[0], h)
    assert head.compute_output_shape((5, 6)) == list(shapes.values())


def test_feature_names_of_the_best_head_in_the_paper():
    assert feature_names(4) == ("h", "head_1", "head_2", "head_3", "z")


def test_hidden_layers_are_as_wide_as_h_unless_told():
    head = heads.ProjectionHead(3)
    assert [x.shape[1] for x in head(features(width=10))] == [10, 10, 10, 64]
    assert head.hidden_dim is None


@pytest.mark.parametrize("num_layers", [1, 2, 4, 8])
@pytest.mark.parametrize("activation", FORMULAS)
def test_outputs_are_what_numpy_computes(num_layers, activation):
    # Wide enough that eight layers of ReLUs do not all die.
    head = heads.ProjectionHead(num_layers, 3, 32, activation)
    outputs = head(features())
    weights = kernels(head)
    assert len(weights) == num_layers
    x = features().astype("float64")
    for i, weight in enumerate(weights):
        x = x @ weight
        if i < num_layers - 1:
            x = FORMULAS[activation](x)
        np.testing.assert_allclose(outputs[i + 1], x, rtol=1e-4, atol=1e-6)
    assert np.abs(outputs[-1]).max() > 1e-4


@pytest.mark.parametrize("activation", heads.activation_names())
def test_every_activation_keeps_the_shape(activation):
    outputs = heads.ProjectionHead(3, 3, 4, activation)(features())
    assert [tuple(x.shape) for x in outputs] == [(5, 6), (5, 4), (5, 4), (5, 3)]
    assert all(np.isfinite(x).all() for x in outputs)


def test_plain_head_has_kernels_and_nothing_else():
    head = heads.ProjectionHead(4)
    head(features())
    assert [v.name for v in head.variables] == ["kernel"] * 4
    assert len({v.path for v in head.variables}) == 4


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_batch_norm_follows_every_layer(num_layers):
    head = heads.ProjectionHead(num_layers, 3, 4, "tanh", batch_norm=True)
    outputs = head(features(), training=True)
    assert sum(v.name == "gamma" for v in head.variables) == num_layers
    assert sum(v.name == "beta" for v in head.variables) == num_layers - 1
    x = features().astype("float64")
    for i, weight in enumerate(kernels(head)):
        x = x @ weight
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
        if i < num_layers - 1:
            x = np.tanh(x)
        np.testing.assert_allclose(outputs[i + 1], x, rtol=1e-3, atol=1e-4)


def test_batch_norm_learns_in_training_only():
    head = heads.ProjectionHead(2, 3, 4, batch_norm=True)
    head(features(), training=False)
    means = [v for v in head.variables if v.name == "moving_mean"]
    assert [np.abs(v.numpy()).max() for v in means] == [0, 0]
    head(features(), training=True)
    first = (features() @ kernels(head)[0]).mean(axis=0)
    np.testing.assert_allclose(means[0], 0.1 * first, rtol=1e-4, atol=1e-6)
    assert np.abs(means[1].numpy()).max() > 0


@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_variable_gets_a_gradient(batch_norm):
    head = heads.ProjectionHead(4, 3, 16, batch_norm=batch_norm)
    with tf.GradientTape() as tape:
        z = head(features(), training=True)[-1]
        loss = tf.reduce_sum(z**3)
    for gradient in tape.gradient(loss, head.trainable_variables):
        assert np.abs(gradient).max() > 0


# --- Keras -------------------------------------------------------------------------

OPTIONS = {
    "num_layers": 3,
    "dim": 5,
    "hidden_dim": 7,
    "activation": "leaky_relu",
    "batch_norm": True,
}


@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_config_makes_the_same_head(options):
    head = heads.ProjectionHead(name="mine", **options)
    config = head.get_config()
    assert {key: config[key] for key in options} == options
    restored = heads.ProjectionHead.from_config(config)
    assert restored.get_config() == config
    head(features())
    restored(features())
    restored.set_weights(head.get_weights())
    for a, b in zip(head(features()), restored(features()), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_keras_file_brings_the_head_back(tmp_path, options):
    h = keras.Input((WIDTH,))
    model = keras.Model(h, heads.ProjectionHead(**options)(h))
    model(features(), training=True)
    model.save(tmp_path / "head.keras")
    loaded = keras.models.load_model(tmp_path / "head.keras")
    for a, b in zip(model(features()), loaded(features()), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "float32"])
def test_dtype_reaches_the_layers_and_leaves_h_alone(dtype):
    head = heads.ProjectionHead(3, dtype=dtype, batch_norm=True)
    h, *others = head(features())
    np.testing.assert_array_equal(h, features())
    compute = dtype.removeprefix("mixed_")
    assert {x.dtype.name for x in others} == {compute}
    assert {v.dtype for v in head.variables} == {"float32"}


def test_xla_computes_the_same():
    head = heads.ProjectionHead(4)
    eager = head(features())
    compiled = tf.function(head, jit_compile=True)(tf.constant(features()))
    for a, b in zip(compiled, eager, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# --- errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"num_layers": 0}, "num_layers must be a whole number from 1 to 8, got 0"),
        ({"num_layers": 9}, "num_layers must be a whole number from 1 to 8, got 9"),
        ({"num_layers": 2.0}, "num_layers must be a whole number"),
        ({"num_layers": True}, "num_layers must be a whole number"),
        ({"dim": 0}, "dim must be a whole number of at least 1, got 0"),
        ({"hidden_dim": 0}, "hidden_dim must be a whole number of at least 1"),
        ({"hidden_dim": -3}, "hidden_dim must be a whole number of at least 1"),
        ({"activation": "rellu"}, "activation must be one of .*'relu'.*got 'rellu'"),
        ({"activation": "glu"}, "activation must be one of .*got 'glu'"),
        ({"activation": "get"}, "activation must be one of .*got 'get'"),
        ({"activation": None}, "activation must be one of .*'linear'.*got None"),
    ],
)
def test_bad_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        heads.ProjectionHead(**arguments)


def test_feature_names_of_no_layers_is_an_error():
    with pytest.raises(ValueError, match="num_layers must be at least 1"):
        feature_names(0)


def test_maps_that_were_not_pooled_are_an_error():
    with pytest.raises(ValueError, match=r"takes features \[n, d\].*Pool"):
        heads.ProjectionHead()(np.zeros((2, 3, 3, 4), "float32"))
