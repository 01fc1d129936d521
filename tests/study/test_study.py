"""The study runner: its plan, failed runs, runs at a time, and one real study."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from tfsimclr.optimizers import schedules
from tfsimclr.settings import config as configs
from tfsimclr.study import command, plan, runner, tables

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAPER = ROOT / "flags/paper"
TEXTURES = f"--flagfile={ROOT / 'flags/study/textures.flags'}"
RATES = f"{PAPER},{ROOT / 'flags/study/rates'}"


def planned(overrides=(), seeds=1, experiments=PAPER, known=()):
    """Returns ({experiment: entry}, {run: Run})."""
    files = plan.experiment_files(str(experiments))
    out = pathlib.Path("/out")
    entries, runs = plan.plan(files, list(overrides), seeds, out, known)
    return entries, {run.name: run for run in runs}


def settings(row, overrides=(), **more):
    entries, runs = planned(overrides, **more)
    return runs[entries[row]["runs"]["0"]].config


@pytest.mark.quick
def test_the_plan_covers_every_experiment_of_the_paper_once():
    entries, runs = planned(seeds=3)
    assert sorted(entries) == sorted(tables.PAPER)
    assert all(sorted(x["runs"]) == ["0", "1", "2"] for x in entries.values())
    assert len(runs) == 8 * 3
    assert len({plan.compared(run.config) for run in runs.values()}) == 8 * 3
    assert {run.config.seed for run in runs.values()} == {0, 1, 2}
    for name, run in runs.items():
        assert run.config.workdir == f"/out/{name}"


def test_experiments_that_differ_in_the_feature_share_a_run():
    entries, runs = planned(seeds=2)
    assert entries["simclr_z"]["runs"] == entries["baseline_128"]["runs"]
    assert (entries["simclr_z"]["feature"], entries["tanh"]["feature"]) == ("z", "h")
    assert runs["baseline_128-seed0"].config.feature == "h"


def test_the_same_settings_are_found_by_comparison():
    entries, runs = planned(experiments=RATES)
    assert entries["sqrt_warmup"]["runs"] == entries["lars"]["runs"]
    assert len(entries) == 9 + 6 and len(runs) == 8 + 5
    peaks = {"none": 0.3, "linear": 0.15, "sqrt": 0.8485}
    for rule, peak in peaks.items():
        for name, epochs in ((rule, 0), (f"{rule}_warmup", 1)):
            config = runs[entries[name]["runs"]["0"]].config
            found = schedules.scaled_learning_rate(
                config.learning_rate, config.batch_size, config.learning_rate_scaling
            )
            assert found == pytest.approx(peak, abs=1e-4)
            assert (config.optimizer, config.warmup_epochs) == ("lars", epochs)


def test_runs_of_an_earlier_call_are_shared():
    _, runs = planned()
    rates, known = ROOT / "flags/study/rates", runs.values()
    entries, runs = planned(["--cache_dir=/c"], experiments=rates, known=known)
    assert entries["sqrt_warmup"]["runs"] == {"0": "lars-seed0"}
    assert runs["lars-seed0"].config.workdir == "/out/lars-seed0"
    assert runs["lars-seed0"].config.cache_dir == "/c"
    entries, _ = planned(["--epochs=3"], experiments=rates, known=known)
    assert entries["sqrt_warmup"]["runs"] == {"0": "sqrt_warmup-seed0"}


@pytest.mark.quick
@pytest.mark.parametrize("row", tables.PAPER)
def test_base_then_study_then_experiment(row):
    overrides = ["--dataset=textures", "--width=0.25", "--epochs=3", "--stem=medium"]
    overrides += ["--image_size=32", "--batch_size=64", "--proj_layers=5"]
    overrides += ["--learning_rate=0.5", "--proj_activation=elu", "--schedule=cosine"]
    paper, config = settings(row), settings(row, overrides)
    assert (config.dataset, config.width, config.epochs) == ("textures", 0.25, 3)
    assert (config.stem, config.image_size, config.backbone) == (
        *("medium", 32, "resnet18"),
    )
    # An experiment's own settings win over those of the study.
    own = {
        "baseline_128": {"batch_size": 128},
        "baseline_256": {"batch_size": 256},
        "tanh": {"proj_activation": "tanh"},
        "leaky_relu": {"proj_activation": "leaky_relu"},
        "layer3": {"proj_layers": 3},
        "layer4": {"proj_layers": 4},
        "lars": {"learning_rate": 0.075, "optimizer": "lars"},
        "lars_layer4": {"learning_rate": 0.075, "proj_layers": 4},
    }.get(row, {})
    given = {"batch_size": 64, "proj_layers": 5, "learning_rate": 0.5}
    given["proj_activation"] = "elu"
    for name, value in {**given, **own}.items():
        assert getattr(config, name) == value, name
    assert config.temperature == paper.temperature == 0.5


def test_the_base_s_rate_does_not_reach_lars():
    config = settings("lars_layer4", ["--epochs=5"])
    assert (config.learning_rate, config.learning_rate_scaling) == (0.075, "sqrt")
    assert (config.schedule, config.warmup_epochs) == ("cosine", 1)
    assert settings("layer4", ["--epochs=5"]).learning_rate == 3e-4


@pytest.mark.parametrize(
    "path", sorted((ROOT / "flags/study").glob("*.flags")), ids=lambda path: path.stem
)
def test_every_study_can_be_planned(path, capsys, tmp_path):
    text = path.read_text("utf-8")
    rows = re.search(r"^# Study: .*--experiments=(\S+)", text, re.M)
    places = rows[1].split(",") if rows else RATES.split(",")
    places = ",".join(str(ROOT / place) for place in places)
    arguments = [f"--flagfile={path}", f"--rows={places}", f"--out={tmp_path / 'x'}"]
    arguments += ["--data_dir=/images"] if "--dataset=folder" in text else []
    command.main(PAPER, [*arguments, "--dry_run"])
    text = capsys.readouterr().out
    own = {"small_batch": 8, "small_batch_cifar10": 9, "large_batch": 7}
    if path.stem in own:
        count = own[path.stem]
        assert f"{count} experiments, {3 * count} runs" in text
    elif rows:  # of its own
        assert "19 experiments, 57 runs" in text
        assert "byol_256-seed2: to do\n" in text
    else:
        assert "15 experiments, 39 runs" in text
        assert all(f"\n{row}: " in text for row in tables.PAPER)
        assert "baseline_128-seed2: to do, shared with baseline_128" in text
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch=1"], "epoch"),
        (["--epochs=0"], "--epochs must be above 0"),
        (["--epochs=1"], "--warmup_epochs must be below --epochs=1"),
        (["--seed=1"], "--seed is set by the study"),
        (["--workdir=x"], "--workdir is set by the study"),
        (["--seeds=0"], "--seeds must be at least 1, got 0"),
        (["--jobs=0"], "--jobs must be at least 1, got 0"),
        (["--experiments=nothing"], "nothing is not a flagfile"),
        ([f"--experiments={PAPER},{PAPER}"], "the same name"),
        (["baseline"], "Expected flags only"),
        (["--flagfile=nothing.flags"], "cannot read the flagfile"),
    ],
)
def test_bad_arguments_are_refused_before_any_run(arguments, message, tmp_path):
    with pytest.raises(SystemExit) as stop:
        command.main(PAPER, [TEXTURES, f"--out={tmp_path / 'x'}", *arguments])
    assert message in str(stop.value.code)
    assert len(str(stop.value.code).splitlines()) == 1
    assert not (tmp_path / "x").exists()


FAKE = """
import json, os, pathlib, signal, sys, time
given = {"proj_activation": "relu", "epochs": "40"}
given.update(x[2:].split("=", 1) for x in sys.argv[1:])
folder = pathlib.Path(given["workdir"])
folder.mkdir(exist_ok=True)
(folder / "starts.txt").open("a").write("x")
if given["proj_activation"] == os.environ.get("FAIL"):
    sys.exit("tfsimclr: this activation fails.")
config = {}
for name, value in given.items():
    try:
        config[name] = json.loads(value)
    except ValueError:
        config[name] = value
epochs = int(given["epochs"])
(folder / "environment.json").write_text(json.dumps(dict(os.environ)))
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
(folder / "cores.json").write_text(json.dumps(cores))
if "WAIT" in os.environ:  # for a signal, which is answered as a real run does
    def save(number, frame):
        time.sleep(0.3)
        (folder / "saved.txt").touch()
        sys.exit(1)
    signal.signal(signal.SIGTERM, save)
    (folder / "waits.txt").write_text(str(os.getpid()))
    time.sleep(60)
time.sleep(float(os.environ.get("SECONDS", 0)))
lines = ["epoch,loss_above_chance,contrastive_top1"]
lines += [f"{i + 1},-1,0.1" for i in range(epochs)]
(folder / "history.csv").write_text("\\n".join(lines))
features = {name: {"top1": 0.5, "knn": 0.4} for name in ("h", "z")}
result = {"config": config, "pretrain": {"epochs": epochs}, "features": features}
(folder / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Returns a function: arguments -> exit code of a study of runs without training.

    Its attribute `starts` tells how often each run was started.
    """
    program = tmp_path / "fake.py"
    program.write_text(FAKE)
    monkeypatch.setattr(runner, "COMMAND", [sys.executable, "-S", str(program)])
    out = tmp_path / "study"

    def conduct(*arguments):
        try:
            command.main(PAPER, [TEXTURES, f"--out={out}", "--seeds=1", *arguments])
        except SystemExit as stop:
            return stop.code
        return 0

    conduct.out = out
    conduct.state = lambda: json.loads((out / "study.json").read_text())
    conduct.starts = lambda: {
        path.parent.name: len(path.read_text()) for path in out.glob("*/starts.txt")
    }
    return conduct


def test_a_failed_run_is_reported_and_the_others_continue(fake, monkeypatch, capsys):
    monkeypatch.setenv("FAIL", "leaky_relu")
    assert fake() == 1
    output = capsys.readouterr()
    assert "7 of 8 runs finished" in output.out
    assert "leaky_relu-seed0: failed tfsimclr: this activation fails." in output.out
    assert "Failed: leaky_relu-seed0: tfsimclr: this activation" in output.err
    states = {name: x["state"] for name, x in fake.state()["runs"].items()}
    assert states.pop("leaky_relu-seed0") == "failed"
    assert set(states.values()) == {"finished"} and len(states) == 7
    # The same command tries again what failed, and only that.
    monkeypatch.delenv("FAIL")
    assert fake() == 0
    starts = fake.starts()
    assert starts.pop("leaky_relu-seed0") == 2
    assert set(starts.values()) == {1} and len(starts) == 7
    assert "8 of 8 runs finished" in capsys.readouterr().out


def test_finished_runs_are_skipped_and_seeds_and_experiments_can_be_added(fake, capsys):
    assert fake() == 0
    assert fake("--seeds=2", f"--experiments={RATES}") == 0
    assert capsys.readouterr().out.count("finished before") == 8
    assert len(fake.starts()) == (8 + 5) * 2
    assert set(fake.starts().values()) == {1}
    assert fake() == 0  # and what was added is not forgotten
    state = fake.state()
    assert len(state["rows"]) == 15 and len(state["runs"]) == 26
    assert sorted(state["rows"]["simclr_z"]["runs"]) == ["0", "1"]


def test_a_study_of_other_settings_is_refused(fake, capsys):
    assert fake(f"--rows={ROOT}/flags/paper/tanh.flags") == 0
    message = fake("--epochs=3")
    there, here = message.split(" there, ")
    assert "other settings" in there and "--epochs=3 " in here
    assert fake("--dry_run", "--cache_dir=/elsewhere") == 0


def read_all(out, name):
    """Returns {run: content} of a JSON file of every run folder."""
    return {x.parent.name: json.loads(x.read_text()) for x in out.glob(f"*/{name}")}


def test_several_runs_at_a_time_give_the_same_study(fake, monkeypatch, capsys):
    monkeypatch.setenv("SECONDS", "0.2")
    monkeypatch.setenv("FAIL", "tanh")
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runner, "visible_gpus", lambda: [])
    assert fake("--jobs=2") == 1
    output = capsys.readouterr()
    assert "7 of 8 runs finished" in output.out and "Failed: tanh" in output.err
    # The second run starts before the first one ends.
    started = [x for x in output.out.splitlines() if x.startswith("[")][:2]
    assert [x.split("/")[0] for x in started] == ["[1", "[2"]
    assert all(x.endswith("to do") for x in started)
    states = {name: x["state"] for name, x in fake.state()["runs"].items()}
    assert states.pop("tanh-seed0") == "failed"
    assert set(states.values()) == {"finished"}
    by_jobs = read_all(fake.out, "result.json")
    monkeypatch.delenv("FAIL")
    assert fake("--jobs=3") == 0  # repeats what failed, and only that
    starts = fake.starts()
    assert starts.pop("tanh-seed0") == 2 and set(starts.values()) == {1}
    for path in fake.out.glob("*/result.json"):
        path.unlink()
    assert fake() == 0
    in_turn = read_all(fake.out, "result.json")
    assert {**in_turn, **by_jobs} == in_turn and len(by_jobs) == 7


def test_the_cores_are_divided_among_the_runs(fake, monkeypatch):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "7")  # the user's own
    monkeypatch.setenv("SECONDS", "0.2")
    monkeypatch.setattr(runner, "visible_gpus", lambda: [])
    assert fake("--jobs=2") == 0
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        halves = runner.share(cores, 2)
        used = list(read_all(fake.out, "cores.json").values())
        assert all(x in halves for x in used) and all(x in used for x in halves)
    else:
        halves = runner.share(list(range(os.cpu_count())), 2)
    for variables in read_all(fake.out, "environment.json").values():
        assert int(variables["TF_NUM_INTRAOP_THREADS"]) in {len(x) for x in halves}
        assert variables["TF_NUM_INTEROP_THREADS"] == "7"


def test_one_run_at_a_time_has_the_whole_machine(fake, monkeypatch):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    assert fake(f"--experiments={PAPER}/tanh.flags") == 0
    (variables,) = read_all(fake.out, "environment.json").values()
    assert "TF_NUM_INTRAOP_THREADS" not in variables
    if hasattr(os, "sched_getaffinity"):
        (cores,) = read_all(fake.out, "cores.json").values()
        assert cores == sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("items", "parts", "expected"),
    [
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([0, 1, 2, 3, 4], 2, [[0, 1], [2, 3, 4]]),
        ([4, 7], 3, [[4], [7], [4]]),
        ([], 2, [[], []]),
    ],
)
def test_share(items, parts, expected):
    assert runner.share(items, parts) == expected


@pytest.mark.parametrize(
    ("gpus", "expected", "shared"),
    [
        ("0", ["0", "0"], True),
        ("2,3", ["2", "3"], False),
        ("0,1,2", ["0", "1,2"], False),
    ],
)
def test_the_gpus_are_divided_among_the_runs(fake, monkeypatch, gpus, expected, shared):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH", raising=False)
    monkeypatch.setenv("SECONDS", "0.2")
    assert fake("--jobs=2") == 0
    all_variables = read_all(fake.out, "environment.json").values()
    used = {variables["CUDA_VISIBLE_DEVICES"] for variables in all_variables}
    assert used == set(expected)
    for variables in all_variables:
        assert ("TF_FORCE_GPU_ALLOW_GROWTH" in variables) == shared


def test_a_killed_run_is_reported_and_repeated(fake, monkeypatch, capsys):
    monkeypatch.setenv("WAIT", "1")
    killer = threading.Thread(target=signal_waiting, args=(fake.out, signal.SIGKILL, 1))
    killer.start()
    assert fake("--jobs=2", f"--experiments={PAPER}/tanh.flags") == 1
    killer.join()
    assert "tanh-seed0: failed Ended by SIGKILL." in capsys.readouterr().out
    monkeypatch.delenv("WAIT")
    assert fake("--jobs=2", f"--experiments={PAPER}/tanh.flags") == 0


def signal_waiting(out, number, count):
    """Sends a signal to `count` runs that wait, or to this process if count is 0."""
    end = time.monotonic() + 60
    while len(waiting := list(out.glob("*/waits.txt"))) < (count or 2):
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.1)
    for path in waiting if count else ():
        os.kill(int(path.read_text()), number)
    if not count:
        os.kill(os.getpid(), number)


@pytest.fixture
def sigint():
    """Ctrl-C as in a terminal: a shell's background job would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_stops_all_runs_after_they_have_saved(fake, monkeypatch, capsys):
    monkeypatch.setenv("WAIT", "1")
    sender = threading.Thread(target=signal_waiting, args=(fake.out, signal.SIGINT, 0))
    sender.start()
    assert fake("--jobs=2") == 1
    sender.join()
    output = capsys.readouterr()
    assert "Stopping: waiting for 2 runs to save." in output.out
    assert "The same command continues the study" in output.err
    assert len(list(fake.out.glob("*/saved.txt"))) == 2
    states = [x["state"] for x in fake.state()["runs"].values()]
    assert sorted(states) == ["interrupted"] * 2 + ["waiting"] * 6
    monkeypatch.delenv("WAIT")
    assert fake("--jobs=2") == 0
    assert sorted(fake.starts().values()) == [1] * 6 + [2] * 2


def test_the_processes_end_if_the_study_fails(fake, monkeypatch):
    monkeypatch.setenv("WAIT", "1")

    def fail(*arguments):
        while not list(fake.out.glob("*/waits.txt")):
            time.sleep(0.02)
        raise OSError("No space left on device")

    monkeypatch.setattr(runner, "_wait", fail)
    assert "No space left" in fake()
    assert len(list(fake.out.glob("*/saved.txt"))) == 1


def test_a_study_of_version_0_1_continues(fake, capsys):
    tanh = f"--experiments={PAPER}/tanh.flags"
    assert fake(tanh, "--ema=0.5") == 0  # the flag's old name
    # Version 0.1 stored old names, and the default of the head's batch norm.
    old_names = {new: old for old, new in configs.ALIASES.items()}

    def age(settings):
        settings = {old_names.get(k, k): v for k, v in settings.items()}
        newer = ("pred_activation", "pred_batch_norm")
        return {k: v for k, v in settings.items() if k not in newer}

    state = fake.state()
    state["settings"] = age(state["settings"])
    assert state["settings"]["ema"] == 0.5
    for name, entry in state["runs"].items():
        entry["config"] = {**age(entry["config"]), "proj_batch_norm": "false"}
        path = fake.out / name / "result.json"
        result = {**json.loads(path.read_text()), "config": entry["config"]}
        path.write_text(json.dumps(result))
    (fake.out / "study.json").write_text(json.dumps(state))
    capsys.readouterr()
    assert fake(tanh, "--ema_decay=0.5", "--seeds=2") == 0
    assert capsys.readouterr().out.count("finished before") == 1
    assert fake.starts() == {"tanh-seed0": 1, "tanh-seed1": 1}
    tables.main([str(fake.out)])
    assert "2 of 2 runs are finished" in capsys.readouterr().out


def test_a_damaged_study_is_reported(fake):
    fake.out.mkdir()
    (fake.out / "study.json").write_text('{"settings": {}, "rows": {')
    assert "study.json is damaged" in fake()


@pytest.mark.parametrize(
    "name", ["study", "tables", "figures", "simclr_v2_table", "fixed_target"]
)
def test_every_script_answers_help(name):
    program = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"scripts/{name}.py" in done.stdout


def test_a_plan_loads_no_tensorflow(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from tfsimclr.study import command\n"
        f"arguments = [{TEXTURES!r}, '--out={tmp_path / 'x'}', '--dry_run']\n"
        f"command.main(pathlib.Path({str(PAPER)!r}), arguments)\n"
        "print({'tensorflow', 'keras', 'pandas', 'scipy'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_the_plan_names_the_experiments_that_override_a_flag(capsys, tmp_path):
    command.main(PAPER, [TEXTURES, f"--out={tmp_path}", "--batch_size=64", "--dry_run"])
    text = capsys.readouterr().out
    assert "--batch_size=64 does not hold for the experiments" in text
    assert "set it themselves: baseline_128, baseline_256." in text


def test_the_time_left_follows_the_pace(tmp_path):
    study = runner.Study(tmp_path, {})
    study.add(*plan.plan(plan.experiment_files(RATES), [], 1, tmp_path))
    runs = list(study.runs.values())
    assert study.progress(runs) == "0% of the study"
    runs[0].folder.mkdir()
    (runs[0].folder / "history.csv").write_text("epoch\n" + "1\n" * 40)
    study.entry(runs[0])["seconds"] = 4000.0  # 100 s an epoch, 12 times 40 to go
    assert study.progress(runs) == "8% of the study, about 13 h 20 min left"
    study.entry(runs[1])["state"] = "failed"
    assert study.progress(runs) == "15% of the study, about 12 h 13 min left"


@pytest.fixture
def images(tmp_path):
    """Returns a folder of tiny PNG files in two classes."""
    random = np.random.default_rng(0)
    for label in ("dark", "light"):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for i in range(40):
            pixels = random.integers(0, 128, (16, 16, 3)) + 100 * (label == "light")
            Image.fromarray(pixels.astype("uint8")).save(folder / f"{i}.png")
    return tmp_path / "images"


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def test_a_real_study_interrupted_and_restarted(images, tmp_path, capsys):
    base = tmp_path / "base.flags"
    lines = ["--dataset=stl10", "--backbone=resnet18", "--epochs=40"]
    base.write_text("\n".join([*lines, "--image_size=96", "--batch_size=16"]))
    rows = tmp_path / "rows"
    rows.mkdir()
    for name, own in (("a", ""), ("b", "--batch_size=4096"), ("z", "--feature=z")):
        (rows / f"{name}.flags").write_text(f"--flagfile=../base.flags\n{own}\n")
    out = tmp_path / "study"
    command = [sys.executable, str(ROOT / "scripts/study.py"), f"--rows={rows}"]
    command += [f"--out={out}", "--seeds=1", "--dataset=folder", "--epochs=2"]
    command += [f"--data_dir={images}", f"--cache_dir={tmp_path / 'cache'}"]
    command += ["--backbone=resnet10", "--width=0.125", "--image_size=16"]
    command += ["--probe_epochs=2", "--probe_learning_rate=3e-3", "--stem=medium"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start():
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment, cwd=tmp_path, **pipe)

    first = start()
    wait_for((out / "a-seed0/history.csv").exists, first)  # after the first epoch
    first.send_signal(signal.SIGTERM)
    text, _ = first.communicate(timeout=60)
    assert first.returncode == 1, text
    assert "The same command continues the study" in text
    state = json.loads((out / "study.json").read_text())
    assert state["runs"]["a-seed0"]["state"] == "interrupted"
    assert not (out / "b-seed0").exists()

    second = start()
    text, _ = second.communicate(timeout=200)
    assert second.returncode == 1, text
    assert "continues after epoch" in text and "1 of 2 runs finished" in text
    assert "Failed: b-seed0: tfsimclr: --batch_size=4096 is more than the 64" in text
    assert "Going on at step" in (out / "logs/a-seed0.txt").read_text()
    state = json.loads((out / "study.json").read_text())
    states = {name: x["state"] for name, x in state["runs"].items()}
    assert states == {"a-seed0": "finished", "b-seed0": "failed"}
    assert state["rows"]["z"]["runs"] == {"0": "a-seed0"}
    result = json.loads((out / "a-seed0/result.json").read_text())
    assert list(result["features"]) == ["pixels", "random_h", "h", "head_1", "z"]
    assert result["pretrain"]["epochs"] == 2

    tables.main([str(out)])
    text = capsys.readouterr().out
    assert "1 of 2 runs are finished" in text
    assert re.search(r"\| b +\| 0 +\| missing ", text)
