"""The evaluation of a run and the files that it writes."""

import csv
import dataclasses
import json

import numpy as np
import pandas
import pytest
import tensorflow as tf

from tfsimclr.data import dataset as datasets
from tfsimclr.data import sampling
from tfsimclr.evaluation import linear, projector
from tfsimclr.modes import evaluate, export, label_free
from tfsimclr.runs import features, loading, results
from tfsimclr.training import checkpoints


def test_result_is_as_documented(finished):
    config, dataset, folder = finished
    evaluate.evaluate(config, dataset, folder)
    result = json.loads((folder / "result.json").read_text())
    assert result["config"] == dataclasses.asdict(config)
    assert set(result["pretrain"]) == {
        *("epochs", "steps", "seconds", "images_per_second", "views_per_second"),
        "peak_memory_bytes",
    }
    assert result["pretrain"]["epochs"] == 1
    assert result["pretrain"]["steps"] == 5
    assert result["pretrain"]["peak_memory_bytes"] > 1e8
    assert list(result["features"]) == ["pixels", "random_h", "h", "head_1", "z"]
    for scores in result["features"].values():
        assert set(scores) == {
            *("top1", "top5", "mean_class_accuracy", "majority_share", "knn"),
            *("dim", "learning_rate", "neighbours"),
        }
        assert 0 <= scores["top1"] <= scores["top5"] <= 1
        assert scores["majority_share"] == 0.1  # four test images of each class
        # With equally many images of each class both accuracies are the same.
        assert scores["mean_class_accuracy"] == pytest.approx(scores["top1"])
    assert result["features"]["pixels"]["dim"] == 16 * 16 * 3
    assert result["top1"] == result["features"]["h"]["top1"]
    assert result["seed"] == 0
    assert {"tensorflow", "keras", "tfsimclr"} <= set(result["versions"])
    assert result["class_names"] == list(dataset.class_names)
    assert result["num_images"] == {"unlabeled": 80, "train": 60, "test": 40}


def test_the_confusion_matrix_is_that_of_the_reported_feature(finished):
    config, dataset, folder = finished
    for feature in ("h", "z"):
        config = dataclasses.replace(config, feature=feature)
        result = evaluate.evaluate(config, dataset, folder)
        table = pandas.read_csv(folder / "confusion.csv", index_col="label")
        assert list(table.index) == list(table.columns) == list(dataset.class_names)
        counts = np.bincount(dataset.test.labels, minlength=10)
        np.testing.assert_array_equal(table.sum(axis=1), counts)
        assert np.trace(table) / 40 == pytest.approx(result["top1"])


def test_class_names_of_any_characters_are_written(tmp_path):
    names = ("a,b", 'say "c"', "\udcfe\n")
    results.write_confusion(tmp_path / "confusion.csv", np.diag([1, 2, 3]), names)
    with open(tmp_path / "confusion.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["label", "a,b", 'say "c"', "?\n"]
    assert rows[3] == ["?\n", "0", "0", "3"]


@pytest.mark.parametrize(("classes", "has_top5"), [(5, False), (6, True)])
def test_top5_is_scored_with_more_than_five_classes(tiny, classes, has_top5):
    config, _, _ = tiny(epochs=1)
    labels = np.arange(30) % classes
    rows = np.random.default_rng(0).normal(size=(30, 8)).astype("float32")
    split = datasets.Split(np.zeros((30, 4, 4, 3), "uint8"), labels)
    scores, *_ = evaluate.evaluate_feature(config, classes, rows, split, rows, split)
    assert (scores["top5"] is not None) == has_top5
    line = evaluate.score_line("h", scores)
    assert ("top-5" in line) == has_top5
    assert "top-1" in line and "kNN" in line and "mean per class" in line


def test_the_share_of_the_most_frequent_class_is_printed(finished, capsys):
    config, dataset, folder = finished
    labels = dataset.test.labels.copy()
    labels[:20] = 3
    share = np.mean(labels == 3)
    uneven = dataclasses.replace(
        dataset, test=datasets.Split(dataset.test.images, labels)
    )
    result = evaluate.evaluate(config, uneven, folder)
    assert result["features"]["h"]["majority_share"] == pytest.approx(share)
    assert f"has {share:.2%} of the test images" in capsys.readouterr().out


def test_feature_only_changes_what_is_reported(finished):
    config, dataset, folder = finished
    first = evaluate.evaluate(config, dataset, folder)
    config = dataclasses.replace(config, feature="z")
    second = evaluate.evaluate(config, dataset, folder)
    assert second["features"] == first["features"]
    assert second["top1"] == first["features"]["z"]["top1"]


def test_scores_are_those_of_the_features_recomputed_by_hand(finished):
    config, dataset, folder = finished
    result = evaluate.evaluate(config, dataset, folder)
    model, _ = loading.model(config, folder)
    train, test = dataset.train, dataset.test
    of_train, of_test = model.features(train.images), model.features(test.images)
    layer = linear.linear_classifier(
        of_train["h"], train.labels, 10, epochs=5, learning_rate=3e-3
    )
    logits = of_test["h"] @ layer.kernel.numpy() + layer.bias.numpy()
    top1 = np.mean(logits.argmax(axis=1) == test.labels)  # of all 40 images
    assert result["features"]["h"]["top1"] == pytest.approx(top1, abs=1e-9)


def test_random_h_is_the_encoder_before_training(finished):
    config, dataset, folder = finished
    untrained, before = loading.untrained(config), loading.untrained(config)
    for ours, theirs in zip(untrained.variables, before.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    evaluate.evaluate(config, dataset, folder)
    cached = np.load(folder / "features" / "random_h-test.npy")
    np.testing.assert_allclose(
        cached, untrained.features(dataset.test.images)["h"], atol=1e-6
    )
    assert np.abs(cached - np.load(folder / "features" / "h-test.npy")).max() > 1e-3


def test_cached_features_are_used_until_the_images_change(finished, monkeypatch):
    config, dataset, folder = finished
    first = evaluate.evaluate(config, dataset, folder)

    def refuse(*arguments):
        raise AssertionError("the features were computed again")

    monkeypatch.setattr(label_free, "evaluate", lambda *arguments: None)
    with monkeypatch.context() as patch:
        patch.setattr(features, "extract", refuse)
        patch.setattr(projector, "write", lambda *arguments: None)
        second = evaluate.evaluate(config, dataset, folder)
    assert second["features"] == first["features"]
    # Other images have another key.
    fewer = dataclasses.replace(config, num_train_images=20)
    evaluate.evaluate(fewer, dataset, folder)
    assert np.load(folder / "features" / "h-train.npy").shape[0] == 20


@pytest.mark.promise("labels")
def test_labels_below_zero_are_left_out(finished):
    config, dataset, folder = finished
    labels = dataset.train.labels.copy()
    labels[:7] = -1
    partial = dataclasses.replace(
        dataset, train=datasets.Split(dataset.train.images, labels)
    )
    assert len(sampling.labelled_rows(partial.train)) == 53
    evaluate.evaluate(config, partial, folder)
    assert np.load(folder / "features" / "h-train.npy").shape[0] == 53


def test_num_train_images_limits_training_but_not_testing(finished):
    config, dataset, folder = finished
    config = dataclasses.replace(config, num_train_images=30)
    evaluate.evaluate(config, dataset, folder)
    assert np.load(folder / "features" / "h-train.npy").shape[0] == 30
    assert np.load(folder / "features" / "h-test.npy").shape[0] == 40


def test_without_labels_there_is_a_result_without_scores(finished):
    config, dataset, folder = finished
    unlabelled = dataclasses.replace(dataset, train=None, test=None)
    assert not unlabelled.has_labels
    result = evaluate.evaluate(config, unlabelled, folder)
    assert result["features"] == {} and result["top1"] is None
    assert result["label_free"] is None
    with pytest.raises(ValueError, match="no labelled"):
        evaluate.evaluate(
            dataclasses.replace(config, mode="evaluate"), unlabelled, folder
        )
    export.export(config, unlabelled, folder)
    loaded = tf.saved_model.load(str(folder / "saved_model"))
    outputs = loaded.signatures["serving_default"].structured_outputs
    assert set(outputs) == {"h", "head_1", "z", "feature_map"}


def test_projector_shows_labels_and_thumbnails(finished):
    config, dataset, folder = finished
    evaluate.evaluate(config, dataset, folder)
    board = folder / "tensorboard"
    vectors = np.loadtxt(board / "h.tsv", delimiter="\t")
    labels = (board / "labels.tsv").read_text().splitlines()
    assert vectors.shape == (40, 64)
    assert len(labels) == 40 and set(labels) <= set(dataset.class_names)
    sprite = tf.io.decode_png((board / "sprite.png").read_bytes())
    assert sprite.shape == (7 * 32, 7 * 32, 3)
    assert "h.tsv" in (board / "projector_config.pbtxt").read_text()
    # The vector and the label of a row are of the same test image.
    of_test = np.load(folder / "features" / "h-test.npy")
    first = np.abs(of_test - vectors[0]).sum(axis=1).argmin()
    assert labels[0] == dataset.class_names[dataset.test.labels[first]]


def test_a_checkpoint_of_other_settings_is_an_error(finished, tmp_path):
    config, _, folder = finished
    wider = dataclasses.replace(config, width=0.25)
    with pytest.raises(ValueError, match="does not fit the model"):
        loading.model(wider, folder)
    with pytest.raises(ValueError, match="no checkpoint"):
        loading.model(config, tmp_path / "nowhere")


def test_evaluation_does_not_change_the_checkpoint(finished):
    config, dataset, folder = finished
    before, _ = checkpoints.load_latest(folder / "checkpoints")
    evaluate.evaluate(config, dataset, folder)
    after, _ = checkpoints.load_latest(folder / "checkpoints")
    for key in before:
        np.testing.assert_array_equal(before[key], after[key])


@pytest.mark.parametrize(
    ("side", "image_size", "expected"), [(40, 96, 32), (40, 32, 32), (20, 16, 16)]
)
def test_pixels_are_small_rows_in_0_to_1(side, image_size, expected):
    shape = (5, side, side, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images[0], images[1] = 0, 255
    rows = features.pixels(images, image_size)
    assert rows.shape == (5, expected * expected * 3)
    assert rows.dtype == np.float32
    assert rows.min() >= 0 and rows.max() <= 1
    assert (rows[0] == 0).all()
    np.testing.assert_allclose(rows[1], 1, rtol=1e-6)


def test_pixels_of_the_right_size_are_the_image():
    images = np.random.default_rng(0).integers(0, 256, (1030, 4, 4, 3), dtype=np.uint8)
    expected = images.reshape(1030, -1) / 255
    np.testing.assert_allclose(features.pixels(images, 4), expected, atol=1e-6)
