"""Fine-tuning: the labels, what is trained, what is not, and the files written."""

import csv
import dataclasses
import json
import math
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from interruption import assert_same_arrays, stopped_at

from tfsimclr import losses, resolve
from tfsimclr.data import sampling
from tfsimclr.methods import classifier
from tfsimclr.modes import evaluate, export, finetune
from tfsimclr.networks import heads, norms
from tfsimclr.optimizers import lars
from tfsimclr.runs import classifiers, loading
from tfsimclr.runs import folder as run_folder
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints, fit
from tfsimclr.views import random_view


@pytest.fixture
def finetuned(finetuned_once, tmp_path):
    """Returns config, data set, run folder and folder of the network, of the test's."""
    config, dataset, run, folder = finetuned_once
    shutil.copytree(run, tmp_path / "run")
    config = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    return config, dataset, tmp_path / "run", tmp_path / "run" / folder.relative_to(run)


def weights_of(folder):
    """Returns {key: array} of the model's variables in the newest checkpoint."""
    arrays, _ = checkpoints.load_latest(folder / "checkpoints")
    return {key: array for key, array in arrays.items() if key.startswith("model/")}


def small(network=classifier.Classifier, classes=3, **more):
    """Returns a classifier of 8-pixel images that compiles at once."""
    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu"),
        ]
    )
    head = heads.ProjectionHead(2, dim=classes, hidden_dim=12, bias=True)
    return network(encoder, head, random_view.Views(8, 0.5, 0.0, grayscale=0.0), **more)


def coloured(count=24):
    """Returns images of three classes that their colour tells apart, and labels."""
    labels = np.arange(count) % 3
    images = np.random.default_rng(0).integers(0, 80, (count, 8, 8, 3))
    images[np.arange(count), :, :, labels] += 150
    return images.astype("uint8"), labels.astype("int64")


# The labels


@pytest.mark.quick
@pytest.mark.parametrize(("share", "each"), [(0.1, 4), (0.25, 10), (1.0, 40)])
def test_the_subset_has_as_many_of_every_class(share, each):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 40))
    rows = sampling.label_fraction(labels, share, 0)
    np.testing.assert_array_equal(np.bincount(labels[rows]), [each] * 10)
    assert (np.diff(rows) > 0).all()


def test_at_least_one_image_of_every_class():
    labels = np.repeat(np.arange(10), 40)  # 1 % of 400 would be four images
    rows = sampling.label_fraction(labels, 0.01, 0)
    np.testing.assert_array_equal(labels[rows], np.arange(10))


def test_of_unequal_classes_the_same_share():
    labels = np.repeat([0, 3], [200, 20])
    rows = sampling.label_fraction(labels, 0.1, 0)
    assert np.bincount(labels[rows]).tolist() == [20, 0, 0, 2]
    np.testing.assert_array_equal(
        sampling.label_fraction(labels, 1.0, 5), np.arange(220)
    )


def test_the_subset_is_fixed_by_its_seed_and_grows_with_its_share():
    labels = np.repeat(np.arange(10), 100)
    first = sampling.label_fraction(labels, 0.1, 3)
    np.testing.assert_array_equal(first, sampling.label_fraction(labels, 0.1, 3))
    assert not np.array_equal(first, sampling.label_fraction(labels, 0.1, 4))
    assert set(sampling.label_fraction(labels, 0.02, 3)) < set(first)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "images", "expected"),
    [
        # ImageNet: as in the paper
        ({"label_fraction": 0.01}, 12811, ("head_1", 60, 0.005)),
        ({"label_fraction": 0.1}, 128116, ("head_1", 30, 0.005)),
        ({"label_fraction": 1.0}, 1281167, ("h", 30, 0.005)),
        ({"label_fraction": 0.1, "width": 2.0}, 128116, ("head_1", 30, 0.002)),
        (
            {"label_fraction": 0.1, "selective_kernel": True},
            128116,
            ("head_1", 30, 0.002),
        ),
        ({"label_fraction": 0.1, "proj_layers": 1}, 128116, ("h", 30, 0.005)),
        # few images: at least 500 steps
        ({"label_fraction": 0.01}, 10, ("head_1", 500, 0.005)),
        ({"label_fraction": 1.0}, 1000, ("h", 72, 0.005)),
        ({"finetune_layer": "h", "finetune_epochs": 3}, 10, ("h", 3, 0.005)),
    ],
)
def test_default_settings_are_those_of_the_paper(settings, images, expected):
    config = Config(**{"proj_layers": 3, "width": 1.0, **settings})
    config = resolve.resolve_finetune(config, images)
    names = ("finetune_layer", "finetune_epochs", "finetune_learning_rate")
    assert tuple(getattr(config, name) for name in names) == expected


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"), [(60, 1, 60), (500, 1, 50), (30, 8, 10), (7, 9, 7)]
)
def test_a_checkpoint_comes_after_some_steps_and_at_the_end(epochs, steps, expected):
    passes = finetune._epochs_per_checkpoint(epochs, steps)
    assert passes == expected and epochs % passes == 0


# What is trained


def test_everything_up_to_the_layer_moves(finetuned):
    config, dataset, run, folder = finetuned
    before, _ = loading.model(config, run)
    after, meta = classifiers.load(folder)
    assert meta["layer"] == "head_1" and classifiers.layers(meta) == ("h", "head_1")
    pairs = zip(before.encoder.weights, after.encoder.weights, strict=True)
    for theirs, ours in pairs:  # moving statistics too
        assert np.abs(theirs.numpy() - ours.numpy()).max() > 0, ours.path
    head_1 = before.head.trainable_variables[0].numpy()
    ours = after.head.trainable_variables[0].numpy()
    assert ours.shape == head_1.shape
    assert 0 < np.abs(ours - head_1).max() < np.abs(head_1).max()
    assert np.abs(after.head.last.kernel.numpy()).min() > 0  # it started at zero
    assert np.abs(after.head.last.bias.numpy()).min() > 0
    assert after.head.last.kernel.shape == (head_1.shape[1], dataset.num_classes)


def test_the_pretrained_network_stays(finetuned, finished_once):
    _, _, run, _ = finetuned
    ours, theirs = weights_of(run), weights_of(finished_once[2])
    assert_same_arrays(ours, theirs)


def test_before_its_first_step_it_is_the_pretrained_network(finished, monkeypatch):
    config, dataset, run = finished
    seen = {}

    def look(model, *arguments, labels, **more):
        seen.update(model=model, labels=labels)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "fit", look)
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(config, dataset, run)
    images = dataset.test.images[:5]
    theirs = loading.model(config, run)[0].features(images)
    ours = seen["model"].features(images)
    np.testing.assert_allclose(ours["h"], theirs["h"], atol=1e-5)
    np.testing.assert_allclose(ours["head_1"], theirs["head_1"], atol=1e-5)
    np.testing.assert_array_equal(ours["z"], 0)  # the logits of a classifier of zeros
    assert np.bincount(seen["labels"]).tolist() == [1] * 10  # 10 % of six of a class


@pytest.mark.parametrize("batch_norm", ["false", "true", "hidden"])
@pytest.mark.parametrize("layer", ["h", "head_1", "head_2"])
def test_any_layer_of_any_head_can_be_taken(batch_norm, layer):
    depth = int(layer.removeprefix("head_").replace("h", "0"))
    norm = {"false": False, "true": True}.get(batch_norm, batch_norm)
    full = heads.ProjectionHead(3, dim=5, hidden_dim=7, batch_norm=norm)
    part = heads.ProjectionHead(
        depth + 1, dim=4, hidden_dim=7, batch_norm=norm and "hidden", bias=True
    )
    h = np.random.default_rng(0).normal(size=(6, 9)).astype("float32")
    full(h, training=True)  # moves the statistics
    part(h)
    part.take_hidden_layers(full)
    for theirs, ours in zip(full(h), part(h)[:-1], strict=False):
        np.testing.assert_array_equal(theirs, ours)
    assert len(part(h)) == depth + 2


def test_views_are_crops_and_mirrored_only(tiny):
    config, _, _ = tiny(jitter_strength=1.0, blur=0.5, crop_min_area=0.3, flip=False)
    views = classifiers.network(config, "h", 10).views
    assert views.get_config() == {
        **{"image_size": 16, "crop_min_area": 0.3, "jitter_strength": 0.0},
        **{"blur": 0.0, "flip": False, "grayscale": 0.0, "crop_max_area": 1.0},
    }


def test_split_batch_norms_of_moco_become_whole(tiny):
    config, _, _ = tiny(method="moco", proj_batch_norm="true")
    network = classifiers.network(config, "head_1", 10)
    layers = [*network.encoder._flatten_layers(), *network.head._flatten_layers()]
    split = [x for x in layers if isinstance(x, norms.SplitBatchNormalization)]
    assert split and all(layer.groups == 1 for layer in split)


def test_lars_excludes_the_classifier():
    kernel, other = (keras.Variable(np.full((2, 2), 3.0, "float32")) for _ in range(2))
    optimizer = lars.LARS(0.1, momentum=0.0, l2=0.5)
    optimizer.leave_plain([kernel])
    optimizer.build([kernel, other])
    gradient = tf.ones((2, 2))
    optimizer.apply([gradient, gradient], [kernel, other])
    np.testing.assert_allclose(kernel.numpy(), 3.0 - 0.1, rtol=1e-6)
    update = 1 + 0.5 * 3  # its norm is twice this, that of the weight 6
    step = 0.1 * 0.001 * 6 / (2 * update) * update
    np.testing.assert_allclose(other.numpy(), 3.0 - step, rtol=1e-6)
    assert optimizer.excluded([kernel, other]) == [kernel.path]


# The step


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_it_learns_its_labels(precision):
    keras.config.set_dtype_policy(precision)
    model = small()
    images, labels = coloured()
    model.compile(optimizer=keras.optimizers.Adam(0.02))
    history = model.fit(images, labels, batch_size=12, epochs=20, verbose=0).history
    assert history["top1"][0] < history["top1"][-1] and history["top1"][-1] > 0.9
    assert history["loss"][-1] < 0.5 < math.log(3)
    assert all(math.isfinite(x) for x in history["gradient_norm"])
    logits = model(images / np.float32(255), training=False)[-1]
    assert np.mean(np.argmax(logits, 1) == labels) > 0.9


def test_cross_entropy_matches_loops():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    labels = np.array([0, 2, 1, 1, 0])
    slow = 0.0
    for row, label in zip(logits.astype("float64"), labels, strict=True):
        slow -= row[label] - math.log(sum(math.exp(x) for x in row))
    fast = losses.cross_entropy(logits, labels)
    np.testing.assert_allclose(fast, slow / 5, rtol=1e-6)
    half = losses.cross_entropy(tf.cast(logits, tf.float16), labels)
    assert half.dtype == tf.float32


def test_without_labels_the_step_says_so():
    model = small()
    model.compile(optimizer="adam", run_eagerly=True)
    with pytest.raises(ValueError, match="needs labels"):
        model.fit(coloured()[0], batch_size=12, verbose=0)


def test_it_is_saved_and_loaded_as_a_keras_model(tmp_path):
    model = small()
    images = coloured()[0] / np.float32(255)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(loaded(images), model(images), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


# The files


def test_the_result_has_the_settings_and_the_scores(finetuned):
    config, dataset, run, folder = finetuned
    assert folder == run / "finetuned" / "labels-0.5-head_1-seed0"
    result = json.loads((folder / "result.json").read_text())
    entry = result["finetune"]
    assert entry["labels"] == 0.5 and entry["images"] == 30 and entry["seed"] == 0
    assert entry["from"] == "head_1" and entry["epochs"] == 4
    model, _ = classifiers.load(folder)
    logits = [*model.features(dataset.test.images).values()][-1]
    top1 = np.mean(logits.argmax(axis=1) == dataset.test.labels)  # all 40
    assert result["top1"] == entry["top1"] == pytest.approx(top1)
    assert entry["top1"] <= entry["top5"] <= 1
    assert result["class_names"] == list(dataset.class_names)
    majority = np.bincount(dataset.test.labels).max() / len(dataset.test.labels)
    assert entry["majority_share"] == pytest.approx(majority)
    per_class = [
        np.mean(logits.argmax(axis=1)[dataset.test.labels == c] == c)
        for c in np.unique(dataset.test.labels)
    ]
    assert entry["mean_class_accuracy"] == pytest.approx(np.mean(per_class))
    with open(folder / "confusion.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["label", *dataset.class_names]
    counts = np.array([row[1:] for row in rows], int)
    assert counts.sum() == 40 and counts.trace() / 40 == pytest.approx(top1)
    assert entry["encoder_parameters"] == model.encoder.count_params()
    assert (
        result["training"]["steps"] == 12 and result["config"]["label_fraction"] == 0.5
    )
    assert (folder / "history.csv").read_text().count("\n") > 1


def test_it_said_how_many_labels_it_had(finished, capsys, monkeypatch):
    config, dataset, run = finished
    monkeypatch.setattr(finetune, "_train", lambda *arguments: None)
    monkeypatch.setattr(classifiers, "finish", lambda *arguments: None)
    finetune.finetune(dataclasses.replace(config, label_fraction=0.01), dataset, run)
    output = capsys.readouterr().out
    assert "on 10 labelled images, 1 to 1 of each of 10 classes: 500 epochs" in output
    config = dataclasses.replace(config, label_fraction=1.0, num_train_images=20)
    finetune.finetune(config, dataset, run)
    assert "from h on 20 labelled images" in capsys.readouterr().out


def test_a_finished_fine_tuning_is_not_repeated(finetuned, capsys, monkeypatch):
    config, dataset, run, folder = finetuned
    monkeypatch.delattr(fit, "fit")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert finetune.finetune(config, dataset, run) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert "Finished before" in capsys.readouterr().out


def test_an_interrupted_fine_tuning_resumes_to_the_same_network(finetuned, tmp_path):
    config, dataset, _, whole = finetuned
    run = tmp_path / "stopped"
    shutil.copytree(tmp_path / "run", run, ignore=shutil.ignore_patterns("finetuned"))
    with stopped_at(5):
        finetune.finetune(config, dataset, run)
    folder = run / whole.relative_to(tmp_path / "run")
    assert not (folder / "result.json").exists()
    assert finetune.finetune(config, dataset, run) == folder
    ours, theirs = weights_of(folder), weights_of(whole)
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], atol=2e-4, err_msg=key)
    assert json.loads((folder / "result.json").read_text())["training"]["steps"] == 12


def test_other_settings_are_refused_and_listed(finetuned):
    config, dataset, run, folder = finetuned
    config = dataclasses.replace(config, finetune_epochs=9)
    with pytest.raises(ValueError, match="epochs 4 there, 9 here") as error:
        finetune.finetune(config, dataset, run)
    assert str(folder) in str(error.value) and "remove" in str(error.value)


def test_other_settings_and_an_evaluation_leave_it_unchanged(finetuned, monkeypatch):
    config, dataset, run, folder = finetuned
    monkeypatch.setattr(finetune, "_train", lambda *arguments: None)
    monkeypatch.setattr(classifiers, "finish", lambda *arguments: None)
    folders = {folder}
    for change in (
        {"label_fraction": 0.1},
        {"finetune_layer": "h"},
        {"finetune_seed": 1},
    ):
        other = dataclasses.replace(config, **change)
        folders.add(finetune.finetune(other, dataset, run))
    assert len(folders) == 4
    kept = (folder / "result.json").read_bytes()
    evaluate.evaluate(dataclasses.replace(config, mode="evaluate"), dataset, run)
    assert (folder / "result.json").read_bytes() == kept


def test_a_damaged_checkpoint_is_trained_again(finetuned, capsys):
    config, dataset, run, folder = finetuned
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    (folder / "saved_model").mkdir()  # of the network that is lost
    assert finetune.finetune(config, dataset, run) == folder
    assert "is damaged" in capsys.readouterr().err
    classifiers.load(folder)
    assert not (folder / "saved_model").exists()


def test_the_exported_model_gives_the_logits(finetuned, capsys):
    _, dataset, _, folder = finetuned
    path = export.export_classifier(folder)
    assert path == folder / "saved_model"
    serve = tf.saved_model.load(str(path)).signatures["serving_uint8"]
    outputs = serve(images=tf.constant(dataset.test.images))
    assert set(outputs) == {"h", "head_1", "feature_map", "logits"}
    model, _ = classifiers.load(folder)
    expected = model.features(dataset.test.images)
    np.testing.assert_allclose(outputs["logits"], expected["z"], atol=1e-4)
    np.testing.assert_allclose(outputs["head_1"], expected["head_1"], atol=1e-4)
    before = (path / "saved_model.pb").stat().st_mtime_ns
    export.export_classifier(folder)
    assert (path / "saved_model.pb").stat().st_mtime_ns == before


# Refusals


def test_without_labels_it_is_refused(finished):
    config, dataset, run = finished
    dataset = dataclasses.replace(dataset, train=None, test=None)
    with pytest.raises(ValueError, match="needs labels"):
        finetune.finetune(config, dataset, run)


@pytest.mark.parametrize("layer", ["z", "head_3", "nonsense"])
def test_the_layer_must_be_one_of_the_head(layer):
    config = Config(mode="finetune", proj_layers=3, finetune_layer=layer)
    with pytest.raises(ValueError, match="--finetune_layer must be one of") as error:
        resolve.check(config)
    assert "'head_2')" in str(error.value) and repr(layer) in str(error.value)
    resolve.check(dataclasses.replace(config, finetune_layer="head_2"))
    resolve.check(dataclasses.replace(config, mode="all"))  # not used in that mode


def test_it_needs_a_run(tmp_path):
    config = Config(mode="finetune", workdir=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="--mode=finetune needs a run"):
        run_folder.prepare(config)
