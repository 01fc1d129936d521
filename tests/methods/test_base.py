"""The one training step: precision, randomness, saving."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsimclr import losses
from tfsimclr.methods import simclr
from tfsimclr.networks import heads, resnet
from tfsimclr.optimizers import lars
from tfsimclr.views import random_view

pytestmark = pytest.mark.usefixtures("shallow_module")
RANDOM = np.random.default_rng(0)
# Each image has a colour of its own, so that a few steps can learn to tell them apart.
COLOURS = RANDOM.integers(30, 226, (32, 1, 1, 3))
IMAGES = (COLOURS + RANDOM.integers(-30, 30, (32, 16, 16, 3))).astype("uint8")


def small_model(seed=0, **head):
    keras.utils.set_random_seed(1)
    encoder = resnet.resnet(depth=10, width=0.125, stem="medium")
    head = heads.ProjectionHead(num_layers=2, dim=8, **head)
    return simclr.SimCLR(
        encoder,
        head,
        random_view.Views(16, jitter_strength=0.2),
        temperature=0.5,
        seed=seed,
    )


def weights(model):
    return [variable.numpy() for variable in model.trainable_variables]


def train(model, steps, jit_compile=False, rate=0.05, optimizer=None, epochs=1):
    model.compile(
        optimizer=optimizer or keras.optimizers.SGD(rate), jit_compile=jit_compile
    )
    data = tf.data.Dataset.from_tensors(IMAGES).repeat(steps * epochs)
    return model.fit(
        data, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=0
    ).history


def test_step_is_gradient_descent_on_nt_xent_of_the_two_views():
    """The step against its definition, written out: no loss scale, no twist."""
    # In float64: float32's rounding puts an activation on the other side of a ReLU.
    keras.config.set_dtype_policy("float64")
    model, twin = small_model(), small_model()
    train(model, 1)
    view_a, view_b = twin.two_views(IMAGES, 0)
    with tf.GradientTape() as tape:
        z = twin(tf.concat([view_a, view_b], 0), training=True)[-1]
        loss = losses.nt_xent(z[:32], z[32:], 0.5)
    gradients = tape.gradient(loss, twin.trainable_variables)
    for after, before, gradient in zip(
        weights(model), weights(twin), gradients, strict=True
    ):
        np.testing.assert_allclose(after, before - 0.05 * gradient, atol=2e-6)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_precisions_reach_the_float32_loss(precision, jit_compile):
    # Of the first step: after it, one activation on the other side of a ReLU is enough
    # for two runs of whatever precision to part.
    exact = train(small_model(), 1)["loss"][0]
    keras.config.set_dtype_policy(precision)
    rounded = small_model()
    assert rounded.encoder.compute_dtype == precision.removeprefix("mixed_")
    optimizer = keras.optimizers.SGD(0.05)
    if precision == "mixed_float16":
        # The default scale of 2^15 would skip the first steps of so short a run.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    first = train(rounded, 1, jit_compile, optimizer=optimizer)
    assert abs(first["loss"][0] - exact) < 0.01
    data = tf.data.Dataset.from_tensors(IMAGES).repeat(24)
    history = rounded.fit(data, epochs=2, steps_per_epoch=12, verbose=0).history
    assert history["skipped_steps"] == [0, 0]
    # It learns in this precision.
    assert history["loss"][1] < history["loss"][0] - 0.01


def test_float16_moves_biases_as_float32_does():
    """A forgotten loss scale makes updates 2^15 too small; LARS half hides it."""
    before = weights(small_model())
    exact = small_model()
    train(exact, 1, rate=1.0)
    keras.config.set_dtype_policy("mixed_float16")
    model = small_model()
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(1.0), initial_scale=64.0
    )
    train(model, 1, optimizer=optimizer)
    for old, wanted, got in zip(before, weights(exact), weights(model), strict=True):
        step, expected = np.linalg.norm(got - old), np.linalg.norm(wanted - old)
        np.testing.assert_allclose(step, expected, rtol=0.25, atol=1e-3)


def test_float16_steps_that_overflow_are_counted_and_leave_the_weights():
    keras.config.set_dtype_policy("mixed_float16")
    model = small_model()
    before = weights(model)
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=2.0**40
    )
    history = train(model, 1, optimizer=optimizer)
    assert history["skipped_steps"][0] == 1
    assert int(model.step) == 1  # batches seen, not updates applied
    for old, now in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(old, now)


def test_jit_compile_gives_the_same_losses():
    # In float64, or activations on the other side of a ReLU part them in two steps.
    keras.config.set_dtype_policy("float64")
    plain, compiled = (
        train(small_model(), 1, epochs=5, jit_compile=jit_compile)["loss"]
        for jit_compile in (False, True)
    )
    np.testing.assert_allclose(compiled, plain, rtol=1e-5)


@pytest.mark.promise("views")
def test_views_depend_on_seed_and_step_only():
    model, twin, other = small_model(), small_model(), small_model(seed=1)
    first = model.two_views(IMAGES, 3)
    np.testing.assert_array_equal(first[0], twin.two_views(IMAGES, 3)[0])
    pairs = [first, model.two_views(IMAGES, 4), other.two_views(IMAGES, 3)]
    views = [view for pair in pairs for view in pair]
    for i, view in enumerate(views):
        for another in views[:i]:
            assert np.abs(view - another).mean() > 0.01


def test_batch_norm_sees_both_views_together():
    model = small_model()
    seen = []
    call = model.encoder.call
    model.encoder.call = lambda x, **options: (
        seen.append(x.shape[0]) or call(x, **options)
    )
    model.objective(*model.two_views(IMAGES, 0))
    assert seen == [64]


def test_everything_learned_moves():
    model = small_model(batch_norm=True)
    before = weights(model)
    train(model, 2, optimizer=lars.LARS(0.5))
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.abs(variable.numpy() - old).max() > 0, variable.path


def test_features_are_those_of_the_plain_images_and_change_nothing():
    model = small_model()
    before = [variable.numpy() for variable in model.variables]
    features = model.features(IMAGES, batch_size=5)
    assert list(features) == ["h", "head_1", "z"]
    layers = model(IMAGES.astype("float32") / 255, training=False)
    for (name, got), wanted in zip(features.items(), layers, strict=True):
        assert got.dtype == np.float32, name
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_features_of_no_images_is_an_error():
    with pytest.raises(ValueError, match="at least one image"):
        small_model().features(IMAGES[:0])


@pytest.mark.parametrize("shuffled", [False, True])
def test_model_survives_saving_and_goes_on(tmp_path, shuffled):
    model = small_model()
    model.compile(optimizer=lars.LARS(0.5))
    model.fit(IMAGES, batch_size=16, epochs=1, shuffle=shuffled, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.temperature == 0.5
    assert int(loaded.step) == 2
    assert loaded.get_config()["views"] == model.get_config()["views"]
    np.testing.assert_allclose(
        loaded.features(IMAGES)["z"], model.features(IMAGES)["z"], atol=1e-6
    )
    for each in (model, loaded):
        each.fit(IMAGES, batch_size=16, epochs=1, shuffle=False, verbose=0)
    for ours, theirs in zip(weights(model), weights(loaded), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_bad_temperature_is_refused_when_the_model_is_made():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        simclr.SimCLR(
            resnet.resnet(10, 0.125), heads.ProjectionHead(), random_view.Views(16), 0.0
        )
