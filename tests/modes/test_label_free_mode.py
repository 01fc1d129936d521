"""The scores without labels of a run, and its verdict."""

import dataclasses

import numpy as np
import pytest

from tfsimclr.data import dataset as datasets
from tfsimclr.evaluation import label_free as measures
from tfsimclr.modes import evaluate, label_free
from tfsimclr.runs import loading


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
    assert "h finds the right image of 40 in" in scores["verdict"]["sentence"]
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


def test_at_most_a_thousand_images_are_used():
    images = np.arange(1200, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    test = datasets.Split(images, np.zeros(1200, int))
    data = datasets.DataSet("made", None, None, test, (), 1)
    rows = label_free.held_out_rows(data)
    assert len(np.unique(rows)) == 1000
    np.testing.assert_array_equal(label_free.held_out_images(data), images[rows])
