"""Learning rates at the end points of a schedule, and the scaling rules."""

import json

import keras
import numpy as np
import pytest
import references
import tensorflow as tf

from tfsimclr.optimizers import schedules

pytestmark = pytest.mark.quick

DECAYS = ["constant", "cosine"]


def values(schedule, steps):
    return np.array([float(schedule(step)) for step in steps])


@pytest.mark.promise("schedules")
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("total,warmup", [(1, 0), (10, 0), (10, 1), (10, 4), (10, 9)])
def test_every_step_matches_a_slow_version(decay, total, warmup):
    schedule = schedules.Schedule(0.3, total, warmup_steps=warmup, decay=decay)
    steps = range(total + 4)
    slow = [references.learning_rate(t, 0.3, total, warmup, decay) for t in steps]
    np.testing.assert_allclose(values(schedule, steps), slow, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("decay", DECAYS)
def test_warm_up_starts_above_zero_and_ends_at_the_peak(decay):
    schedule = schedules.Schedule(2.0, 100, warmup_steps=10, decay=decay)
    np.testing.assert_allclose(
        values(schedule, range(10)), np.arange(1, 11) * 0.2, rtol=1e-6
    )
    np.testing.assert_allclose(float(schedule(10)), 2.0, rtol=1e-6)


@pytest.mark.parametrize("decay", DECAYS)
def test_without_warm_up_the_first_step_is_the_peak(decay):
    schedule = schedules.Schedule(2.0, 100, decay=decay)
    np.testing.assert_allclose(float(schedule(0)), 2.0, rtol=1e-6)


def test_constant_is_the_default_and_stays():
    schedule = schedules.Schedule(0.85, 100, warmup_steps=5)
    steps = [4, 5, 50, 99, 100, 101, 10_000]
    np.testing.assert_allclose(values(schedule, steps), np.full(7, 0.85), rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("total", [100, 1000, 31_240])
def test_cosine_ends_above_zero_and_is_zero_from_the_end_on(total, warmup):
    schedule = schedules.Schedule(0.85, total, warmup_steps=warmup, decay="cosine")
    middle = warmup + (total - warmup) // 2
    np.testing.assert_allclose(float(schedule(middle)), 0.425, rtol=1e-5)
    slow = references.learning_rate(total - 1, 0.85, total, warmup, "cosine")
    last = float(schedule(total - 1))
    assert last > 0  # a step at learning rate zero is a wasted step
    assert last == pytest.approx(slow, rel=0.05)
    np.testing.assert_array_equal(
        values(schedule, [total, total + 1, 2 * total, 10 * total]), np.zeros(4)
    )


def test_cosine_falls_at_every_step_after_the_warm_up():
    schedule = schedules.Schedule(1.0, 200, warmup_steps=20, decay="cosine")
    assert (np.diff(values(schedule, range(20))) > 0).all()
    assert (np.diff(values(schedule, range(20, 201))) < 0).all()


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_schedule_takes_a_tensor_step_in_a_function(decay, dtype, jit_compile):
    schedule = schedules.Schedule(0.5, 10, warmup_steps=3, decay=decay)
    compiled = tf.function(schedule, jit_compile=jit_compile)
    for step in (0, 2, 3, 9, 10, 12):
        fast = compiled(tf.constant(step, dtype))
        assert fast.dtype == tf.float32
        assert fast.shape == ()
        slow = references.learning_rate(step, 0.5, 10, 3, decay)
        np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("decay", DECAYS)
def test_optimizer_follows_the_schedule(decay):
    optimizer = keras.optimizers.SGD(
        schedules.Schedule(0.5, 4, warmup_steps=2, decay=decay)
    )
    weight = keras.Variable([1.0])
    expected = 1.0
    for step in range(6):
        slow = references.learning_rate(step, 0.5, 4, 2, decay)
        np.testing.assert_allclose(
            float(optimizer.learning_rate), slow, rtol=1e-5, atol=1e-7
        )
        optimizer.apply([tf.constant([1.0])], [weight])
        expected -= slow
        np.testing.assert_allclose(weight.numpy(), [expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", DECAYS)
def test_schedule_survives_serialisation(decay):
    schedule = schedules.Schedule(0.3, 20, warmup_steps=5, decay=decay)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    restored = keras.saving.deserialize_keras_object(config)
    assert isinstance(restored, schedules.Schedule)
    assert restored.get_config() == schedule.get_config()
    assert schedules.Schedule(**schedule.get_config()).get_config() == (
        schedule.get_config()
    )
    np.testing.assert_array_equal(
        values(restored, range(25)), values(schedule, range(25))
    )


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("total,warmup", [(10, 10), (10, 11), (1, 1), (10, -1)])
def test_warm_up_must_leave_steps(decay, total, warmup):
    with pytest.raises(ValueError, match=f"warmup_steps.*{warmup}"):
        schedules.Schedule(0.3, total, warmup_steps=warmup, decay=decay)


@pytest.mark.parametrize("total", [0, -5])
def test_total_steps_must_be_positive(total):
    with pytest.raises(ValueError, match=f"total_steps.*{total}"):
        schedules.Schedule(0.3, total)


def test_unknown_decay_lists_the_choices():
    with pytest.raises(ValueError, match="decay.*linear_to_nowhere") as error:
        schedules.Schedule(0.3, 10, decay="linear_to_nowhere")
    for choice in DECAYS:
        assert choice in str(error.value)


@pytest.mark.promise("schedules")
@pytest.mark.parametrize(
    "base,batch_size,rule,expected",
    [
        (0.3, 128, "none", 0.3),
        (0.3, 128, "linear", 0.15),
        (0.3, 256, "linear", 0.3),
        (0.3, 4096, "linear", 4.8),
        (0.075, 128, "sqrt", 0.8485),
        (0.075, 256, "sqrt", 1.2),
        (0.075, 1, "sqrt", 0.075),
    ],
)
def test_scaling_rules(base, batch_size, rule, expected):
    scaled = schedules.scaled_learning_rate(base, batch_size, rule)
    assert scaled == pytest.approx(expected, rel=1e-4)


def test_unknown_scaling_rule_lists_the_choices():
    with pytest.raises(ValueError, match="cubic") as error:
        schedules.scaled_learning_rate(0.3, 128, "cubic")
    for choice in ("none", "linear", "sqrt"):
        assert choice in str(error.value)
