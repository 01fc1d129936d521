"""BYOL: the target, the predictor, and what holds it up."""

import keras
import numpy as np
import pytest
import references

from tfsimclr.methods import byol
from tfsimclr.networks import heads, resnet
from tfsimclr.views import random_view

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(30, 226, (16, 1, 1, 3))
IMAGES = (COLOURS + RANDOM.integers(-30, 30, (16, 16, 16, 3))).astype("uint8")


def head(name=None):
    return heads.ProjectionHead(2, 8, hidden_dim=16, batch_norm="hidden", name=name)


def small_model(**options):
    keras.utils.set_random_seed(1)
    encoder = resnet.resnet(10, 0.125, "medium")
    views = random_view.Views(16, jitter_strength=0.2)
    settings = {"predictor": head("predictor"), "ema_decay": 0.9}
    return byol.BYOL(encoder, head(), views, **{**settings, **options})


def step(model, rate=0.05, epochs=1):
    if not getattr(model, "optimizer", None):
        model.compile(optimizer=keras.optimizers.SGD(rate))
    options = {"batch_size": 16, "shuffle": False, "verbose": 0}
    return model.fit(IMAGES, epochs=epochs, **options).history


def values(variables):
    return [variable.numpy() for variable in variables]


def slow_loss(predictions, targets):
    total = 0.0
    for prediction, target in zip(predictions, targets, strict=True):
        rows = zip(
            references.unit_rows(prediction), references.unit_rows(target), strict=True
        )
        total += np.mean([2 - 2 * (p @ t) for p, t in rows])
    return total


@pytest.mark.promise("moco-byol")
def test_three_steps_against_numpy():
    """Both views both ways, and the target of each step from those before it."""
    model = small_model(ema_schedule="cosine", total_steps=10)
    average = values(model.average.trainable_variables)
    for number in range(3):
        views = model.two_views(IMAGES, number)
        predictions = [model.project(view)[0].p for view in views]
        targets = [model.average(view, training=True) for view in reversed(views)]
        slow = slow_loss(predictions, targets)
        logs = step(model)
        np.testing.assert_allclose(logs["loss"][0], slow, rtol=1e-4)
        decay = 1 - 0.1 * (np.cos(np.pi * number / 10) + 1) / 2
        online = values(model.learned_variables)[: len(average)]
        average = [
            decay * old + (1 - decay) * new
            for old, new in zip(average, online, strict=True)
        ]
        for variable, wanted in zip(
            model.average.trainable_variables, average, strict=True
        ):
            np.testing.assert_allclose(variable, wanted, atol=1e-5)


def test_what_must_move_moves_and_nothing_else():
    model = small_model()
    learned, twin = model.learned_variables, model.average.trainable_variables
    of_predictor = model.predictor.trainable_variables
    assert of_predictor and len(learned) == len(twin) + len(of_predictor)
    assert not {id(v) for v in learned} & {id(v) for v in twin}
    groups = [learned, twin, model.average.non_trainable_variables]
    before = [values(group) for group in groups]
    step(model)
    for group, old in zip(groups, before, strict=True):
        for variable, value in zip(group, old, strict=True):
            assert np.abs(variable.numpy() - value).max() > 0, variable.path


def test_a_fixed_target_never_moves():
    model = small_model(ema_decay=1.0)
    before = values(model.average.trainable_variables)
    step(model, epochs=3)
    for old, now in zip(before, values(model.average.trainable_variables), strict=True):
        np.testing.assert_array_equal(old, now)


def test_keras_file_brings_everything_back(tmp_path):
    model = small_model(ema_schedule="cosine", total_steps=50)
    step(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.ema_decay, loaded.total_steps) == (0.9, 50)
    assert loaded.average.schedule == "cosine"
    for each in (model, loaded):
        step(each)
    for one, other in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_predictor_must_fit():
    with pytest.raises(ValueError, match="dim=8, got dim=9"):
        small_model(predictor=heads.ProjectionHead(2, 9))
