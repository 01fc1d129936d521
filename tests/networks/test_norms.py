"""Fused batch norm against Keras's: output, gradients and moving statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsimclr.networks import norms

pytestmark = pytest.mark.quick


def layer(precision, shape, fused=True, **more):
    norm = norms.SplitBatchNormalization(
        momentum=0.9, epsilon=1e-5, dtype=keras.dtype_policies.get(precision), **more
    )
    norm.build((None, *shape[1:]))
    for variable, (low, high) in ((norm.gamma, (0.5, 2)), (norm.beta, (-1, 1))):
        variable.assign(np.linspace(low, high, shape[-1]))
    if not fused:
        norm._is_fusible = lambda inputs: False
    return norm


def results(norm, shape, jit_compile=False):
    """Returns output, gradients and moving statistics of one training call."""
    x = 3.0 * tf.random.stateless_normal(shape, [1, 2]) + 1.0
    weights = tf.random.stateless_normal(shape, [3, 4])

    @tf.function(jit_compile=jit_compile)
    def call(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x, training=True)
            total = tf.reduce_sum(tf.cast(y, tf.float32) * weights)
        return [y, *tape.gradient(total, [x, norm.gamma, norm.beta])]

    outputs = call(x)
    assert outputs[0].dtype == norm.compute_dtype
    outputs = [tf.cast(value, tf.float32).numpy() for value in outputs]
    return [*outputs, norm.moving_mean.numpy(), norm.moving_variance.numpy()]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("shape", [(8, 5, 6, 7), (4, 1, 1, 3), (1, 1, 1, 2)])
def test_fused_equals_keras(precision, shape):
    fused = results(layer(precision, shape), shape)
    plain = results(layer(precision, shape, fused=False), shape)
    # They differ by a rounding of the half-precision output and the order of sums.
    tolerance = {"float32": 1e-5, "mixed_bfloat16": 2e-2, "mixed_float16": 2e-3}
    for a, b in zip(fused, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance[precision], atol=2e-5)


def test_fused_is_the_same_under_xla():
    shape = (8, 5, 6, 7)
    plain = results(layer("float32", shape), shape)
    compiled = results(layer("float32", shape), shape, jit_compile=True)
    for a, b in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "training"),
    [({"groups": 2}, True), ({"center": False}, True), ({}, False)],
)
def test_settings_that_cannot_be_fused_are_not(settings, training, monkeypatch):
    def refuse(self, inputs):
        raise AssertionError("fused")

    monkeypatch.setattr(norms.SplitBatchNormalization, "_fused", refuse)
    norm = norms.SplitBatchNormalization(**settings)
    assert norm(tf.ones([4, 2, 2, 3]), training=training).shape == (4, 2, 2, 3)
    frozen = norms.SplitBatchNormalization(trainable=False)
    assert frozen(tf.ones([4, 2, 2, 3]), training=True).shape == (4, 2, 2, 3)
    with pytest.raises(AssertionError, match="fused"):
        norms.SplitBatchNormalization()(tf.ones([4, 2, 2, 3]), training=True)
