"""Whatever happens, the same command goes on, to the result of an undisturbed run."""

import contextlib
import csv
import dataclasses
import errno
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import traceback
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfsimclr import build, resolve, run
from tfsimclr.data import dataset as datasets
from tfsimclr.data import textures
from tfsimclr.losses import multi_view
from tfsimclr.modes import evaluate, export, pretrain
from tfsimclr.runs import embedder, loading
from tfsimclr.runs import folder as run_folder
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints, recorder

pytestmark = pytest.mark.usefixtures("shallow_module")
ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 10  # two epochs of 80 images in batches of 16
MEASURED = {"images_per_second", "views_per_second", "seconds", "peak_memory_bytes"}


class Killed(BaseException):
    """Stands for SIGKILL inside the process: nothing in the program catches it."""


# Dying at every single access to the disk


def dies_at(number, folder, action):
    """Runs `action` in a child killed at access `number` to files in `folder`.

    A file being flushed loses its second half first, as at a power cut. Returns
    whether the child got that far.
    """
    child = os.fork()
    if not child:
        try:
            counter = itertools.count()

            def access(name, arguments):
                inside = any(str(folder) in str(a) for a in arguments)
                if inside and next(counter) == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            def fsync(handle, real=os.fsync):
                if next(counter) == number:
                    with contextlib.suppress(OSError):  # a folder has no halves
                        os.ftruncate(handle, os.fstat(handle).st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                real(handle)

            os.fsync = fsync
            sys.addaudithook(access)
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the child failed by itself"
    return status == signal.SIGKILL


def arrays_of(step):
    return {"model/0": np.random.default_rng(step).normal(size=(3, 4))}


def save(folder, step):
    checkpoints.save(folder, step, arrays_of(step), {"step": step})


@pytest.mark.promise("checkpoint-atomic")
@pytest.mark.parametrize("again", [False, True], ids=["a new step", "a step again"])
def test_killed_anywhere_in_a_checkpoint(tmp_path, capsys, again):
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        for step in (1, 2, 3) if again else (1, 2):
            save(folder, step)
        killed = dies_at(moment, folder, lambda folder=folder: save(folder, 3))
        arrays, meta = checkpoints.load_latest(folder)
        assert meta["step"] in ((3,) if again or not killed else (2, 3))
        for key, value in arrays_of(meta["step"]).items():
            np.testing.assert_array_equal(arrays[key], value)
        assert capsys.readouterr().err == ""  # nothing damaged under a real name
        save(folder, 4)
        assert checkpoints.load_latest(folder)[1]["step"] == 4
        assert len(list(folder.iterdir())) == 2  # and nothing left over
        if not killed:
            break
    assert moment >= 6


@pytest.mark.promise("run-folder")
def test_killed_anywhere_while_the_run_folder_is_made(tiny, tmp_path):
    config, *_ = tiny()
    for moment in itertools.count():
        own = dataclasses.replace(config, workdir=str(tmp_path / f"run-{moment}"))
        killed = dies_at(moment, own.workdir, lambda own=own: run_folder.prepare(own))
        for _ in range(2):
            path = run_folder.prepare(own)
            assert f"--seed={own.seed}\n" in (path / "flags.txt").read_text()
        with pytest.raises(ValueError, match="other settings"):
            run_folder.prepare(dataclasses.replace(own, seed=5))
        if not killed:
            break
    assert moment >= 4


@pytest.mark.promise("run-folder")
def test_a_folder_of_somebody_else_is_still_refused(tiny, tmp_path):
    config, _, folder = tiny()
    folder.mkdir()
    (folder / ".lock").touch()  # ours, from a run killed at its very beginning
    (folder / ".profile").write_text("somebody's")
    with pytest.raises(ValueError, match="is not a run folder"):
        run_folder.prepare(config)
    assert (folder / ".profile").read_text() == "somebody's"


@pytest.fixture
def photos(tmp_path):
    """Returns a folder of eight images, two classes."""
    random = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.mark.promise("store")
@pytest.mark.parametrize("before", ["nothing", "an old store"])
def test_killed_anywhere_while_the_store_is_built(tmp_path, photos, before):
    def load(cache):
        return datasets.load(
            "folder", data_dir=str(photos), cache_dir=str(cache), verbose=False
        )

    whole = load(tmp_path / "whole").train.images
    for moment in itertools.count():  # some ninety
        cache = tmp_path / f"cache-{moment}"
        cache.mkdir()
        if before != "nothing":
            load(cache)
            os.utime(photos / "a" / "0.png", (moment, moment))
        killed = dies_at(moment, cache, lambda cache=cache: load(cache))
        np.testing.assert_array_equal(load(cache).train.images, whole)
        assert len(list(cache.iterdir())) == 1  # nothing partial stays
        if not killed:
            break
    assert moment >= 20


@pytest.fixture
def small_disk(tmp_path):
    """Returns a folder that is a disk of 16 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("only root may make a disk")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(folder):
    """Takes all room that the disk of a folder has left; returns the file."""
    path = folder / "balloon"
    with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return path


@pytest.mark.promise("full-disk")
def test_a_full_disk_leaves_no_store(small_disk, photos, monkeypatch):
    cache = small_disk / "cache"

    def load():
        return datasets.load(
            "folder", data_dir=str(photos), cache_dir=str(cache), verbose=False
        )

    balloon = fill(small_disk)
    with pytest.raises(ValueError, match="Make room"):  # seen beforehand
        load()
    room = shutil.disk_usage(small_disk)._replace(free=10**9)
    with monkeypatch.context() as patch:  # or filled by somebody else meanwhile
        patch.setattr(shutil, "disk_usage", lambda _: room)
        with pytest.raises(ValueError, match="No space left on device.*--cache_dir"):
            load()
    assert list(cache.iterdir()) == []
    balloon.unlink()
    assert len(load().train.images) == 6


@pytest.mark.promise("classifier")
def test_killed_anywhere_while_the_classifier_is_kept(tmp_path):
    weights = [np.ones((3, 2)), np.zeros(2)]
    layer = types.SimpleNamespace(get_weights=lambda: weights)
    network = types.SimpleNamespace(variables=[])
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        (folder / "features").mkdir(parents=True)

        def keep(folder=folder):
            loading.save_classifier(folder, network, "h", layer)

        killed = dies_at(moment, folder, keep)
        found = loading.classifier(folder, network)
        assert found is None or (found[1] == weights[0]).all()
        if not killed:
            break
    assert found is not None and moment >= 3


@pytest.mark.promise("classifier")
def test_a_damaged_classifier_is_refused_or_harmless(tmp_path):
    """One bit at a time; what is in no checksum of the format changes nothing."""
    weights = [np.ones((3, 2), np.float32), np.zeros(2, np.float32)]
    layer = types.SimpleNamespace(get_weights=lambda: weights)
    network = types.SimpleNamespace(variables=[])
    (tmp_path / "features").mkdir()
    loading.save_classifier(tmp_path, network, "h", layer)
    path = tmp_path / "features" / "classifier.npz"
    good, refused = path.read_bytes(), 0
    for at in range(0, len(good), 3):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        try:
            feature, kernel, bias = loading.classifier(tmp_path, network)
        except ValueError as error:
            assert str(path) in str(error) and "--mode=evaluate" in str(error)
            refused += 1
        else:
            assert feature == "h" and kernel.dtype == bias.dtype == np.float32
            assert (kernel == 1).all() and (bias == 0).all()
    assert refused > len(good) / 3 / 2
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        loading.classifier(tmp_path, network)


@pytest.mark.promise("export")
@pytest.mark.parametrize("before", ["nothing", "an old one"])
def test_killed_anywhere_in_an_export(tiny, tmp_path, monkeypatch, before):
    """The SavedModel is whole or absent, and the next start clears up."""
    config, *_ = tiny()

    def write(module, path, signatures):
        for name in ("saved_model.pb", "variables/variables.index"):
            (pathlib.Path(path) / name).parent.mkdir(parents=True, exist_ok=True)
            (pathlib.Path(path) / name).write_text(module)

    monkeypatch.setattr(tf.saved_model, "save", write)
    monkeypatch.setattr(tf, "function", lambda *_, **__: None)
    for moment in itertools.count():
        own = dataclasses.replace(config, workdir=str(tmp_path / f"run-{moment}"))
        path = run_folder.prepare(own)
        if before != "nothing":
            write("old", path / "saved_model", None)

        def action(path=path):
            export.write(path / "saved_model", Module("new"))

        killed = dies_at(moment, path, action)
        found = {
            p.name: p.read_text()
            for p in path.glob("saved_model/**/*.*")
            if p.is_file() and p.suffix != ".json"
        }
        assert len(found) in (0, 2) and len(set(found.values())) < 2
        description = (path / "saved_model" / embedder.DESCRIPTION).is_file()
        assert description == (set(found.values()) == {"new"})
        assert killed or set(found.values()) == {"new"}
        run_folder.prepare(own)
        names = {p.name for p in path.iterdir()} - {"saved_model"}
        assert names == {"flags.txt", ".lock"}
        if not killed:
            break
    assert moment >= 8


class Module(str):
    """Stands for a network, where it only is passed on."""

    class_list = ()
    outputs = None
    image_size = 16
    model = types.SimpleNamespace(variables=[])


# Whole runs


def overflows(patch, step):
    """Makes the gradient of one step infinite, as float16's too large ones are."""
    original, method = multi_view.nt_xent, build.method
    made = []

    @tf.custom_gradient
    def poisoned(loss):
        factor = tf.where(made[-1].step == step - 1, np.inf, 1.0)
        return tf.identity(loss), lambda upstream: upstream * factor

    def spy(*arguments, **options):
        made.append(method(*arguments, **options))
        return made[-1]

    patch.setattr(pretrain.build, "method", spy)
    patch.setattr(multi_view, "nt_xent", lambda *z, **o: poisoned(original(*z, **o)))


def go_on(run_, folder):
    """Runs the command; `run_` is (config, data set)."""
    config, dataset = run_
    folder.mkdir(exist_ok=True)
    pretrain.pretrain(config, dataset, folder)
    evaluate.evaluate(config, dataset, folder)


def left_behind(folder):
    """Returns all that a run leaves, but what was measured with a clock."""
    arrays, _ = checkpoints.load_latest(folder / "checkpoints")
    with open(folder / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    result = json.loads((folder / "result.json").read_text())
    for part in (*rows, result["pretrain"]):
        for name in MEASURED & part.keys():
            del part[name]
    del result["config"]["workdir"], result["config"]["cache_dir"]
    del result["git_commit"]  # somebody may commit while the tests run
    return {key: value.tobytes() for key, value in arrays.items()}, rows, result


def assert_same(folder, other):
    (arrays, rows, result), (arrays_2, rows_2, result_2) = map(
        left_behind, (folder, other)
    )
    assert arrays == arrays_2 and len(arrays) > 50
    assert rows == rows_2 and len(rows) > 1
    assert result == result_2 and result["top1"] is not None


@pytest.fixture(scope="module")
def float16_run(shallow_module, tmp_path_factory):
    """Returns (config, data set) with an overflow at step 4, and its run folder."""
    tf.config.experimental.enable_op_determinism()
    base = tmp_path_factory.mktemp("float16")
    config = Config(
        cache_dir=str(base / "cache"),
        **{"backbone": "resnet10", "width": 0.125, "image_size": 16, "stem": "medium"},
        **{"batch_size": 16, "epochs": 2, "deterministic": True},
        **{"probe_epochs": 2, "probe_learning_rate": 3e-3},
        **{"precision": "mixed_float16", "checkpoint_minutes": 1e-9},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textures, "SPLITS", {"unlabeled": 80, "train": 60, "test": 40})
        dataset = build.dataset(config)
        config = resolve.resolve(config, dataset)
        overflows(patch, step=4)
        go_on((config, dataset), base / "run")
    return (config, dataset), base / "run"


@pytest.fixture
def broken(float16_run, tmp_path, monkeypatch):
    """Returns the run, its folder and a copy of that."""
    overflows(monkeypatch, step=4)
    shutil.copytree(float16_run[1], tmp_path / "copy")
    return *float16_run, tmp_path / "copy"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def saved(folder):
    return sorted(folder.glob("checkpoints/step-*.npz"))


@pytest.mark.promise("resume-float16")
def test_killed_in_an_epoch_of_float16_the_loss_scale_comes_back(
    float16_run, tmp_path, monkeypatch
):
    run_, whole = float16_run
    overflows(monkeypatch, step=4)
    original = recorder.Recorder.on_train_batch_end

    def dying(self, batch, logs=None):
        if int(self.model.step) == 5:  # the last saved is that of the overflow
            raise Killed
        original(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "on_train_batch_end", dying)
        with pytest.raises(Killed):
            go_on(run_, tmp_path / "run")
    assert checkpoints.load_latest(tmp_path / "run/checkpoints")[1]["step"] == 4
    go_on(run_, tmp_path / "run")
    assert_same(tmp_path / "run", whole)
    _, rows, _ = left_behind(tmp_path / "run")
    assert [row["skipped_steps"] for row in rows] == ["1.0", "0.0"]
    assert [row["loss_scale"] for row in rows] == [str(2.0**14)] * 2


@pytest.mark.promise("checkpoint-damaged")
@pytest.mark.parametrize("damaged", ["the newest", "all"])
def test_damaged_checkpoints_cost_time_and_nothing_else(broken, capsys, damaged):
    run_, whole, copy = broken
    files = saved(copy)[-1:] if damaged == "the newest" else saved(copy)
    for path in files:
        flip(path)
    go_on(run_, copy)
    output = capsys.readouterr()
    assert all(str(path) in output.err for path in files)
    if damaged == "all":
        assert "from the beginning" in output.err
    else:
        assert f"Going on at step {STEPS - 1} of {STEPS}" in output.out
    assert_same(copy, whole)


@pytest.mark.promise("full-disk")
def test_a_full_disk_is_named_and_later_the_run_goes_on(broken, monkeypatch):
    run_, whole, copy = broken
    newest = saved(copy)[-1]
    newest.unlink()
    before = {path: path.read_bytes() for path in saved(copy)}

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(run, "run", lambda *_: go_on(run_, copy))
        patch.setattr(run.configs, "from_flags", lambda: run_[0])
        with pytest.raises(SystemExit) as stop:
            run._main(["program"])
    message = stop.value.code
    assert message.startswith("tfsimclr: ") and "\n" not in message
    assert "No space left on device" in message
    assert "the same command goes on" in message
    assert {path: path.read_bytes() for path in saved(copy)} == before
    assert not list(copy.glob("**/.partial-*"))
    go_on(run_, copy)
    assert_same(copy, whole)


# Where the disk fills up, and what the message names.
WRITERS = {
    "the first event": ((tf.summary, "create_file_writer"), "tensorboard"),
    "the pictures": ((tf.summary, "image"), "tensorboard"),
    "the features": ((np, "save"), "pixels-train.npy"),
    "the SavedModel": ((tf.saved_model, "save"), "saved_model"),
}


@pytest.mark.promise("full-disk")
@pytest.mark.parametrize(("place", "named"), WRITERS.values(), ids=WRITERS)
def test_a_disk_that_is_full_ends_in_one_line_whoever_writes(
    broken, small_disk, monkeypatch, place, named
):
    run_, whole, copy = broken
    folder = small_disk / "run"
    shutil.rmtree(copy / "features")
    shutil.copytree(copy, folder)
    # The pictures are made at the beginning of a run.
    for path in saved(folder) if "image" in place else saved(folder)[-1:]:
        path.unlink()
    before = {path: path.read_bytes() for path in saved(folder)}
    original = getattr(*place)

    def filling(*arguments, **options):
        fill(small_disk)
        if "image" in place:  # TensorFlow says so or not, as its buffers will have it
            message = "events.v2; No space left on device"
            raise tf.errors.ResourceExhaustedError(None, None, message)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(*place, filling)
        patch.setattr(run, "run", lambda *_: go_on_and_export(run_, folder))
        patch.setattr(run.configs, "from_flags", lambda: run_[0])
        with pytest.raises(SystemExit) as stop:
            run._main(["program"])
    message = stop.value.code
    assert message.startswith("tfsimclr: ") and "\n" not in message
    assert "No space left on device" in message and named in message
    assert "Make room; the same command goes on" in message
    assert before.items() <= {p: p.read_bytes() for p in saved(folder)}.items()
    assert not list(folder.glob(".saved_model-*"))
    (small_disk / "balloon").unlink()
    go_on_and_export(run_, folder)
    assert_same(folder, whole)
    assert (folder / "saved_model" / "saved_model.pb").exists()


def go_on_and_export(run_, folder):
    go_on(run_, folder)
    export.export(*run_, folder)


@pytest.mark.promise("full-disk")
@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        MemoryError("Unable to allocate 9 GiB for an array"),
    ],
)
def test_exhausted_memory_is_no_full_disk(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(run, "run", fail)
    monkeypatch.setattr(run.configs, "from_flags", Config)
    with pytest.raises(SystemExit) as stop:
        run._main(["program"])
    assert "memory" in stop.value.code and "--batch_size" in stop.value.code
    assert "disk" not in stop.value.code and "\n" not in stop.value.code


@pytest.mark.promise("features")
def test_killed_while_the_features_are_kept(broken, monkeypatch):
    run_, whole, copy = broken
    shutil.rmtree(copy / "features")
    (copy / "result.json").unlink()
    done = []

    def dying(path, array, real=np.save):
        done.append(path)
        if len(done) == 4:
            pathlib.Path(path).write_bytes(b"half a file")
            raise Killed
        real(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", dying)
        with pytest.raises(Killed):
            go_on(run_, copy)
    go_on(run_, copy)
    assert_same(copy, whole)


@pytest.mark.promise("features")
@pytest.mark.parametrize("place", ["header", "numbers", "end", "missing", "stamp"])
def test_damaged_features_are_made_again(broken, capsys, place):
    run_, whole, copy = broken
    path = copy / "features" / "h-test.npy"
    good = path.read_bytes()
    if place == "stamp":
        (copy / "features" / "key.txt").write_bytes(b"\xff\n")
    elif place == "missing":
        path.unlink()
    elif place == "end":
        path.write_bytes(good[:-1])
    else:  # one bit: the shape, or a number
        at = good.index(b"(40") + 1 if place == "header" else len(good) - 1
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    go_on(run_, copy)
    assert path.read_bytes() == good
    assert_same(copy, whole)
    assert ("h-test.npy" in capsys.readouterr().err) == (place != "stamp")


@pytest.mark.promise("checkpoint-needed")
def test_evaluation_without_a_whole_checkpoint_says_so(broken, capsys):
    (config, dataset), _, copy = broken
    for path in saved(copy):
        flip(path)
    with pytest.raises(ValueError, match="--mode=pretrain or --mode=all"):
        evaluate.evaluate(config, dataset, copy)
    message = capsys.readouterr().err
    assert message.count("is damaged") == 2 and "training" not in message.lower()


@pytest.mark.promise("resume-other-images")
@pytest.mark.parametrize("change", ["one image more", "another image"])
def test_a_run_does_not_go_on_with_other_images(broken, change):
    (config, dataset), _, copy = broken
    images = dataset.unlabeled.images
    images = np.concatenate([images, images[:1]]) if "more" in change else 255 - images
    other = datasets.Split(images, np.full(len(images), -1))
    before = left_behind(copy)
    with pytest.raises(ValueError, match="other images.*--workdir"):
        pretrain.pretrain(config, dataclasses.replace(dataset, unlabeled=other), copy)
    assert left_behind(copy) == before


@pytest.mark.promise("resume-interval")
def test_checkpoint_minutes(tiny, monkeypatch):
    """A step takes a minute here; the end of an epoch saves in any case."""
    config, dataset, folder = tiny(checkpoint_minutes=1.5)
    folder.mkdir()
    steps, models = [], []
    method, save_checkpoint = build.method, checkpoints.save

    def spy(*arguments, **options):
        models.append(method(*arguments, **options))
        return models[-1]

    def noted(folder, step, *rest, **options):
        steps.append(step)
        return save_checkpoint(folder, step, *rest, **options)

    clock = types.SimpleNamespace(monotonic=lambda: 60.0 * int(models[-1].step))
    monkeypatch.setattr(pretrain.build, "method", spy)
    monkeypatch.setattr(checkpoints, "save", noted)
    monkeypatch.setattr(recorder, "time", clock)
    pretrain.pretrain(config, dataset, folder)
    assert steps == [2, 4, 5, 7, 9, 10]


STOPPED = """
import os, signal, time
# A shell's background job, and all below it, would ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from tfsimclr import run
run.run = lambda *_: (os.kill(os.getpid(), signal.{}), time.sleep(20))
run.main()
"""


@pytest.mark.promise("resume-signal")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_stopped_outside_of_the_training_it_says_how_to_go_on(name):
    done = subprocess.run(
        [sys.executable, "-c", STOPPED.format(name)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "Stopped. The same command goes on from here.\n"


# The command itself; `FUSE` is "<step>" or "<step> while saving"

FUSED = """
import os, signal
from tfsimclr import run
run._tensorflow()
from tfsimclr.training import recorder

step, *saving = os.environ["FUSE"].split(" ", 1)
flush, batch_end = os.fsync, recorder.Recorder.on_train_batch_end
lit = []

def fsync(handle):
    if lit:
        os.ftruncate(handle, 1000)
        os.kill(os.getpid(), signal.SIGKILL)
    flush(handle)

def on_train_batch_end(journal, batch, logs=None):
    if int(journal.model.step) == int(step):
        lit.append(step)
        if not saving:
            os.kill(os.getpid(), signal.SIGKILL)
    batch_end(journal, batch, logs)

os.fsync = fsync
recorder.Recorder.on_train_batch_end = on_train_batch_end
run.main()
"""


@pytest.mark.promise("resume-kill")
@pytest.mark.slow
def test_killed_five_times_on_the_command_line(tmp_path):
    """SIGKILL at five random steps, twice of them in the middle of a checkpoint."""
    folder = tmp_path / "photos"
    random = np.random.default_rng(0)
    for i in range(60):
        path = folder / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)

    def command(workdir, fuse=""):
        code = FUSED if fuse else "from tfsimclr import run; run.main()"
        return subprocess.run(
            [
                *(sys.executable, "-c", code),
                *("--dataset=folder", f"--data_dir={folder}", f"--workdir={workdir}"),
                f"--cache_dir={workdir}-cache",
                *"--backbone=resnet10 --width=0.125 --image_size=16".split(),
                *"--stem=medium --batch_size=8 --epochs=4 --optimizer=lars".split(),
                *"--probe_epochs=2 --deterministic --checkpoint_minutes=1e-9".split(),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), "FUSE": fuse},
            capture_output=True,
            text=True,
            timeout=300,
        )

    done = command(tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    total = 4 * (48 // 8)
    steps = sorted(random.choice(np.arange(2, total), 5, replace=False))
    for number, step in enumerate(steps):
        fuse = f"{step} while saving" if number % 2 else f"{step}"
        done = command(tmp_path / "broken", fuse)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (
            checkpoints.load_latest(tmp_path / "broken/checkpoints")[1]["step"] < step
        )
    done = command(tmp_path / "broken")
    assert done.returncode == 0, done.stderr
    assert f"Going on at step {steps[-1] - 1} of {total}" in done.stdout
    results = [left_behind(tmp_path / name) for name in ("whole", "broken")]
    assert results[0] == results[1]
    assert (tmp_path / "broken/saved_model/saved_model.pb").exists()
