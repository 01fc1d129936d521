"""N replicas of b images train as one device does with N b images."""

import keras
import numpy as np
import pytest
from method_rows import ROWS

from tfsimclr import build
from tfsimclr.distribution import strategies
from tfsimclr.networks import norms
from tfsimclr.training import checkpoints, fit

STEPS = 5
BATCH = 16
# Those whose steps differ in what the replicas exchange.
EVERY_KIND = ("simclr", "moco", "byol")


def smooth_encoder(config):
    """Returns a small encoder without kinks, in which rounding stays rounding."""
    layers = [keras.Input((None, None, 3))]
    for channels in (8, 12):
        layers += [
            keras.layers.Conv2D(channels, 3, strides=2, use_bias=False),
            norms.SplitBatchNormalization(momentum=0.9),
            keras.layers.Activation("tanh"),
        ]
    layers.append(keras.layers.GlobalAveragePooling2D(dtype="float32"))
    return keras.Sequential(layers)


@pytest.fixture
def smooth(tiny, monkeypatch):
    """Returns a function: row of a method and settings -> resolved config, images."""

    def make(name, **settings):
        monkeypatch.setattr(build, "encoder", smooth_encoder)
        chosen = {
            "proj_activation": "tanh",
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "weight_decay": 0.0,
            "batch_size": BATCH,
            **ROWS[name].settings,
            **settings,
        }
        config, dataset, _ = tiny(**chosen)
        return config, np.asarray(dataset.pretrain.images)

    return make


def mirrored(count):
    if count == 1:
        return None
    return strategies.mirrored([f"CPU:{i}" for i in range(count)])


class Record(keras.callbacks.Callback):
    """The logs of every step."""

    def __init__(self):
        super().__init__()
        self.steps: list[dict] = []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append({name: float(value) for name, value in logs.items()})


def train(config, images, count, steps=STEPS):
    """Returns the logs of the steps and the state after them."""
    keras.backend.clear_session()
    strategy = mirrored(count)
    with strategies.scope(strategy):
        schedule = build.schedule(config, len(images) // config.batch_size)
        model = build.method(config, 10, len(images))
        model.compile(
            optimizer=build.optimizer(config, schedule, model.learned_variables)
        )
        model.optimizer.build(model.learned_variables)
    index = np.arange(len(images)) if model.needs_index else None
    record = Record()
    model.fit(
        fit.training_batches(
            strategy, images, config.batch_size, config.seed, 0, steps, index
        ),
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
        callbacks=[record],
    )
    return record.steps, checkpoints.get_state(model)


def assert_equal_runs(one, other, atol=1e-5):
    (logs, state), (other_logs, other_state) = one, other
    for step, other_step in zip(logs, other_logs, strict=True):
        for name in step:
            np.testing.assert_allclose(
                other_step[name], step[name], rtol=1e-5, atol=atol, err_msg=name
            )
    assert state.keys() == other_state.keys()
    for key in state.keys() - {"names_json"}:
        np.testing.assert_allclose(
            other_state[key], state[key], rtol=1e-5, atol=atol, err_msg=key
        )


@pytest.mark.parametrize("name", EVERY_KIND)
def test_the_step_of_two_devices_is_that_of_one(smooth, name):
    config, images = smooth(name)
    assert_equal_runs(train(config, images, 1), train(config, images, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_the_step_of_four_devices_is_that_of_one(smooth, name):
    config, images = smooth(name)
    alone = train(config, images, 1)
    for count in (2, 4):
        assert_equal_runs(alone, train(config, images, count))
