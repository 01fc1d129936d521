"""Numbers that go wrong: where the run stops, what it says, what it keeps."""

import dataclasses
import math
import pathlib
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsimclr import build, run
from tfsimclr.data import dataset as datasets
from tfsimclr.losses import multi_view
from tfsimclr.modes import pretrain
from tfsimclr.runs import folder as run_folder
from tfsimclr.training import checkpoints, safeguards
from tfsimclr.training.history import COLUMNS

pytestmark = pytest.mark.usefixtures("shallow_module")
HEALTHY = {"feature_std": 0.4, "effective_rank": 20.0, "z_std": 0.5}


@pytest.fixture
def poison(monkeypatch):
    """Returns a function: the gradient is multiplied by `factor` at some steps.

    The loss stays as it is. `bad(step)` is given the steps done before, a tensor.
    """

    def at(bad, factor=np.inf):
        made = []
        original, method = multi_view.nt_xent, build.method

        @tf.custom_gradient
        def poisoned(loss):
            factors = tf.where(bad(made[-1].step), factor, 1.0)
            return tf.identity(loss), lambda upstream: upstream * factors

        def spy(*arguments, **options):
            made.append(method(*arguments, **options))
            return made[-1]

        monkeypatch.setattr(pretrain.build, "method", spy)
        monkeypatch.setattr(
            multi_view, "nt_xent", lambda *z, **o: poisoned(original(*z, **o))
        )

    return at


@pytest.mark.promise("not-finite")
@pytest.mark.parametrize(
    ("precision", "factor"), [("float32", np.inf), ("mixed_bfloat16", np.nan)]
)
def test_a_gradient_that_is_not_finite_stops_the_run(
    tiny, monkeypatch, poison, precision, factor
):
    """One line: step, learning rate, gradient norm, last checkpoint, what to do."""
    config, dataset, folder = tiny(precision=precision, learning_rate=0.0123)
    run_folder.prepare(config)
    poison(lambda step: step >= 6, factor)
    monkeypatch.setattr(run.configs, "from_flags", lambda: config)
    monkeypatch.setattr(
        run, "run", lambda *_: pretrain.pretrain(config, dataset, folder)
    )
    with pytest.raises(SystemExit) as stop:
        run._main(["program"])
    message = stop.value.code
    assert message.startswith("tfsimclr: The gradient is not finite at step 7 ")
    assert "\n" not in message
    for part in ("learning rate 0.0123", "gradient norm", "--precision=float32"):
        assert part in message
    (saved,) = (folder / "checkpoints").glob("step-*.npz")
    assert str(saved) in message and "step-000000005" in saved.name
    arrays, meta = checkpoints.load_latest(folder / "checkpoints")
    assert meta["step"] == 5 and len(meta["rows"]) == 1
    assert all(np.isfinite(array).all() for array in arrays.values())


def stop_message(tiny, poison, bad, factor=np.inf, **settings):
    """Returns the message of a run whose gradient is bad, and its checkpoints."""
    config, dataset, folder = tiny(**settings)
    run_folder.prepare(config)
    poison(bad, factor)
    with pytest.raises(FloatingPointError) as stop:
        pretrain.pretrain(config, dataset, folder)
    names = sorted(path.name[:14] for path in folder.glob("checkpoints/step-*.npz"))
    return str(stop.value), names


@pytest.mark.promise("not-finite")
def test_a_bad_step_between_two_checks_is_named_and_not_saved(tiny, poison):
    """The message has the learning rate of step 7: 0.3 * 7 / 12."""
    message, saved = stop_message(
        tiny,
        poison,
        lambda step: step == 6,
        steps_per_check=4,
        epochs=3,
        optimizer="lars",
        warmup_epochs=2.5,
        checkpoint_minutes=1e-9,  # after every step
    )
    assert "gradient is not finite at step 7 (learning rate 0.175, " in message
    assert saved == ["step-000000005", "step-000000006"]


@pytest.mark.promise("float16-skips")
def test_a_collapse_of_the_loss_scale_between_two_checks_is_told_exactly(tiny, poison):
    """The first step is fine; the 51st skip is step 52, 12 steps before the read."""
    message, _ = stop_message(
        tiny,
        poison,
        lambda step: step > 0,
        precision="mixed_float16",
        steps_per_check=64,
        batch_size=2,
        epochs=2,
    )
    assert "gradient of 51 steps in a row is not finite at step 52 (" in message
    assert f"learning rate 0.0003, loss scale {2.0**15 / 2.0**51:g}, " in message


@pytest.mark.promise("float16-skips")
def test_float16_skips_are_counted_and_shown_and_no_alarm(tiny, poison, capsys):
    config, dataset, folder = tiny(precision="mixed_float16")
    run_folder.prepare(config)
    poison(lambda step: (step == 1) | (step == 2) | (step == 8))
    pretrain.pretrain(config, dataset, folder)
    _, meta = checkpoints.load_latest(folder / "checkpoints")
    assert [row["skipped_steps"] for row in meta["rows"]] == [2, 1]
    assert [row["loss_scale"] for row in meta["rows"]] == [2.0**13, 2.0**12]
    assert all(math.isfinite(v) for row in meta["rows"] for v in row.values())
    header = (folder / "history.csv").read_text().splitlines()[0].split(",")
    assert {"loss_scale", "skipped_steps"} <= set(header)
    assert "Warning" not in capsys.readouterr().err


class Model:
    """What `TerminateOnNonFinite` looks at, and nothing to compute."""

    def __init__(self, precision):
        self.dtype_policy = types.SimpleNamespace(name=precision)
        self.step = keras.Variable(0)
        self.optimizer = keras.optimizers.SGD(0.1)
        self.optimizer.build([keras.Variable(1.0)])
        names = ("skipped_steps", "gradient_norm")
        self.metric_trackers = {name: keras.metrics.Sum(name) for name in names}


def watched(precision, folder=pathlib.Path("nowhere"), **settings):
    guard = safeguards.TerminateOnNonFinite(folder, lambda step: 0.1, **settings)
    guard.set_model(Model(precision))
    return guard


def step(guard, batch, skipped=0, loss=1.0):
    guard.on_train_batch_begin(batch)
    guard.model.metric_trackers["skipped_steps"].update_state(skipped)
    total = float(guard.model.metric_trackers["skipped_steps"].result())
    logs = {"loss": loss, "skipped_steps": total, "gradient_norm": 0.5}
    guard.model.step.assign_add(1)
    guard.on_train_batch_end(batch, logs)


@pytest.mark.promise("float16-skips")
def test_skips_in_a_row_are_counted_over_the_end_of_an_epoch():
    guard = watched("mixed_float16")
    most = safeguards.MAX_CONSECUTIVE_SKIPS
    with pytest.raises(FloatingPointError, match=f"{most + 1} steps in a row"):
        for number in range(most + 1):
            if number % 20 == 0:
                guard.model.metric_trackers["skipped_steps"].reset_state()
                guard.on_epoch_begin(number // 20)
            assert guard.skips_in_a_row == number
            step(guard, number % 20, skipped=1)


def test_a_step_that_counts_ends_the_row():
    guard = watched("mixed_float16")
    guard.on_epoch_begin(0)
    for number in range(4 * safeguards.MAX_CONSECUTIVE_SKIPS):
        step(guard, number, skipped=number % 5 != 0)
    assert guard.skips_in_a_row == 4


@pytest.mark.promise("float16-skips")
def test_skips_of_before_a_resumption_are_not_counted_again():
    # `fit` calls on_epoch_begin of this callback, then of the journal, which restores.
    guard = watched("mixed_float16")
    guard.on_epoch_begin(0)
    guard.model.metric_trackers["skipped_steps"].update_state(3)
    step(guard, 0)
    assert guard.skips_in_a_row == 0
    step(guard, 1, skipped=1)
    assert guard.skips_in_a_row == 1


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops_at_once(precision, loss):
    guard = watched(precision)
    guard.on_epoch_begin(0)
    step(guard, 0)
    with pytest.raises(FloatingPointError, match="loss is not finite.*none yet"):
        step(guard, 1, loss=loss)


class OnDevice:
    """A number that the host may not read before its time."""

    readable = False

    def __init__(self, value):
        self.value = value

    def __float__(self):
        assert OnDevice.readable, "the host has waited for a step"
        return self.value


def test_the_host_reads_nothing_between_two_checks(monkeypatch):
    guard = watched("float32", steps_per_check=3)
    bar = keras.callbacks.ProgbarLogger()
    shown = []
    monkeypatch.setattr(bar, "on_train_batch_end", lambda _, logs: shown.append(logs))
    callbacks = safeguards.StepCallbacks([guard, bar], 3)
    guard.on_epoch_begin(0)
    logs = {"loss": 1.0, "skipped_steps": 0.0, "gradient_norm": 0.5}
    for batch in range(7):
        monkeypatch.setattr(OnDevice, "readable", batch % 3 == 2)
        guard.on_train_batch_begin(batch)
        guard.model.step.assign_add(1)
        tensors = {name: OnDevice(value) for name, value in logs.items()}
        callbacks.on_train_batch_end(batch, tensors)
    assert shown == [logs, logs]
    monkeypatch.setattr(OnDevice, "readable", True)
    guard.model.step.assign_add(1)
    bad = {**logs, "loss": OnDevice(np.nan)}
    callbacks.on_train_batch_end(7, bad)
    with pytest.raises(FloatingPointError, match="loss is not finite at step 8 "):
        guard.on_epoch_end(0)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_without_a_loss_scale_the_first_skip_stops(precision):
    guard = watched(precision)
    guard.on_epoch_begin(0)
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        step(guard, 0, skipped=1)


@pytest.mark.promise("collapse")
@pytest.mark.parametrize(
    "sick",
    [
        {"feature_std": 0.04},
        {"feature_std": 0.0},
        {"effective_rank": 1.4},
        {"feature_std": math.nan},
        {"effective_rank": math.nan},
        {"z_std": 0.04},
        {"z_std": math.nan},
    ],
)
def test_a_collapse_is_told_once_on_stderr(capsys, sick):
    guard = safeguards.CollapseWarning()
    guard.on_epoch_end(0, HEALTHY)
    assert capsys.readouterr() == ("", "")
    guard.on_epoch_end(1, {**HEALTHY, **sick})
    output = capsys.readouterr()
    layer = "z" if "z_std" in sick else "h"
    assert output.out == ""
    assert f"the features {layer} have collapsed after epoch 2" in output.err
    assert "--learning_rate" in output.err
    guard.on_epoch_end(2, {**HEALTHY, **sick})
    assert capsys.readouterr() == ("", "")


def test_logits_that_start_at_zero_are_no_collapse(capsys):
    guard = safeguards.CollapseWarning(check_z=False)
    guard.on_epoch_end(0, {**HEALTHY, "z_std": 0.0})
    assert capsys.readouterr() == ("", "")
    guard.on_epoch_end(1, {**HEALTHY, "feature_std": 0.0})  # of h it still warns
    assert "the features h have collapsed" in capsys.readouterr().err


@pytest.mark.promise("collapse")
def test_the_alarm_rings_in_a_run_whose_features_are_all_alike(tiny, capsys):
    config, dataset, folder = tiny(jitter_strength=0.0, grayscale=0.0)
    run_folder.prepare(config)
    gray = np.full_like(dataset.unlabeled.images, 99)
    split = datasets.Split(gray, dataset.unlabeled.labels)
    dataset = dataclasses.replace(dataset, unlabeled=split)
    pretrain.pretrain(config, dataset, folder)
    error = capsys.readouterr().err
    assert error.count("the features h have collapsed") == 1
    _, meta = checkpoints.load_latest(folder / "checkpoints")
    assert len(meta["rows"]) == config.epochs  # warned, not stopped
    assert set(HEALTHY) <= set(COLUMNS)
