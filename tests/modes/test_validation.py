"""`--val_share`: images that are held out, and what a run records on them."""

import csv
import dataclasses

import keras
import numpy as np
import pytest
from PIL import Image

from tfsimclr import build, resolve, run
from tfsimclr.data import batches, sampling
from tfsimclr.modes import pretrain
from tfsimclr.runs import folder as run_folder
from tfsimclr.runs import loading
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints, fit


@pytest.mark.quick
@pytest.mark.parametrize(
    ("share", "limit", "held_out"), [(0.0, 0, 0), (0.1, 0, 10), (0.25, 40, 10)]
)
def test_rows_are_held_out_once_and_for_all_seeds(share, limit, held_out):
    rows, validation = sampling.pretraining_rows(100, limit, share)
    assert len(validation) == held_out == sampling.num_validation(limit or 100, share)
    used = sampling.random_subset(np.arange(100), limit)
    np.testing.assert_array_equal(np.sort(np.concatenate([rows, validation])), used)
    larger = sampling.pretraining_rows(100, limit, share + 0.1)[1]
    assert set(validation) < set(larger)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("given", "count", "has_test", "share"),
    [
        (None, 1000, True, 0.0),
        (None, 1000, False, 0.1),
        (None, 50_000, False, 0.04),  # 2,000 images
        (None, 19, False, 0.0),
        (None, 20, False, 0.1),
        (0.0, 1000, False, 0.0),
        (0.2, 1000, True, 0.2),
    ],
)
def test_the_share(given, count, has_test, share):
    config = Config(val_share=given, batch_size=16)
    assert resolve.resolve_val_share(config, count, has_test) == share


@pytest.mark.quick
def test_too_few_images_are_noted_by_default_and_refused_if_asked_for(capsys):
    config = Config(batch_size=95)
    assert resolve.resolve_val_share(config, 100, False) == 0
    assert "100 images are too few" in capsys.readouterr().out
    for share in (0.1, 0.01):
        asked = dataclasses.replace(config, val_share=share)
        with pytest.raises(ValueError, match="--val_share=0.*at least 2"):
            resolve.resolve_val_share(asked, 100, False)


@pytest.mark.quick
@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4, 4]), (8, [4, 4]), (3, [3])])
def test_validation_batches_have_one_size_and_hold_every_image(count, sizes):
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1).repeat(3, axis=3)
    rows = batches.Rows(images, np.arange(count)[::-1])
    seen = [batch.numpy()[:, 0, 0, 0] for batch in batches.validation_batches(rows, 4)]
    assert [len(batch) for batch in seen] == sizes
    assert set(np.concatenate(seen)) == set(range(count))
    np.testing.assert_array_equal(seen[0], np.arange(count)[::-1][:4])


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_held_out_images_are_scored_every_epoch_and_never_trained_on(tiny, capsys):
    config, dataset, folder = tiny(val_share=0.25, deterministic=True)
    keras.utils.set_random_seed(0)
    run_folder.prepare(config)
    pretrain.pretrain(config, dataset, folder)
    out = capsys.readouterr().out
    assert "60 images; 20 are held out" in out
    assert "val_loss was lowest after epoch" in out
    assert "val_contrastive_top1 highest after epoch" in out
    # The images that are left, trained on by themselves, give the same weights.
    images, validation = build.pretraining_images(config, dataset)
    alone = build.method(config)
    schedule = build.schedule(config, 60 // 16)
    optimizer = build.optimizer(config, schedule, alone.learned_variables)
    settings = {"batch_size": 16, "seed": 0, "epochs": 2}
    copy = np.array(images)
    fit.fit(alone, optimizer, schedule, copy, folder.parent / "alone", **settings)
    model, _ = loading.model(config, folder)
    assert checkpoints.hash_weights(model) == checkpoints.hash_weights(alone)
    row = history(folder)[-1]
    assert [name for name in row if name.startswith("val_")]
    assert not [k for k in history(folder.parent / "alone")[0] if k.startswith("val_")]
    # What the last row says is what the trained model gives.
    model.compile(optimizer="sgd")
    scores = model.evaluate(
        batches.validation_batches(validation, 16), return_dict=True, verbose=0
    )
    assert set(scores) == {"loss", "loss_above_chance", "contrastive_top1"}
    for name, value in scores.items():
        assert float(row[f"val_{name}"]) == pytest.approx(value, abs=1e-4)


@pytest.fixture
def flat_folder(tmp_path):
    """Returns a folder of 40 images without labels, so without a test split."""
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for i in range(40):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("named", [True, False])
def test_an_older_run_goes_on_without_held_out_images(
    flat_folder, tmp_path, monkeypatch, capsys, named
):
    """Runs of version 0.2 have no val_share in flags.txt and trained on all images.

    Siblings: `--mode=evaluate` and `--mode=finetune` resolve the settings in the same
    place; `--mode=export` resolves nothing. MoCo's default queue depends on the number
    of images to train on, so the share is decided before it.
    """
    monkeypatch.chdir(tmp_path)
    settings = Config(
        dataset="folder",
        data_dir=str(flat_folder),
        cache_dir=str(tmp_path / "cache"),
        workdir=str(tmp_path / "run") if named else "",
        mode="pretrain",
        method="moco",
        backbone="resnet10",
        width=0.125,
        batch_size=8,
        epochs=1,
    )
    run.run(dataclasses.replace(settings, val_share=0.0))
    (flags_file,) = tmp_path.rglob("flags.txt")
    lines = flags_file.read_text().splitlines()
    flags_file.write_text("\n".join(x for x in lines if "val_share" not in x) + "\n")
    capsys.readouterr()
    run.run(settings)
    out = capsys.readouterr().out
    assert "Going on at step 5 of 5" in out
    assert "--val_share=0.0" in out and f"Run folder: {flags_file.parent}" in out
    # A new run holds a tenth out.
    run.run(dataclasses.replace(settings, workdir=str(tmp_path / "new")))
    assert "36 images; 4 are held out" in capsys.readouterr().out
