"""The scores without labels of a run, and its verdict."""

import dataclasses

import numpy as np
import pytest

from tfsimclr import build
from tfsimclr.data import dataset as datasets
from tfsimclr.evaluation import label_free as measures
from tfsimclr.modes import evaluate, label_free
from tfsimclr.runs import features, loading


def test_a_run_without_labels_ends_with_scores_and_a_verdict(finished, capsys):
    config, dataset, folder = finished
    unlabelled = dataclasses.replace(
        dataset,
        train=None,
        test=datasets.Split(dataset.test.images, np.full(40, -1)),
        class_names=(),
    )
    assert not unlabelled.has_labels
    config = dataclasses.replace(config, mode="evaluate")
    result = evaluate.evaluate(config, unlabelled, folder)
    assert result["features"] == {} and result["top1"] is None
    scores = result["label_free"]
    assert scores["num_images"] == 40
    assert list(scores["features"]) == ["pixels", "random_h", "h", "head_1", "z"]
    out = capsys.readouterr().out
    assert out.rstrip().endswith(scores["verdict"]["sentence"])
    assert "of 39 other images" in scores["verdict"]["sentence"]
    for name in scores["features"]:
        assert f"  {name} " in out
    # The labels change nothing.
    labelled = evaluate.evaluate(config, dataset, folder)
    assert labelled["label_free"] == scores


def test_the_scores_are_those_of_the_features_of_the_views(finished):
    config, dataset, folder = finished
    model, _ = loading.model(config, folder)
    scores = label_free.evaluate(config, dataset, model)["features"]
    view_a, view_b = label_free.fixed_views(model, dataset.test.images)
    assert view_a.shape == (40, 16, 16, 3) and view_a.dtype == np.uint8
    assert np.abs(view_a.astype(int) - view_b).mean() > 1
    h_a, h_b = (model.features(view)["h"] for view in (view_a, view_b))
    assert scores["h"] == pytest.approx(measures.scores(h_a, h_b))
    pixels = [view.reshape(40, -1) / 255 for view in (view_a, view_b)]
    assert scores["pixels"] == pytest.approx(measures.scores(*pixels), abs=1e-3)


def test_the_views_do_not_depend_on_the_seed_of_the_run(finished):
    config, dataset, _ = finished
    images = dataset.test.images
    first = label_free.fixed_views(loading.untrained(config), images)
    other = loading.untrained(dataclasses.replace(config, seed=5))
    np.testing.assert_array_equal(first, label_free.fixed_views(other, images))


def test_at_most_a_thousand_images_are_used(finished):
    config, _, _ = finished
    images = np.arange(1200, dtype=np.int64).reshape(-1, 1, 1, 1)
    test = datasets.Split(images, np.arange(1200))
    split, origin = features.held_out(
        config, datasets.DataSet("made", None, test, test, (), 1)
    )
    assert len(np.unique(split.labels)) == 1000 and origin == "test split"
    np.testing.assert_array_equal(split.images[:, 0, 0, 0], split.labels)


def test_without_a_test_split_the_held_out_share_is_scored(finished):
    config, dataset, _ = finished
    untested = dataclasses.replace(dataset, train=None, test=None)
    assert features.held_out(dataclasses.replace(config, val_share=0.0), untested) == (
        None,
        "",
    )
    config = dataclasses.replace(config, val_share=0.25)
    split, origin = features.held_out(config, untested)
    assert origin == "images held out from training"
    trained, held_out = build.pretraining_images(config, untested)
    np.testing.assert_array_equal(split.images, held_out[:])
    assert len(split.images) == 20 and len(trained) == 60
