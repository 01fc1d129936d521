"""Gradient checkpointing against the plain encoder: the same numbers, less memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsimclr.errors import UserError
from tfsimclr.networks import remat, resnet


def step(encoder, call, x):
    """Returns h, gradients and moving statistics; leaves the statistics unchanged."""
    before = [v.numpy() for v in encoder.non_trainable_variables]

    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            tape.watch(x)
            h = call(x)
            loss = tf.reduce_sum(tf.cast(h, tf.float32) ** 2)
        return h, tape.gradient(loss, [x, *encoder.trainable_variables])

    h, gradients = compute()
    state = [v.numpy() for v in encoder.non_trainable_variables]
    for variable, value in zip(encoder.non_trainable_variables, before, strict=True):
        variable.assign(value)
    return h.numpy(), [g.numpy() for g in gradients], state


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("selective_kernel", [False, True])
def test_same_gradients_and_statistics(policy, selective_kernel):
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    encoder = resnet.resnet(10, 0.125, "medium", selective_kernel=selective_kernel)
    x = tf.random.stateless_uniform([8, 16, 16, 3], [0, 1])
    plain = step(encoder, lambda x: encoder(x, training=True), x)
    checkpointed = step(encoder, remat.Rematerialized(encoder), x)
    for a, b in zip(plain, checkpointed, strict=True):
        # The compiler fuses across blocks in the plain step only: the last bit differs.
        for one, other in zip(a, b, strict=True):
            scale = np.abs(one).max()
            np.testing.assert_allclose(other, one, atol=1e-5 * scale, rtol=1e-5)


def test_an_encoder_without_blocks_is_refused():
    images = keras.Input((8, 8, 3))
    h = keras.layers.GlobalAveragePooling2D()(images)
    with pytest.raises(UserError, match="residual blocks"):
        remat.Rematerialized(keras.Model(images, h))
