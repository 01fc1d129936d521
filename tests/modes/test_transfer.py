"""`--eval_dataset`: scores of a run's encoder on other labelled data."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from command_line import command
from PIL import Image

from tfsimclr import resolve
from tfsimclr.modes import evaluate, transfer
from tfsimclr.runs import folder as run_folder
from tfsimclr.settings.config import Config


@pytest.fixture
def other(tmp_path):
    """Returns a folder of three classes of 10 colours, 30 x 20 pixels."""
    random = np.random.default_rng(0)
    for label, name in enumerate(("red", "green", "blue")):
        (tmp_path / "other" / name).mkdir(parents=True)
        for i in range(10):
            pixels = random.integers(0, 100, (30, 20, 3), dtype=np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(tmp_path / "other" / name / f"{i}.png")
    return tmp_path / "other"


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_an_encoder_is_scored_on_other_data(finished, other, capsys):
    """F17: an encoder could be scored only on the data of its run.

    Siblings: the run's own data are not opened and may be gone, as for an export; its
    scores, classifier, confusion matrix and settings stay as they are, also flags.txt,
    so that a later `--mode=evaluate` scores its own data again; images of another size
    are resized; scores of an encoder that was trained further are dropped; data without
    labels, and a folder without a path, are refused. The name of the run folder does
    not depend on it. Fine-tuning and distillation on other data remain refused.
    """
    config, dataset, folder = finished
    run_folder.prepare(config)
    own = evaluate.evaluate(config, dataset, folder)
    before = contents(folder)
    shutil.rmtree(config.cache_dir)  # with the store of the run's own images
    capsys.readouterr()
    command(f"--workdir={folder}", "--mode=evaluate", f"--eval_data_dir={other}")
    out = capsys.readouterr().out
    assert "24 training and 6 test images of 3 classes" in out
    result = json.loads((folder / "result.json").read_text())
    (name,) = result.pop("evaluations")
    entry = json.loads((folder / "result.json").read_text())["evaluations"][name]
    assert name.startswith("other-")
    assert entry["class_names"] == ["blue", "green", "red"]
    assert entry["num_images"] == {"train": 24, "test": 6}
    assert entry["features"].keys() == own["features"].keys()
    assert entry["features"]["pixels"]["knn"] == 1  # colours tell the classes
    assert entry["top1"] == entry["features"]["h"]["top1"]
    assert (entry["dataset"], entry["epochs"]) == ("folder", 1)
    # Nothing else changed.
    assert result == {k: v for k, v in own.items() if k != "evaluations"}
    after = contents(folder)
    table = folder / "evaluations" / name / "confusion.csv"
    assert after.keys() - before.keys() == {table.relative_to(folder)}
    with open(table, newline="") as file:
        assert next(csv.reader(file)) == ["label", "blue", "green", "red"]
    changed = {str(path) for path in before if before[path] != after[path]}
    assert changed == {"result.json"}
    # The run's own evaluation keeps the entry, unless the encoder is another one.
    model = evaluate.loading.model(config, folder)[0]
    assert set(evaluate.other_evaluations(folder, model)) == {name}
    model.encoder.trainable_variables[0].assign_add(
        np.ones(model.encoder.trainable_variables[0].shape)
    )
    assert evaluate.other_evaluations(folder, model) == {}


def test_a_run_that_is_only_pretrained_is_scored_too(finished, other):
    config, _, folder = finished
    settings = {"eval_data_dir": str(other), "mode": "evaluate"}
    transfer.evaluate(dataclasses.replace(config, **settings), folder)
    result = json.loads((folder / "result.json").read_text())
    assert result["top1"] is None and result["features"] == {}
    assert len(result["evaluations"]) == 1


@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_dataset": "folder"}, "--eval_dataset=folder needs --eval_data_dir"),
        ({"eval_dataset": "textures", "eval_data_dir": "x"}, "means nothing to"),
        ({"eval_label_key": "x"}, "--eval_label_key=x means nothing"),
        ({"eval_data_dir": "x", "eval_label_key": "x"}, "--eval_label_key=x means no"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        resolve.check(Config(**settings))


@pytest.mark.quick
def test_other_data_do_not_make_another_run():
    config = Config(eval_data_dir="/x")
    assert config.other_dataset == "folder" and not Config().other_dataset
    assert config.default_workdir() == Config().default_workdir()
    assert config.pretraining() == Config().pretraining()


def test_data_without_labels_are_refused(finished, other):
    config, _, folder = finished
    config = dataclasses.replace(config, eval_data_dir=str(other / "red"))
    with pytest.raises(ValueError, match="no labelled train and test images"):
        transfer.evaluate(config, folder)
