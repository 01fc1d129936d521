"""N replicas of b images train as one device does with N b images."""

import dataclasses

import keras
import numpy as np
import pytest
from method_rows import ROWS

from tfsimclr import build
from tfsimclr.distribution import replicas, strategies
from tfsimclr.errors import UserError
from tfsimclr.modes import pretrain
from tfsimclr.networks import norms
from tfsimclr.runs import folder as run_folder
from tfsimclr.training import checkpoints, fit, recorder

STEPS = 5
BATCH = 16
# Those whose steps differ in what the replicas exchange.
EVERY_KIND = ("simclr", "moco")


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
            "learning_rate": 0.003,  # at larger ones rounding grows from step to step
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


@pytest.mark.slow
def test_small_batches_in_a_device_are_those_of_one_device(smooth):
    config, images = smooth("byol", microbatch_size=4)
    assert_equal_runs(train(config, images, 1), train(config, images, 2))


@pytest.mark.slow
def test_separate_batch_norm_is_that_of_micro_batches(smooth):
    """Batch norm of each of two devices: as in two micro-batches on one."""
    config, images = smooth("simclr")
    separate = dataclasses.replace(config, sync_batch_norm=False)
    in_pieces = dataclasses.replace(config, microbatch_size=BATCH // 2)
    assert_equal_runs(train(in_pieces, images, 1), train(separate, images, 2))


def test_a_float16_step_that_overflows_is_skipped_on_all_devices(smooth):
    config, images = smooth("simclr", precision="mixed_float16")
    strategy = mirrored(2)
    with strategy.scope():
        model = build.method(config, 10, len(images))
        model.compile(optimizer=keras.optimizers.SGD(0.01))
        model.optimizer.build(model.learned_variables)
        model.optimizer.dynamic_scale.assign(2.0**40)
    before = [replicas.local_value(v) for v in model.learned_variables]
    record = Record()
    model.fit(
        fit.training_batches(strategy, images, BATCH, 0, 0, 2),
        steps_per_epoch=2,
        shuffle=False,
        verbose=0,
        callbacks=[record],
    )
    assert [step["skipped_steps"] for step in record.steps] == [1, 2]
    for variable, value in zip(model.learned_variables, before, strict=True):
        for copy in strategy.experimental_local_results(variable.value):
            np.testing.assert_array_equal(copy, value)
    scale = model.optimizer.dynamic_scale.value
    for copy in strategy.experimental_local_results(scale):
        assert float(copy) == 2.0**38


@pytest.fixture
def on_devices(monkeypatch):
    """Returns a function that makes all trainings from there on run on n devices."""

    def use(count):
        strategy = mirrored(count)
        monkeypatch.setattr(strategies, "make", lambda name: strategy)

    return use


def pretrain_until(config, dataset, folder, step, monkeypatch):
    """Trains a run until a step, at which it is interrupted and saves."""
    on_batch_end = recorder.Recorder.on_train_batch_end

    def interrupting(self, batch, logs=None):
        self.interrupted = int(replicas.local_value(self.model.step)) == step
        on_batch_end(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "on_train_batch_end", interrupting)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(config, dataset, folder)
    assert checkpoints.load_latest(folder / "checkpoints")[1]["step"] == step


def test_a_run_goes_on_with_another_number_of_devices(
    smooth, tiny, on_devices, tmp_path, monkeypatch
):
    """One device, then two, then one: weights, history and validation of one device."""
    folders = [tmp_path / "whole", tmp_path / "elastic"]
    made = [smooth("simclr", val_share=0.2, workdir=str(path))[0] for path in folders]
    config = made[0]
    dataset = build.dataset(config)
    for each in made:
        run_folder.prepare(each)
    on_devices(1)
    pretrain.pretrain(config, dataset, folders[0])
    pretrain_until(made[1], dataset, folders[1], 2, monkeypatch)
    on_devices(2)
    pretrain_until(made[1], dataset, folders[1], 6, monkeypatch)
    flags = (folders[1] / "flags.txt").read_text()
    on_devices(1)
    pretrain.pretrain(made[1], dataset, folders[1])
    (whole, meta), (elastic, other) = (
        checkpoints.load_latest(folder / "checkpoints") for folder in folders
    )
    assert (folders[1] / "flags.txt").read_text() == flags
    assert whole.keys() == elastic.keys()
    assert meta["config"] == other["config"] and meta["step"] == other["step"] == 8
    for key in whole.keys() - {"names_json"}:
        np.testing.assert_allclose(elastic[key], whole[key], atol=1e-5, err_msg=key)
    np.testing.assert_array_equal(elastic["names_json"], whole["names_json"])
    for row, other_row in zip(meta["rows"], other["rows"], strict=True):
        assert row.keys() == other_row.keys() and "val_loss" in row
        for name in row.keys() - {"images_per_second"}:
            assert other_row[name] == pytest.approx(row[name], rel=1e-4, abs=1e-5)


def test_a_model_of_several_devices_is_saved_and_loaded(smooth, tmp_path):
    config, images = smooth("simclr")
    with mirrored(2).scope():
        model = build.method(config)
    model.compile()
    with pytest.raises(UserError, match="need whole batches on every device"):
        model.evaluate(images)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert checkpoints.hash_weights(loaded) == checkpoints.hash_weights(model)
    one, other = (m.features(images[:8])["z"] for m in (model, loaded))
    np.testing.assert_array_equal(one, other)
