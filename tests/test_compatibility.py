"""Files of version 0.1.0 (commit e526151): run folders, checkpoints and .keras files.

`data/legacy` holds runs that were stopped after one of two epochs, one that is
finished, scored and fine-tuned, and saved models with the features that they gave.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from command_line import command, config_of

from tfsimclr.data import dataset as datasets
from tfsimclr.data import prepare, textures
from tfsimclr.modes import export
from tfsimclr.runs import classifiers, loading
from tfsimclr.settings import config as configs
from tfsimclr.settings import flagfiles
from tfsimclr.training import checkpoints

LEGACY = pathlib.Path(__file__).parent / "data" / "legacy"
SPLITS = {"unlabeled": 80, "train": 60, "test": 40}
METHODS = ("simclr", "moco", "byol")


@pytest.fixture
def legacy(tmp_path, monkeypatch):
    """Returns a copy of the old files, which is the working directory."""
    monkeypatch.setattr(textures, "SPLITS", SPLITS)
    shutil.copytree(LEGACY, tmp_path / "legacy")
    monkeypatch.chdir(tmp_path / "legacy")
    return tmp_path / "legacy"


@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumes_evaluates_and_exports_with_its_own_flags(legacy, method, capsys):
    folder = legacy / method
    first_row = (folder / "history.csv").read_text().splitlines()[1]
    command(f"--flagfile={method}/flags.txt")
    assert "step 5 of 10" in capsys.readouterr().out
    rows = (folder / "history.csv").read_text().splitlines()[1:]
    assert rows[0] == first_row and len(rows) == 2
    _, meta = checkpoints.load_latest(folder / "checkpoints")
    assert meta["step"] == 10 and len(meta["rows"]) == 2
    result = json.loads((folder / "result.json").read_text())
    assert result["pretrain"]["epochs"] == 2
    assert result["features"].keys() >= {"pixels", "random_h", "h", "head_1", "z"}
    serve = tf.saved_model.load(folder / "saved_model").signatures["serving_uint8"]
    outputs = serve(images=tf.zeros([2, 20, 20, 3], tf.uint8))
    assert outputs.keys() >= {"h", "z", "logits"}
    # The folder is now one of today's version and still opens.
    command(f"--flagfile={method}/flags.txt", "--mode=evaluate")


def test_a_run_of_other_settings_is_refused(legacy):
    with pytest.raises(ValueError, match="other settings.*--ema_decay=0.9 there"):
        command("--flagfile=simclr/flags.txt", "--ema=0.5")


LOAD = """
    import sys
    import {modules}
    import numpy as np

    for method in {methods}:
        model = keras.models.load_model(f"{folder}/{{method}}.keras")
        saved = np.load(f"{folder}/{{method}}-features.npz")
        features = model.features(saved["images"])
        assert set(features) == set(saved.files) - {{"images"}}
        for name, value in features.items():
            np.testing.assert_allclose(value, saved[name], rtol=1e-5, atol=1e-5)
    print("all equal")
"""


def test_saved_models_load_after_the_two_imports(tmp_path):
    """The other order of the imports is tested by test_package."""
    modules = "tfsimclr, keras"
    program = LOAD.format(modules=modules, methods=METHODS, folder=LEGACY)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.strip().endswith("all equal"), done.stderr


def test_the_restored_model_gives_the_features_of_the_saved_one(legacy):
    config = config_of("--flagfile=simclr/flags.txt")
    model, meta = loading.model(config, legacy / "simclr")
    assert meta["step"] == 5
    with np.load(legacy / "simclr-features.npz") as saved:
        for name, value in model.features(saved["images"]).items():
            np.testing.assert_allclose(value, saved[name], rtol=1e-5, atol=1e-5)


def test_a_fine_tuned_network_loads(legacy):
    (folder,) = (legacy / "finetuned" / "finetuned").iterdir()
    model, meta = classifiers.load(folder)
    assert classifiers.layers(meta) == ("h", "head_1")
    assert len(meta["class_names"]) == 10
    layers = model(tf.zeros([2, 16, 16, 3]), training=False)
    assert layers[-1].shape == (2, 10)
    config = configs.from_saved({"teacher": "finetuned", "labels": 0.5})
    assert classifiers.teacher_folder(config) == folder.relative_to(legacy)


def test_a_finished_fine_tuning_is_left_as_it_is(legacy, capsys):
    (folder,) = (legacy / "finetuned" / "finetuned").iterdir()
    before = (folder / "result.json").read_bytes()
    command(
        *("--flagfile=finetuned/flags.txt", "--mode=finetune", "--labels=0.5"),
        *("--finetune_epochs=2", "--finetune_batch_size=10"),
    )
    assert "Finished before" in capsys.readouterr().out
    assert (folder / "result.json").read_bytes() == before
    assert (folder / "saved_model" / "saved_model.pb").exists()


def test_an_old_run_is_exported_without_flags_or_data(legacy):
    config = flagfiles.read_config(legacy / "simclr" / "flags.txt")
    assert config.ema_decay == 0.9 and config.optimizer == "lars"
    export.export(config, None, legacy / "simclr")
    assert (legacy / "simclr" / "saved_model" / "saved_model.pb").exists()
    assert (legacy / "simclr" / "exported" / "encoder.keras").exists()


def test_an_old_result_is_understood(legacy):
    result = json.loads((legacy / "finetuned" / "result.json").read_text())
    config = configs.from_saved(result["config"])
    assert config.label_fraction == result["config"]["labels"]
    assert config.ema_decay == result["config"]["ema"]
    assert config.teacher_dir == "" and config.loss_block_rows == 0


def test_a_store_is_still_valid(legacy, monkeypatch):
    """Version 0.1 identified the textures by the checksum of their source file."""

    def refuse(*arguments, **options):
        raise AssertionError("the store was prepared again")

    folder = legacy / "cache" / "textures-16px-af4a8afe"
    folder.parent.mkdir()
    (legacy / "store").rename(folder)
    monkeypatch.setattr(prepare.store_writer, "create", refuse)
    dataset = datasets.load("textures", image_size=16, cache_dir=str(folder.parent))
    assert [len(s.images) for s in (dataset.unlabeled, dataset.train)] == [80, 60]
    images, labels = textures.make("train", 16)
    np.testing.assert_array_equal(dataset.train.images, images)
    np.testing.assert_array_equal(dataset.train.labels, labels)
