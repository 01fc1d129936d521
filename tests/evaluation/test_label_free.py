"""Scores without labels against loops and closed forms, and the rule of the verdict."""

import numpy as np
import pytest
import references

from tfsimclr.errors import UserError
from tfsimclr.evaluation import label_free

pytestmark = pytest.mark.quick


def views(n, d, noise=0.8, seed=0):
    rng = np.random.default_rng((n, d, seed))
    a = rng.normal(size=(n, d)).astype("float32")
    return a, a + noise * rng.normal(size=(n, d)).astype("float32")


@pytest.mark.parametrize(("n", "d"), [(2, 4), (3, 1), (7, 3), (40, 16)])
@pytest.mark.parametrize("block", [1, 3, 1024])
def test_ranks_match_loops(n, d, block):
    a, b = views(n, d)
    ranks = label_free.retrieval_ranks(a, b, block)
    np.testing.assert_array_equal(ranks, references.retrieval_ranks(a, b))


def test_auc_is_the_share_of_farther_images_in_both_directions():
    a, b = views(50, 8, noise=1.5)
    auc = label_free.retrieval_auc(a, b)
    ranks = [references.retrieval_ranks(a, b), references.retrieval_ranks(b, a)]
    np.testing.assert_allclose(auc, 1 - (np.mean(ranks, axis=0) - 1) / 49, atol=1e-12)
    assert 0.6 < auc.mean() < 0.95
    # By pairs: how often the own view is nearer than another image's.
    unit_a, unit_b = references.unit_rows(a), references.unit_rows(b)
    nearer = [
        unit_a[i] @ unit_b[i] > unit_a[i] @ unit_b[k]
        for i in range(50)
        for k in range(50)
        if i != k
    ]
    assert np.mean(nearer) == pytest.approx(1 - (np.mean(ranks[0]) - 1) / 49)


def test_auc_at_chance_and_at_its_ends():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 500, 16))
    assert label_free.retrieval_auc(a, b).mean() == pytest.approx(0.5, abs=0.03)
    assert (label_free.retrieval_auc(a, 2 * a) == 1).all()
    assert (label_free.retrieval_auc(np.ones((9, 3)), np.ones((9, 3))) == 0).all()


def test_collapsed_features_find_nothing():
    rows = np.random.default_rng(0).normal(size=33).astype("float32")
    same = np.tile(rows, (20, 1))
    assert (label_free.retrieval_ranks(same, same) == 20).all()
    assert (label_free.retrieval_ranks(0 * same, 0 * same) == 20).all()
    assert label_free.rankme(same) == pytest.approx(1, abs=0.01)
    assert label_free.rankme(0 * same) == 1


def test_ranks_do_not_depend_on_the_length_of_the_rows():
    a, b = views(30, 6)
    lengths = np.random.default_rng(0).uniform(0.01, 100, (30, 1))
    np.testing.assert_array_equal(
        label_free.retrieval_ranks(a, b), label_free.retrieval_ranks(a * lengths, b)
    )


@pytest.mark.parametrize(("n", "d"), [(2, 3), (16, 5), (5, 16), (33, 12)])
def test_rankme_matches_loops(n, d):
    a, _ = views(n, d)
    assert label_free.rankme(a + 0.5) == pytest.approx(
        references.rankme(a + 0.5), rel=1e-4
    )


def test_rankme_of_orthogonal_rows_is_their_number():
    assert label_free.rankme(7 * np.eye(8)) == pytest.approx(8, rel=1e-4)


def test_scores_are_those_of_the_loops():
    a, b = views(40, 8, noise=1.0)
    scores = label_free.scores(a, b)
    ranks = np.array(
        [references.retrieval_ranks(a, b), references.retrieval_ranks(b, a)]
    )
    assert scores == {
        "retrieval_top1": pytest.approx((ranks <= 1).mean()),
        "retrieval_top5": pytest.approx((ranks <= 5).mean()),
        "retrieval_auc": pytest.approx(1 - (ranks.mean() - 1) / 39),
        "rankme": pytest.approx(references.rankme(a), rel=1e-4),
        "uniformity": pytest.approx(references.uniformity(a), rel=1e-3),
        "alignment": pytest.approx(references.alignment(a, b), rel=1e-4),
    }


@pytest.mark.parametrize(
    ("a", "b"), [((3, 2), (4, 2)), ((3,), (3,)), ((1, 2), (1, 2)), ((3, 2), (3, 4))]
)
def test_shapes_that_do_not_fit_are_refused(a, b):
    with pytest.raises(UserError):
        label_free.retrieval_ranks(np.zeros(a), np.zeros(b))


def percentiles(count=1000, **means):
    """Returns percentiles of random images, whose means are as given."""
    rng = np.random.default_rng(0)
    noise = {name: rng.normal(scale=0.2, size=count) for name in means}
    return {name: noise[name] - noise[name].mean() + means[name] for name in means}


def test_the_verdict_of_a_run_that_learned():
    values = percentiles(pixels=0.7, random_h=0.6, h=0.9)
    verdict = label_free.verdict(values)
    assert verdict["sentence"] == (
        "By h, an image's other view is nearer than 90 % of 999 other images; pixels "
        "70 %, untrained 60 %: the encoder has learned."
    )
    assert verdict["learned"] is True and verdict["baseline"] == "pixels"
    assert verdict["difference"] == np.mean(values["h"] - values["pixels"])
    low, high = verdict["interval"]
    assert 0.17 < low < verdict["difference"] < high < 0.24


@pytest.mark.parametrize("best", ["pixels", "random_h", "init_h"])
def test_h_must_beat_every_baseline(best):
    means = {"pixels": 0.5, "random_h": 0.5, "init_h": 0.5, "h": 0.7, best: 0.8}
    verdict = label_free.verdict(percentiles(**means))
    assert verdict["learned"] is False and verdict["baseline"] == best
    assert verdict["sentence"].endswith("does not show that the encoder has learned.")


def test_a_difference_within_its_interval_is_not_learning():
    noise = np.random.default_rng(0).normal(scale=0.2, size=400)
    h = np.full(400, 0.604) + noise - noise.mean()
    values = {"pixels": np.full(400, 0.602), "random_h": np.full(400, 0.5), "h": h}
    verdict = label_free.verdict(values)
    assert verdict["interval"][0] < 0 < verdict["difference"]
    assert verdict["learned"] is False
    # Shares that would read the same get a decimal.
    assert "60.4 % of 399" in verdict["sentence"]
    assert "pixels 60.2 %, untrained 50.0 %" in verdict["sentence"]


def test_the_interval_covers_the_true_difference_in_95_of_100():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        sample = {"pixels": rng.beta(2, 2, 200), "random_h": np.zeros(200)}
        sample["h"] = rng.beta(4, 1, 200)
        low, high = label_free.verdict(sample)["interval"]
        covered += low <= 0.8 - 0.5 <= high
    assert 925 <= covered <= 970


def test_few_images_give_no_verdict():
    few = label_free.verdict(percentiles(count=29, pixels=0.1, random_h=0.1, h=0.9))
    assert few["learned"] is None
    assert "no verdict, which needs at least 30 images" in few["sentence"]
    enough = percentiles(count=30, pixels=0.1, random_h=0.1, h=0.9)
    assert label_free.verdict(enough)["learned"]
