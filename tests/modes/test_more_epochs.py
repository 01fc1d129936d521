"""More `--epochs` on a run that is finished."""

import csv
import dataclasses
import json
import shutil

import pytest
from interruption import assert_same_arrays

from tfsimclr.modes import distill, evaluate, export, pretrain
from tfsimclr.runs import folder as run_folder
from tfsimclr.training import checkpoints


def train(config, dataset, folder):
    run_folder.prepare(config)
    pretrain.pretrain(config, dataset, folder)
    return checkpoints.load_latest(folder / "checkpoints")


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "schedule": "constant", "warmup_epochs": 0.5},
        {"method": "moco", "queue_size": 32, "val_share": 0.1},
    ],
    ids=["sgd", "moco"],
)
@pytest.mark.usefixtures("shallow")
def test_a_finished_run_gets_more_epochs(tiny, tmp_path, capsys, settings):
    """F16: a finished run with more epochs was refused.

    Siblings: a run that was stopped goes on to more epochs too; a cosine of the
    learning rate (lars, sgd) or of the EMA decay (byol) is another run and refused, as
    are fewer epochs, and more epochs in a mode that does not train; fine-tunings have a
    cosine and a folder for each setting; a distilled student was called finished.
    """
    exact = {"deterministic": True, **settings}
    config, dataset, straight = tiny(**exact, epochs=3)
    expected, expected_meta = train(config, dataset, straight)
    short = dataclasses.replace(config, epochs=1, workdir=str(tmp_path / "short"))
    train(short, dataset, tmp_path / "short")
    first = evaluate.evaluate(short, dataset, tmp_path / "short")
    assert first["pretrain"]["epochs"] == 1
    longer = dataclasses.replace(short, epochs=3)
    capsys.readouterr()
    arrays, meta = train(longer, dataset, tmp_path / "short")
    assert "has 1 epochs and goes on to 3" in capsys.readouterr().out
    assert_same_arrays(arrays, expected)
    assert len(meta["rows"]) == 3
    for row, other in zip(meta["rows"], expected_meta["rows"], strict=True):
        del row["images_per_second"], other["images_per_second"]
        assert row == other
    # What lies in the folder is that of the longer run.
    result = evaluate.evaluate(longer, dataset, tmp_path / "short")
    assert result["config"]["epochs"] == result["pretrain"]["epochs"] == 3
    assert json.loads((tmp_path / "short" / "result.json").read_text()) == result
    flags = (tmp_path / "short" / "flags.txt").read_text().splitlines()
    assert "--epochs=3" in flags and "--epochs=1" not in flags
    with open(tmp_path / "short" / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"optimizer": "lars"}, {"epochs": 4}, "2 epochs, and --schedule=cosine ends"),
        ({"method": "byol"}, {"epochs": 4}, "--ema_schedule=cosine ends.*--init="),
        (
            {"method": "byol", "optimizer": "lars"},
            {"epochs": 4},
            "--schedule and --ema_schedule=cosine",
        ),
        ({}, {"epochs": 1}, "--epochs=2 there, --epochs=1 here"),
        ({}, {"epochs": 4, "mode": "evaluate"}, "--epochs=2 there, --epochs=4 here"),
        ({}, {"epochs": 4, "seed": 1}, "--epochs=2 there.*--seed=0 there"),
    ],
)
def test_what_would_be_another_run_is_refused(tiny, settings, changes, message):
    config, _, folder = tiny(**settings)
    run_folder.prepare(config)
    before = (folder / "flags.txt").read_text()
    with pytest.raises(ValueError, match=message):
        run_folder.prepare(dataclasses.replace(config, **changes))
    assert (folder / "flags.txt").read_text() == before


def test_a_finished_student_gets_more_epochs(finetuned_once, tmp_path):
    config, dataset, run, _ = finetuned_once
    config = dataclasses.replace(
        config,
        mode="distill",
        teacher_dir=str(run),
        epochs=1,
        optimizer="adam",
        workdir=str(tmp_path / "student"),
    )
    run_folder.prepare(config)
    folder = distill.distill(config, dataset, tmp_path / "student")
    export.export_classifier(folder)
    longer = dataclasses.replace(config, epochs=2)
    run_folder.prepare(longer)
    distill.distill(longer, dataset, folder)
    result = json.loads((folder / "result.json").read_text())
    assert result["training"]["epochs"] == result["config"]["epochs"] == 2
    assert not (folder / "saved_model").exists()  # exported again by the mode
    shutil.rmtree(folder)
