"""Momentum networks: copies of the online networks that follow them by EMA."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsimclr.networks import heads, momentum, resnet

IMAGES = np.random.default_rng(0).uniform(size=(8, 16, 16, 3)).astype("float32")


def networks():
    keras.utils.set_random_seed(1)
    encoder = resnet.resnet(10, 0.125, "medium")
    head = heads.ProjectionHead(2, 8, batch_norm=True)
    head.build(encoder.output_shape)
    return encoder, head


def values(variables):
    return [variable.numpy() for variable in variables]


def shift(network, by):
    for variable in network.trainable_variables:
        variable.assign_add(tf.fill(variable.shape, by))


def test_it_starts_as_a_copy_with_weights_of_its_own():
    encoder, head = networks()
    target = momentum.MomentumNetwork([encoder, head], 0.9)
    np.testing.assert_array_equal(target(IMAGES), head(encoder(IMAGES))[-1])
    shift(encoder, 0.1)
    assert np.abs(target(IMAGES) - head(encoder(IMAGES))[-1]).max() > 1e-3


def test_three_updates_are_a_moving_average():
    encoder, head = networks()
    target = momentum.MomentumNetwork([encoder, head], 0.75)
    expected = values([*encoder.trainable_variables, *head.trainable_variables])
    for step in range(3):
        shift(encoder, 0.1 * (step + 1))
        shift(head, -0.2)
        now = values([*encoder.trainable_variables, *head.trainable_variables])
        expected = [
            0.75 * old + 0.25 * new for old, new in zip(expected, now, strict=True)
        ]
        target.update(step)
    for variable, value in zip(target.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, atol=1e-6)


def test_moving_statistics_follow_the_batches_of_the_target_network():
    """Keras would not update them in a layer with `trainable = False`."""
    encoder, head = networks()
    target = momentum.MomentumNetwork([encoder, head], 0.5)
    before = values(target.non_trainable_variables)
    assert before
    encoder(IMAGES, training=True)
    target.update(0)
    for old, now in zip(before, values(target.non_trainable_variables), strict=True):
        np.testing.assert_array_equal(old, now)
    target(IMAGES, training=True)
    for old, now in zip(before, values(target.non_trainable_variables), strict=True):
        assert np.abs(old - now).max() > 0


@pytest.mark.parametrize("decay,moves", [(1.0, False), (0.0, True)])
def test_the_ends_of_the_decay(decay, moves):
    encoder, head = networks()
    target = momentum.MomentumNetwork([encoder, head], decay)
    before = values(target.trainable_variables)
    shift(encoder, 0.3)
    shift(head, 0.3)
    target.update(0)
    now = values([*encoder.trainable_variables, *head.trainable_variables])
    expected = now if moves else before
    for variable, value in zip(target.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, atol=1e-6)


def test_no_gradient_reaches_the_target_or_passes_it():
    encoder, head = networks()
    target = momentum.MomentumNetwork([encoder, head], 0.9)
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(target(images, training=True))
    watched = [images, *(v.value for v in target.trainable_variables)]
    assert all(gradient is None for gradient in tape.gradient(loss, watched))


def test_the_cosine_rises_to_one():
    encoder, head = networks()
    target = momentum.MomentumNetwork([head], 0.996, "cosine", total_steps=100)
    for step in (0, 1, 50, 99, 100, 1000):
        share = (math.cos(math.pi * min(step / 100, 1)) + 1) / 2
        expected = 1 - (1 - 0.996) * share
        np.testing.assert_allclose(target.decay_at(step), expected, atol=1e-7)
    assert float(target.decay_at(0)) == pytest.approx(0.996)
    assert float(target.decay_at(100)) == 1.0
    constant = momentum.MomentumNetwork([head], 0.996)
    assert float(constant.decay_at(10**6)) == pytest.approx(0.996)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_a_decay_out_of_range_is_an_error(decay):
    with pytest.raises(ValueError, match="from 0 to 1, got"):
        momentum.MomentumNetwork([networks()[1]], decay)
