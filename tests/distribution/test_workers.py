"""Two processes train as one, and end together whatever happens to one of them."""

import csv
import os
import pathlib
import re
import signal
import socket
import time

import numpy as np
import pytest
from local_workers import Processes, free_ports
from PIL import Image

from tfsimclr import build, run
from tfsimclr.settings import options
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints

STEPS = 6  # two epochs of 24 images in batches of 8
MEASURED = ("images_per_second",)
GOES_ON = "The same command on all workers goes on from the newest checkpoint."


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Returns the settings of all runs but --workdir."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    (folder / "train").mkdir()
    for i in range(24):
        image = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(image).save(folder / "train" / f"{i}.png")
    settings = {
        "dataset": "folder",
        "data_dir": str(folder),
        "cache_dir": f"{folder}-cache",
        "mode": "pretrain",
        "backbone": "resnet10",
        "width": 0.125,
        "stem": "medium",
        "image_size": 16,
        "batch_size": 8,
        "epochs": 2,
        "val_share": 0.0,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "deterministic": True,
    }
    build.dataset(Config(**settings))  # which shows its progress on stderr
    return settings


@pytest.fixture(scope="module")
def flags(settings):
    """Returns a function: run folder and further flags -> flags of one worker."""

    def make(workdir, *more):
        lines = [f"--{k}={options.to_flag_value(v)}" for k, v in settings.items()]
        return [*lines, f"--workdir={workdir}", *more]

    return make


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory):
    """Returns what two workers leave that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    results = Processes([flags(folder)] * 2).wait()
    assert [result[0] for result in results] == [0, 0], results
    return left_behind(folder)


def left_behind(folder, steps=STEPS):
    """Returns the arrays of the newest checkpoint and the rows of history.csv."""
    arrays, meta = checkpoints.load_latest(folder / "checkpoints")
    assert meta["step"] == steps
    with open(folder / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in MEASURED:
            del row[name]
    return {k: v for k, v in arrays.items() if k != "names_json"}, rows


def newest_step(folder):
    saved = sorted((folder / "checkpoints").glob("step-*.npz"))
    return int(saved[-1].name[5:14]) if saved else 0


def assert_same(left, right, tolerance=0.0):
    # Two workers repeat themselves to the last bit; one device sums in another order.
    (arrays, rows), (others, other_rows) = left, right
    assert arrays.keys() == others.keys() and len(arrays) > 50
    for key, array in arrays.items():
        np.testing.assert_allclose(
            array, others[key], rtol=0, atol=tolerance * max(1, np.abs(array).max())
        )
    assert len(rows) == len(other_rows) > 0
    for row, other in zip(rows, other_rows, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert float(value) == pytest.approx(
                float(other[name]), rel=20 * tolerance, abs=20 * tolerance
            ), name


def assert_one_line(result, pattern, code=1):
    """A worker ends with one line, besides the progress of preparing images."""
    assert result[0] == code, result
    lines = result[2].splitlines()
    progress = ("preparing images", "Comparing the checksums")
    lines = [line for line in lines if not line.startswith(progress)]
    assert len(lines) == 1 and re.search(pattern, lines[0]), result[2]


@pytest.mark.promise("workers-equal")
@pytest.mark.promise("workers-signal")
def test_stopped_and_resumed_two_processes_are_one(flags, settings, tmp_path):
    """SIGTERM to one worker stops both at the same step; the chief alone writes."""
    folder, local = tmp_path / "run", tmp_path / "local"
    both = [flags(folder), flags(local)]  # the second one has a disk of its own
    stopped = Processes(both, {1: ("SIGTERM", 2)}).wait()
    for result in stopped:
        assert_one_line(result, "^Stopped and saved. The same command goes on")
    assert checkpoints.load_latest(folder / "checkpoints")[1]["step"] == 2
    results = Processes(both)
    run.run(Config(**settings, workdir=str(tmp_path / "alone")))
    (code, output, error), (other_code, other_output, other_error) = results.wait()
    assert (code, other_code) == (0, 0), error + other_error
    assert f"Going on at step 2 of {STEPS}." in output
    assert not other_output and not error and not other_error
    assert not local.exists()
    assert_same(left_behind(folder), left_behind(tmp_path / "alone"), 1e-5)


@pytest.mark.slow
@pytest.mark.promise("workers-end")
@pytest.mark.parametrize(
    ("worker", "event"),
    [
        (1, "SIGKILL"),
        (0, "SIGKILL"),
        (0, "SIGKILL while saving"),
        (1, "SIGSTOP"),
        (0, "SIGSTOP"),
        (1, "hang"),
        (0, "hang"),
    ],
)
def test_if_one_fails_the_other_ends_and_both_go_on(
    worker, event, flags, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    both = [flags(folder, "--worker_timeout=20", "--checkpoint_minutes=1e-9")] * 2
    processes = Processes(both, {worker: (event, 4)})
    other = processes.processes[1 - worker]
    # From the step before the event on; until then the processes start and compile.
    while newest_step(folder) < 3:
        assert other.poll() is None, processes.wait()
        time.sleep(0.05)
    start = time.monotonic()
    output, error = other.communicate(timeout=60)
    seconds = time.monotonic() - start
    print(f"worker {worker}, {event}: ended after {seconds:.1f} s: {error}")
    assert seconds < 20 + 10
    names = f"worker {worker} \\(127.0.0.1:"
    if event == "hang":
        names += ".* is not at the same step after --worker_timeout=20 s, though"
    assert_one_line((other.returncode, output, error), names)
    assert GOES_ON in error
    processes.processes[worker].kill()
    processes.wait()
    results = Processes(both).wait()
    assert [result[0] for result in results] == [0, 0], results
    assert "Going on at step" in results[0][1]
    assert_same(left_behind(folder), undisturbed)


@pytest.mark.slow
@pytest.mark.promise("workers-signal")
def test_sigterm_to_all_saves_once(flags, undisturbed, tmp_path):
    both = [flags(tmp_path / "run")] * 2
    results = Processes(both, {0: ("SIGTERM", 4), 1: ("SIGTERM", 4)}).wait()
    for result in results:
        assert_one_line(result, "^Stopped and saved.")
    step = checkpoints.load_latest(tmp_path / "run" / "checkpoints")[1]["step"]
    assert step == 4
    assert [result[0] for result in Processes(both).wait()] == [0, 0]
    assert_same(left_behind(tmp_path / "run"), undisturbed)


@pytest.mark.slow
@pytest.mark.promise("workers-start")
@pytest.mark.parametrize("missing", [0, 1])
def test_who_is_missing_is_named(missing, flags, tmp_path):
    both = [flags(tmp_path / "run", "--worker_timeout=5")] * 2
    start = time.monotonic()
    (result,) = Processes(both, started=[1 - missing]).wait()
    assert time.monotonic() - start < 60
    assert_one_line(result, f"worker {missing} .*does not answer within .*=5 s")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.promise("workers-start")
def test_other_settings_images_or_software_are_refused(flags, settings, tmp_path):
    folder = tmp_path / "run"
    base = flags(folder)
    other_images = tmp_path / "photos"
    for path in pathlib.Path(settings["data_dir"]).glob("train/*.png"):
        (other_images / "train").mkdir(parents=True, exist_ok=True)
        image = 255 - np.asarray(Image.open(path))
        Image.fromarray(image).save(other_images / "train" / path.name)
    for more, message in (
        (["--seed=1", "--epochs=3"], "--epochs is 3 there and 2 .*; --seed is 1"),
        ([f"--data_dir={other_images}"], "the checksum of the unlabeled images"),
    ):
        for result in Processes([base, [*base, *more]]).wait():
            assert_one_line(result, f"worker 1 .*differs from the chief: .*{message}")
    assert not folder.exists()
    busy, other = free_ports(2)
    with socket.create_server(("", busy)):
        results = Processes([base, base], ports=[other, busy]).wait()
    for result in results:
        assert_one_line(result, f"port {busy} of this machine is in use")


@pytest.mark.slow
@pytest.mark.promise("workers-end")
def test_an_error_of_the_chief_alone_ends_all(flags, tmp_path):
    """The other worker waits while the chief evaluates."""
    both = [flags(tmp_path / "run", "--mode=all")] * 2
    chief, other = Processes(both, {0: ("full disk", None)}).wait()
    assert_one_line(chief, "^tfsimclr: .*No space left on device.*Make room")
    assert_one_line(other, r"^tfsimclr: worker 0 \(.*, the chief\) ended: .*Make room")


@pytest.mark.slow
@pytest.mark.promise("workers-end")
def test_twenty_random_kills_change_nothing(flags, tmp_path):
    """SIGKILL of either worker, at any moment from the start to the last step."""
    random = np.random.default_rng(int(os.environ.get("SEED", "0")))
    more = ("--checkpoint_minutes=1e-9", "--epochs=20", "--worker_timeout=40")
    total = 20 * STEPS // 2
    folder, whole = tmp_path / "run", tmp_path / "whole"
    results = Processes([flags(whole, *more)] * 2).wait()
    assert [result[0] for result in results] == [0, 0], results
    both = [flags(folder, *more)] * 2
    seconds, steps = [], []

    for kill in range(20):
        processes = Processes(both)
        victim, other = (int(i) for i in random.permutation(2))
        # Half of them within a few steps, the others before the first one.
        target = newest_step(folder) + int(random.integers(0, 5)) if kill % 2 else 0
        delay = random.uniform(0, 0.5) if target else random.uniform(0, 20)
        while target and newest_step(folder) < min(target, total - 1):
            assert processes.processes[other].poll() is None, processes.wait()
            time.sleep(0.01)
        time.sleep(delay)
        processes.processes[victim].send_signal(signal.SIGKILL)
        start = time.monotonic()
        output, error = processes.processes[other].communicate(timeout=150)
        seconds.append(time.monotonic() - start)
        steps.append(newest_step(folder))
        code = processes.processes[other].returncode
        assert_one_line((code, output, error), rf"worker {victim} \(127.0.0.1:")
        processes.wait()
    print(f"Kills at the steps {steps}; the other ended after {max(seconds):.1f} s.")
    results = Processes(both).wait()
    assert [result[0] for result in results] == [0, 0], results
    assert_same(left_behind(folder, total), left_behind(whole, total))
