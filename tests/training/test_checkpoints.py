"""Checkpoints: whole or not there, newest first, and everything comes back."""

import contextlib
import errno
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from interruption import assert_same_arrays

from tfsimclr import files
from tfsimclr.training import checkpoints

pytestmark = pytest.mark.quick


def arrays_of(step):
    values = np.random.default_rng(step).normal(size=(3, 4)).astype("float32")
    return {"model/0/kernel": values, "optimizer/0/iterations": np.int64(step)}


def save(folder, step, **options):
    meta = {"step": step, "rows": [{"loss": 1 / 3, "name": "größer"}], "none": None}
    return checkpoints.save(folder, step, arrays_of(step), meta, **options)


def assert_latest(folder, step):
    arrays, meta = checkpoints.load_latest(folder)
    assert meta == {
        **{"step": step, "none": None},
        "rows": [{"loss": 1 / 3, "name": "größer"}],
    }
    expected = arrays_of(step)
    assert arrays.keys() == expected.keys()
    for key, value in expected.items():
        assert arrays[key].dtype == value.dtype
        np.testing.assert_array_equal(arrays[key], value)


def steps_in(folder):
    return sorted(int(p.stem.split("-")[1]) for p in folder.glob("step-*.npz"))


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("made", [False, True])
def test_an_empty_folder_has_no_checkpoint(tmp_path, made):
    if made:
        (tmp_path / "checkpoints").mkdir()
    assert checkpoints.load_latest(tmp_path / "checkpoints") is None


def test_what_was_saved_comes_back(tmp_path):
    path = save(tmp_path / "a" / "checkpoints", 62)
    assert path.parent == tmp_path / "a" / "checkpoints"
    assert path.name.startswith("step-000000062") and path.exists()
    assert_latest(tmp_path / "a" / "checkpoints", 62)


@pytest.mark.promise("checkpoint-count")
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay(tmp_path, keep):
    save(tmp_path, 8, keep=keep)
    files_of_one = len(list(tmp_path.iterdir()))
    for step in (9, 10, 99, 100, 1000):
        save(tmp_path, step, keep=keep)
    assert steps_in(tmp_path) == [9, 10, 99, 100, 1000][-keep:]
    assert len(list(tmp_path.iterdir())) == keep * files_of_one
    assert_latest(tmp_path, 1000)


@pytest.mark.promise("checkpoint-count")
def test_other_files_are_left_alone(tmp_path):
    names = ("notes.txt", "step-best.npz", "step-000000001.npz.bak")
    for name in names:
        (tmp_path / name).write_text("mine")
    for step in (1, 2, 3):
        save(tmp_path, step, keep=1)
    assert all((tmp_path / name).read_text() == "mine" for name in names)
    assert_latest(tmp_path, 3)


@pytest.mark.promise("full-disk")
@pytest.mark.parametrize("place", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_the_older_ones_whole(tmp_path, monkeypatch, place):
    save(tmp_path, 1)
    save(tmp_path, 2)
    with monkeypatch.context() as broken:
        broken.setattr(os, place, full_disk)
        with pytest.raises(OSError, match="No space left") as error:
            save(tmp_path, 3)
    if place == "fsync":
        assert "step-000000003-" in error.value.filename
    assert steps_in(tmp_path) == [1, 2]
    assert not list(tmp_path.glob(".partial-*"))
    assert_latest(tmp_path, 2)
    save(tmp_path, 3)
    assert_latest(tmp_path, 3)
    assert steps_in(tmp_path) == [2, 3]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_saving_a_step_again_may_fail_anywhere(tmp_path, monkeypatch, failing):
    # The timer and the end of an epoch may both save the same step.
    save(tmp_path, 7)
    targets = []

    def replace(source, target, real=os.replace):
        targets.append(target)
        if len(targets) == failing:
            full_disk()
        real(source, target)

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", replace)
        with contextlib.suppress(OSError):
            checkpoints.save(tmp_path, 7, arrays_of(7), {"second": True})
    assert targets
    arrays, meta = checkpoints.load_latest(tmp_path)
    np.testing.assert_array_equal(arrays["model/0/kernel"], [*arrays_of(7).values()][0])
    if len(targets) < failing:  # nothing failed
        assert meta == {"second": True}


def test_a_step_saved_again_replaces_the_first(tmp_path):
    save(tmp_path, 7)
    checkpoints.save(tmp_path, 7, arrays_of(7), {"second": True})
    assert checkpoints.load_latest(tmp_path)[1] == {"second": True}
    assert steps_in(tmp_path) == [7]


def test_what_a_killed_process_left_is_cleared(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".partial-abc").write_bytes(b"half of")
    assert_latest(tmp_path, 1)
    save(tmp_path, 2)
    assert not list(tmp_path.glob(".partial-*"))
    assert_latest(tmp_path, 2)


@pytest.mark.promise("history")
def test_a_file_is_never_seen_half_written(tmp_path, monkeypatch):
    path = tmp_path / "history.csv"
    files.write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, b"new and longer")
    assert [p.name for p in tmp_path.iterdir()] == ["history.csv"]
    assert path.read_bytes() == b"old"


def exhausted(message):
    return tf.errors.ResourceExhaustedError(None, None, message)


# As TensorFlow 2.21 and NumPy 2.4 said it on a full disk and in a read-only folder.
DISK_ERRORS = {
    "events": (
        exhausted("x/events.v2; No space left on device\n\tCould not flush"),
        errno.ENOSPC,
    ),
    "variables": (
        exhausted("x/part-00000; No space left on device [Op:SaveV2]"),
        errno.ENOSPC,
    ),
    "quota": (exhausted("x/part-00000; Disk quota exceeded"), errno.EDQUOT),
    "forbidden": (
        tf.errors.PermissionDeniedError(None, None, "x/a; Permission denied"),
        errno.EACCES,
    ),
    "numpy": (OSError("1000000 requested and 5616 written"), errno.ENOSPC),
    "python": (OSError(errno.EIO, "Input/output error"), errno.EIO),
}


@pytest.mark.promise("full-disk")
@pytest.mark.parametrize(("error", "number"), DISK_ERRORS.values(), ids=DISK_ERRORS)
def test_errors_of_the_disk_name_the_file(error, number):
    with pytest.raises(OSError) as caught:
        with files.disk_errors("the/file"):
            raise error
    assert caught.value.errno == number
    assert os.strerror(number) in str(caught.value)
    assert "the/file" in str(caught.value)


@pytest.mark.promise("full-disk")
@pytest.mark.parametrize(
    "error",
    [
        exhausted("OOM when allocating tensor with shape[9999,16] by GPU_0"),
        tf.errors.InvalidArgumentError(None, None, "shapes"),
        ValueError("No space left on device"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "another"),
    ],
)
def test_other_errors_are_left_as_they_are(error):
    with pytest.raises(type(error)) as caught:
        with files.disk_errors("the/file"):
            raise error
    assert caught.value is error


def truncate(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def flip(path, share):
    content = bytearray(path.read_bytes())
    content[min(int(share * len(content)), len(content) - 1)] ^= 0x10
    path.write_bytes(content)


DAMAGES = {
    **{f"cut at {s}": lambda p, s=s: truncate(p, s) for s in (0, 0.3, 0.99)},
    **{f"flipped at {s}": lambda p, s=s: flip(p, s) for s in (0, 0.2, 0.5, 0.8, 1)},
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
}


@pytest.mark.promise("checkpoint-damaged")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_named_and_passed_over(tmp_path, capsys, damage):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    damage(newer)
    assert_latest(tmp_path, 1)
    output = capsys.readouterr()
    assert str(newer) in output.err and str(older) not in output.err
    assert output.out == ""


@pytest.mark.promise("checkpoint-bad-disk")
def test_one_on_a_bad_place_of_the_disk_is_passed_over(tmp_path, capsys, monkeypatch):
    save(tmp_path, 1)
    newer = save(tmp_path, 2)
    original = type(newer).read_bytes

    def read_bytes(path):
        if path == newer:
            raise OSError(number, os.strerror(number), str(path))
        return original(path)

    monkeypatch.setattr(type(newer), "read_bytes", read_bytes)
    number = errno.EIO
    assert_latest(tmp_path, 1)
    assert str(newer) in capsys.readouterr().err
    number = errno.EACCES  # whole, and soon readable again
    with pytest.raises(PermissionError):
        checkpoints.load_latest(tmp_path)


def test_an_undamaged_one_is_not_mentioned(tmp_path, capsys):
    save(tmp_path, 1)
    flip(save(tmp_path, 2), 0.5)
    save(tmp_path, 3)
    assert_latest(tmp_path, 3)
    assert capsys.readouterr().err == ""


def test_if_all_are_damaged_there_is_none(tmp_path, capsys):
    paths = [save(tmp_path, 1), save(tmp_path, 2)]
    for path in paths:
        flip(path, 0.5)
    assert checkpoints.load_latest(tmp_path) is None
    error = capsys.readouterr().err
    assert all(str(path) in error for path in paths)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newest_does_not_push_out_the_next(tmp_path, keep):
    # The run goes on from step 1 and saves steps below the damaged one.
    save(tmp_path, 1, keep=2)
    flip(save(tmp_path, 9, keep=2), 0.5)
    assert_latest(tmp_path, 1)
    for step in (3, 5):
        save(tmp_path, step, keep=keep)
        assert_latest(tmp_path, step)


class Tiny(keras.Model):
    """A model with batch norm, a meter of its own and a step by hand."""

    def __init__(self, width=5):
        super().__init__()
        self.hidden = keras.layers.Dense(width, activation="relu")
        self.norm = keras.layers.BatchNormalization()
        self.out = keras.layers.Dense(2)
        self.meter = keras.metrics.Mean(name="loss")

    def call(self, x, training=False):
        return self.out(self.norm(self.hidden(x), training=training))

    def step(self, seed):
        x = np.random.default_rng(seed).normal(size=(8, 3)).astype("float32")
        with tf.GradientTape() as tape:
            error = self(x, training=True) - x[:, :2]
            loss = tf.reduce_mean(tf.square(tf.cast(error, "float32")))
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, variables), variables)
        self.meter.update_state(loss)
        return float(loss)


def tiny(width=5, optimizer=None, steps=0):
    """Returns a compiled model after some steps."""
    model = Tiny(width)
    model(np.zeros((1, 3), "float32"))
    model.compile(optimizer=optimizer or keras.optimizers.Adam(0.01))
    model.optimizer.build(model.trainable_variables)
    for seed in range(steps):
        model.step(seed)
    return model


MAKERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_a_model_comes_back_whole_and_goes_on_alike(tmp_path, maker):
    trained = tiny(optimizer=maker(), steps=3)
    saved = checkpoints.get_state(trained)
    groups = [key.split("/")[0] for key in saved]
    # Two kernels, two biases, batch norm's four; total and count of the meter.
    assert groups.count("model") >= 8 and groups.count("metrics") >= 2
    assert groups.count("optimizer") >= 2 + 6  # iterations, rate, a slot each
    checkpoints.save(tmp_path, 3, saved, {})
    arrays, _ = checkpoints.load_latest(tmp_path)
    assert_same_arrays(saved, arrays)

    fresh = tiny(optimizer=maker())
    assert checkpoints.hash_weights(fresh) != checkpoints.hash_weights(trained)
    checkpoints.restore(fresh, arrays)
    assert int(fresh.optimizer.iterations) == 3
    assert checkpoints.hash_weights(fresh) == checkpoints.hash_weights(trained)
    assert float(fresh.meter.count) == 0
    checkpoints.restore_metrics(fresh, arrays)
    assert_same_arrays(saved, checkpoints.get_state(fresh))
    assert float(fresh.meter.count) == 3

    for model in (trained, fresh):
        model.step(100)
    assert_same_arrays(checkpoints.get_state(trained), checkpoints.get_state(fresh))


def test_the_loss_scale_of_float16_comes_back(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    trained = tiny(steps=1)
    variables = trained.trainable_variables
    trained.optimizer.apply([tf.fill(v.shape, np.inf) for v in variables], variables)
    trained.step(1)
    scale = float(trained.optimizer.scale_loss(1.0))
    assert scale <= 2**14  # halved by the infinite gradient
    checkpoints.save(tmp_path, 2, checkpoints.get_state(trained), {})

    fresh = tiny()
    assert float(fresh.optimizer.scale_loss(1.0)) == 2**15
    checkpoints.restore(fresh, checkpoints.load_latest(tmp_path)[0])
    assert float(fresh.optimizer.scale_loss(1.0)) == scale
    inner = fresh.optimizer.inner_optimizer
    assert int(inner.iterations) == int(trained.optimizer.inner_optimizer.iterations)
    for model in (trained, fresh):
        model.step(100)
    own = [v.numpy() for v in trained.optimizer.variables]
    other = [v.numpy() for v in fresh.optimizer.variables]
    assert len(own) == len(other) > len(variables)
    for a, b in zip(own, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_for_evaluation_takes_the_weights_alone():
    arrays = checkpoints.get_state(tiny(steps=2))
    model = Tiny()
    model(np.zeros((1, 3), "float32"))
    checkpoints.restore(model, arrays)
    own = {k: v for k, v in arrays.items() if k.startswith("model/")}
    assert own
    found = checkpoints.get_state(model)
    assert_same_arrays(own, {key: found[key] for key in own})


def without(arrays, prefix):
    last = [key for key in arrays if key.startswith(prefix)][-1]
    return {key: value for key, value in arrays.items() if key != last}


@pytest.mark.parametrize(
    "misfit",
    [
        lambda arrays: checkpoints.get_state(tiny(width=6)),
        lambda arrays: checkpoints.get_state(tiny(optimizer=MAKERS["sgd"]())),
        lambda arrays: without(arrays, "model/"),
        lambda arrays: without(arrays, "optimizer/"),
        lambda arrays: {**arrays, "model/99/extra": np.zeros(1)},
        lambda arrays: {**arrays, list(arrays)[-1]: np.zeros((9, 9))},
        lambda arrays: {},
    ],
    ids=["width", "optimizer", "weight", "slot", "extra", "shape", "nothing"],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(misfit):
    model = tiny(steps=1)
    before = checkpoints.get_state(model)
    with pytest.raises(ValueError, match="does not fit the model.*--workdir"):
        checkpoints.restore(model, misfit(checkpoints.get_state(tiny(steps=2))))
    assert_same_arrays(before, checkpoints.get_state(model))


class Pair(keras.Model):
    """Two layers of equal shape, made in either order."""

    def __init__(self, names):
        super().__init__()
        for name in names:
            setattr(self, name, keras.layers.Dense(3))
            getattr(self, name).build((None, 3))


def test_two_variables_of_equal_shape_that_swap_places_are_refused():
    arrays = checkpoints.get_state(Pair(["encoder", "head"]))
    swapped = Pair(["head", "encoder"])
    before = checkpoints.hash_weights(swapped)
    with pytest.raises(
        ValueError, match="'head: dense_1/kernel', got 'encoder: dense_1/"
    ):
        checkpoints.restore(swapped, arrays)
    assert checkpoints.hash_weights(swapped) == before
    # Whatever number Keras gives the layers of a second model.
    checkpoints.restore(Pair(["encoder", "head"]), arrays)
    del arrays["names_json"]  # a checkpoint of version 0.1.0
    checkpoints.restore(Pair(["encoder", "head"]), arrays)


@pytest.mark.parametrize("optimizer", MAKERS.values(), ids=MAKERS)
def test_every_variable_has_one_name_whatever_the_number_of_the_model(optimizer):
    names = [checkpoints.names_of(tiny(optimizer=optimizer())) for _ in range(2)]
    assert names[0] == names[1]
    assert len(set(names[0].values())) == len(names[0])
    assert "hidden: tiny/dense_1/kernel" in names[0].values()
    assert "out: tiny/dense_2/kernel" in names[0].values()


def test_the_fingerprint_sees_every_weight():
    model = tiny()
    seen = {checkpoints.hash_weights(model)}
    for variable in model.variables:
        variable.assign(variable + 1)
        seen.add(checkpoints.hash_weights(model))
    assert len(seen) == len(model.variables) + 1
    assert checkpoints.hash_weights(model) == checkpoints.hash_weights(model)


def test_the_digest_does_not_depend_on_the_memory_layout():
    array = np.arange(12.0).reshape(3, 4)
    assert files.sha256(array) == files.sha256(np.asfortranarray(array))
    assert files.sha256(array) != files.sha256(array.T)
