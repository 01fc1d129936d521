"""A run: what it records, where it stops, how it goes on."""

import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from interruption import assert_same_checkpoints, stopped_at
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from tfsimclr import losses
from tfsimclr.evaluation import metrics
from tfsimclr.losses import multi_view
from tfsimclr.methods import base
from tfsimclr.modes import pretrain
from tfsimclr.runs import folder as run_folder
from tfsimclr.runs import loading
from tfsimclr.training import checkpoints, recorder, safeguards
from tfsimclr.training.history import COLUMNS

MEASURED_TIME = {"images_per_second"}


def history(folder):
    with open(folder / "history.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(tiny, **settings):
    config, dataset, folder = tiny(**settings)
    run_folder.prepare(config)
    pretrain.pretrain(config, dataset, folder)
    return config, dataset, folder


def untimed(rows):
    return [{k: v for k, v in row.items() if k not in MEASURED_TIME} for row in rows]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_history_holds_one_full_row_per_epoch(shallow, tiny, precision):
    _, _, folder = run(tiny, precision=precision)
    rows = history(folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["5", "10"]  # 80 images, batch 16
    assert tuple(rows[0]) == tuple(COLUMNS)
    for row in rows:
        numbers = {name: float(value) for name, value in row.items()}
        assert all(math.isfinite(value) for value in numbers.values()), numbers
        above = numbers["loss"] - losses.chance(16)
        assert abs(numbers["loss_above_chance"] - above) < 1e-3
        assert 0 <= numbers["contrastive_top1"] <= 1
        assert numbers["learning_rate"] == pytest.approx(3e-4)
        assert numbers["loss_scale"] == (1 if precision != "mixed_float16" else 2**15)
        assert numbers["effective_rank"] > 1
        assert numbers["feature_std"] > 0


def test_the_measures_are_those_of_the_trained_network(shallow, tiny, monkeypatch):
    call, eager = base.Method.call, []

    def watched(self, images, training=False):
        if not training:
            eager.append(tf.executing_eagerly())
        return call(self, images, training=training)

    with monkeypatch.context() as patch:
        patch.setattr(base.Method, "call", watched)
        config, dataset, folder = run(tiny)
    # Eagerly Keras holds all maps at once, which can be more than a step takes.
    assert eager and not any(eager)
    model, _ = loading.model(config, folder)
    view_a, view_b = model.two_views(dataset.pretrain.images[:256], 2**31 - 1)
    (h, *_, z_a), z_b = model(view_a, training=False), model(view_b, training=False)[-1]
    expected = {
        "alignment": metrics.alignment(z_a, z_b),
        "uniformity": metrics.uniformity(z_a),
        "feature_std": metrics.feature_std(h),
        "effective_rank": metrics.effective_rank(h),
        "z_std": metrics.feature_std(z_a),
        "z_effective_rank": metrics.effective_rank(z_a),
    }
    row = history(folder)[-1]
    found = {name: float(row[name]) for name in expected}
    assert found == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-3)


def test_learning_rate_of_history_is_that_of_the_last_update(shallow, tiny):
    _, _, folder = run(tiny, optimizer="lars", warmup_epochs=1.0)
    rates = [float(row["learning_rate"]) for row in history(folder)]
    peak = 0.075 * math.sqrt(16)
    last = peak * 0.5 * (1 + math.cos(math.pi * 4 / 5))
    np.testing.assert_allclose(rates, [peak, last], rtol=1e-5)


def test_tensorboard_holds_scalars_and_pairs(shallow, tiny):
    _, _, folder = run(tiny)
    events = event_accumulator.EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"tensors": 0}
    ).Reload()
    tags = set(events.Tags()["tensors"])
    assert tags == set(COLUMNS) - {"epoch", "step"} | {"augmented_pairs"}
    losses_seen = [tf.make_ndarray(e.tensor_proto) for e in events.Tensors("loss")]
    wanted = [float(row["loss"]) for row in history(folder)]
    np.testing.assert_allclose(losses_seen, wanted, rtol=1e-5)
    picture = tf.make_ndarray(events.Tensors("augmented_pairs")[0].tensor_proto)[2]
    assert tf.io.decode_png(picture).shape == (3 * 16, 8 * 16, 3)


@pytest.mark.promise("resume-state")
@pytest.mark.parametrize(
    ("settings", "stops"), [({}, (2, 5, 9)), ({"microbatch_size": 4}, (7,))]
)
def test_resume_between_epochs_and_in_the_middle_gives_the_same_run(
    shallow, tiny, tmp_path, settings, stops
):
    """Trap 31: weights, slots, schedule, data position, seed and accumulators."""
    settings = {**settings, "optimizer": "lars", "epochs": 3, "deterministic": True}
    config, dataset, folder = tiny(**settings)
    tf.config.experimental.enable_op_determinism()
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    pretrain.pretrain(config, dataset, undisturbed)

    run_folder.prepare(config)
    for step in stops:
        with stopped_at(step):
            pretrain.pretrain(config, dataset, folder)
    pretrain.pretrain(config, dataset, folder)
    assert_same_checkpoints(folder, undisturbed)
    assert untimed(history(folder)) == untimed(history(undisturbed))


@pytest.mark.promise("resume-signal")
def test_a_signal_between_two_checks_saves_that_step_and_the_run_is_the_same(
    tiny, tmp_path, monkeypatch
):
    """Whether the host reads every step or every eighth: same history and weights."""
    config, dataset, folder = tiny(epochs=2, deterministic=True)
    tf.config.experimental.enable_op_determinism()
    every_step = tmp_path / "every_step"
    every_step.mkdir()
    assert config.steps_per_check == 1
    pretrain.pretrain(config, dataset, every_step)

    run_folder.prepare(config)
    eighth = dataclasses.replace(config, steps_per_check=8)
    original = recorder.Recorder.on_train_batch_begin

    def signalled(self, batch, logs=None):
        if int(self.model.step) == 7:  # so during the eighth
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "on_train_batch_begin", signalled)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(eighth, dataset, folder)
    assert checkpoints.load_latest(folder / "checkpoints")[1]["step"] == 8
    pretrain.pretrain(eighth, dataset, folder)
    assert_same_checkpoints(folder, every_step)
    assert untimed(history(folder)) == untimed(history(every_step))


@pytest.mark.promise("not-finite")
def test_a_signal_after_a_bad_step_saves_nothing(tiny, monkeypatch):
    config, dataset, folder = tiny(steps_per_check=8)
    run_folder.prepare(config)
    original = safeguards.TerminateOnNonFinite.on_train_batch_end

    def signalled(self, batch, logs=None):
        step = int(self.model.step)
        if step == 6:
            logs = {**logs, "loss": np.nan}
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, batch, logs)

    monkeypatch.setattr(
        safeguards.TerminateOnNonFinite, "on_train_batch_end", signalled
    )
    with pytest.raises(FloatingPointError, match="loss is not finite at step 6 "):
        pretrain.pretrain(config, dataset, folder)
    assert checkpoints.load_latest(folder / "checkpoints")[1]["step"] == 5


@pytest.mark.promise("resume-finished")
def test_a_finished_run_is_left_as_it_is(tiny):
    config, dataset, folder = run(tiny)
    before = (folder / "history.csv").read_bytes()
    pretrain.pretrain(config, dataset, folder)
    assert (folder / "history.csv").read_bytes() == before


@pytest.mark.promise("not-finite")
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tiny, monkeypatch, precision
):
    config, dataset, folder = tiny(precision=precision, learning_rate=1.0)
    original = multi_view.nt_xent

    def breaks_in_epoch_two(*arguments, **options):
        loss = original(*arguments, **options)
        return loss + tf.where(breaks_in_epoch_two.model.step >= 7, np.nan, 0.0)

    method = pretrain.build.method

    def spy(*arguments, **options):
        breaks_in_epoch_two.model = method(*arguments, **options)
        return breaks_in_epoch_two.model

    monkeypatch.setattr(pretrain.build, "method", spy)
    monkeypatch.setattr(multi_view, "nt_xent", breaks_in_epoch_two)
    with pytest.raises(FloatingPointError) as caught:
        pretrain.pretrain(config, dataset, folder)
    message = str(caught.value)
    assert "not finite at step 8" in message
    assert "step-000000005-" in message
    assert "--learning_rate" in message
    arrays, meta = checkpoints.load_latest(folder / "checkpoints")
    assert meta["step"] == 5
    assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.promise("float16-skips")
def test_endless_float16_skips_stop_the_run(tiny, monkeypatch):
    config, dataset, folder = tiny(precision="mixed_float16", epochs=20)
    original = multi_view.nt_xent

    @tf.custom_gradient
    def poisoned(loss):
        return loss, lambda upstream: upstream * np.inf

    poison = lambda *z, **o: poisoned(original(*z, **o))  # noqa: E731
    monkeypatch.setattr(multi_view, "nt_xent", poison)
    with pytest.raises(FloatingPointError, match="51 steps in a row"):
        pretrain.pretrain(config, dataset, folder)


def command(folder, images, *more):
    return [
        sys.executable,
        *("-m", "tfsimclr.run", "--dataset=folder", f"--data_dir={images}"),
        f"--cache_dir={folder / 'cache'}",
        f"--workdir={folder / 'run'}",
        *"--backbone=resnet10 --width=0.125 --image_size=16 --stem=medium".split(),
        *"--batch_size=8 --epochs=3 --probe_epochs=2 --optimizer=lars".split(),
        *"--deterministic --checkpoint_minutes=0.0001".split(),
        *more,
    ]


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(40):
            pixels = random.integers(0, 256, (16, 16, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.promise("resume-signal")
def test_killed_and_continued_from_the_command_line(tmp_path, images):
    """SIGTERM says how to go on; SIGKILL loses nothing; the result is the same."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = subprocess.run(command(whole, images), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def start_and(number):
        process = subprocess.Popen(
            command(broken, images), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        saved = broken / "run" / "checkpoints"
        first = {p.name for p in saved.glob("step-*.npz")} if saved.exists() else set()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            now = {p.name for p in saved.glob("step-*.npz")} if saved.exists() else {}
            if set(now) - first:
                break
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=120)
        return process.returncode, stderr.decode()

    code, stderr = start_and(signal.SIGTERM)
    assert code == 1
    assert "The same command goes on from here" in stderr
    assert "Traceback" not in stderr
    code, _ = start_and(signal.SIGKILL)
    assert code in (-signal.SIGKILL, 0)
    done = subprocess.run(command(broken, images), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert untimed(history(broken / "run")) == untimed(history(whole / "run"))
    results = [
        json.loads((folder / "run" / "result.json").read_text())
        for folder in (whole, broken)
    ]
    assert results[0]["features"] == results[1]["features"]
    assert results[0]["features"].keys() >= {"pixels", "random_h", "h", "z"}
    assert os.path.exists(broken / "run" / "saved_model" / "saved_model.pb")
