"""The study runner: its plan, what it makes of failures, and one real study."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tfsimclr.optimizers import schedules

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import study as script  # noqa: E402  (after the path)
import study_plan  # noqa: E402
import study_runs  # noqa: E402
import tables  # noqa: E402

TEXTURES = f"--flagfile={ROOT / 'flags/study/textures.flags'}"
RATES = f"{ROOT / 'flags/paper'},{ROOT / 'flags/study/rates'}"


def planned(overrides=(), seeds=1, rows=ROOT / "flags/paper", known=()):
    """Returns ({row: entry}, {run: Run})."""
    files = study_plan.row_files(str(rows))
    out = pathlib.Path("/out")
    entries, runs = study_plan.plan(files, list(overrides), seeds, out, known)
    return entries, {run.name: run for run in runs}


def settings(row, overrides=(), **more):
    entries, runs = planned(overrides, **more)
    return runs[entries[row]["runs"]["0"]].config


def test_the_plan_covers_every_row_of_the_paper_once():
    entries, runs = planned(seeds=3)
    assert sorted(entries) == sorted(tables.PAPER)
    assert all(sorted(x["runs"]) == ["0", "1", "2"] for x in entries.values())
    assert len(runs) == 8 * 3
    assert len({study_plan.compared(run.config) for run in runs.values()}) == 8 * 3
    assert {run.config.seed for run in runs.values()} == {0, 1, 2}
    for name, run in runs.items():
        assert run.config.workdir == f"/out/{name}"


def test_rows_that_differ_in_the_feature_share_a_run():
    entries, runs = planned(seeds=2)
    assert entries["simclr_z"]["runs"] == entries["baseline_128"]["runs"]
    assert (entries["simclr_z"]["feature"], entries["tanh"]["feature"]) == ("z", "h")
    assert runs["baseline_128-seed0"].config.feature == "h"


def test_the_same_settings_are_found_by_comparison():
    entries, runs = planned(rows=RATES)
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
    _, before = planned()
    rows = ROOT / "flags/study/rates"
    entries, runs = planned(["--cache_dir=/c"], rows=rows, known=before.values())
    assert entries["sqrt_warmup"]["runs"] == {"0": "lars-seed0"}
    assert runs["lars-seed0"].config.workdir == "/out/lars-seed0"
    assert runs["lars-seed0"].config.cache_dir == "/c"
    entries, _ = planned(["--epochs=3"], rows=rows, known=before.values())
    assert entries["sqrt_warmup"]["runs"] == {"0": "sqrt_warmup-seed0"}


@pytest.mark.parametrize("row", tables.PAPER)
def test_base_then_study_then_row(row):
    overrides = ["--dataset=textures", "--width=0.25", "--epochs=3", "--stem=medium"]
    overrides += ["--image_size=32", "--batch_size=64", "--proj_layers=5"]
    overrides += ["--learning_rate=0.5", "--proj_activation=elu", "--schedule=cosine"]
    paper, config = settings(row), settings(row, overrides)
    assert (config.dataset, config.width, config.epochs) == ("textures", 0.25, 3)
    assert (config.stem, config.image_size, config.backbone) == (
        *("medium", 32, "resnet18"),
    )
    # What a row is about stays, whatever the study says.
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
    rows = re.search(r"^# Study: .*--rows=(\S+)", text, re.M)
    places = rows[1].split(",") if rows else RATES.split(",")
    places = ",".join(str(ROOT / place) for place in places)
    arguments = [f"--flagfile={path}", f"--rows={places}", f"--out={tmp_path / 'x'}"]
    arguments += ["--data_dir=/images"] if "--dataset=folder" in text else []
    script.main([*arguments, "--dry_run"])
    text = capsys.readouterr().out
    if rows:  # of its own
        assert "17 rows, 51 runs" in text
        assert "byol_256-seed2: to do\n" in text
    else:
        assert "15 rows, 39 runs" in text
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
        (["--rows=nothing"], "nothing is no flagfile"),
        ([f"--rows={ROOT}/flags/paper,{ROOT}/flags/paper"], "the same name"),
        (["baseline"], "Expected flags only"),
        (["--flagfile=nothing.flags"], "cannot read the flagfile"),
    ],
)
def test_bad_arguments_are_refused_before_any_run(arguments, message, tmp_path):
    with pytest.raises(SystemExit) as stop:
        script.main([TEXTURES, f"--out={tmp_path / 'x'}", *arguments])
    assert message in str(stop.value.code)
    assert len(str(stop.value.code).splitlines()) == 1
    assert not (tmp_path / "x").exists()


FAKE = """
import json, os, pathlib, sys, time
given = dict(x[2:].split("=", 1) for x in sys.argv[1:])
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
    monkeypatch.setattr(study_runs, "COMMAND", [sys.executable, "-S", str(program)])
    out = tmp_path / "study"

    def conduct(*arguments):
        try:
            script.main([TEXTURES, f"--out={out}", "--seeds=1", *arguments])
        except SystemExit as stop:
            return stop.code
        return 0

    conduct.out = out
    conduct.state = lambda: json.loads((out / "study.json").read_text())
    conduct.starts = lambda: {
        path.parent.name: len(path.read_text()) for path in out.glob("*/starts.txt")
    }
    return conduct


def test_a_failed_row_is_reported_and_the_rest_go_on(fake, monkeypatch, capsys):
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


def test_finished_runs_are_skipped_and_seeds_and_rows_can_be_added(fake, capsys):
    assert fake() == 0
    assert fake("--seeds=2", f"--rows={RATES}") == 0
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


def test_the_plan_names_what_does_not_reach_a_row(capsys, tmp_path):
    script.main([TEXTURES, f"--out={tmp_path}", "--batch_size=64", "--dry_run"])
    text = capsys.readouterr().out
    assert "Not --batch_size=64, but their own: baseline_128, baseline_256." in text


def test_the_time_left_follows_the_pace(tmp_path):
    study = study_runs.Study(tmp_path, {})
    study.add(*study_plan.plan(study_plan.row_files(RATES), [], 1, tmp_path))
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
    assert "The same command goes on from here" in text
    state = json.loads((out / "study.json").read_text())
    assert state["runs"]["a-seed0"]["state"] == "interrupted"
    assert not (out / "b-seed0").exists()

    second = start()
    text, _ = second.communicate(timeout=200)
    assert second.returncode == 1, text
    assert "to go on after epoch" in text and "1 of 2 runs finished" in text
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
    assert "1 of 2 runs are finished" in text and "| b | 0 | missing |" in text
