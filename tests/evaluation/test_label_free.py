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


@pytest.mark.parametrize(("n", "d"), [(1, 4), (2, 1), (7, 3), (40, 16)])
@pytest.mark.parametrize("block", [1, 3, 1024])
def test_ranks_match_loops(n, d, block):
    a, b = views(n, d)
    ranks = label_free.retrieval_ranks(a, b, block)
    np.testing.assert_array_equal(ranks, references.retrieval_ranks(a, b))


def test_hits_are_the_mean_of_both_directions():
    a, b = views(50, 8, noise=1.5)
    for k in (1, 5):
        forth = np.array(references.retrieval_ranks(a, b)) <= k
        back = np.array(references.retrieval_ranks(b, a)) <= k
        hits = label_free.retrieval_hits(a, b, k)
        np.testing.assert_array_equal(hits, (forth + 0.0 + back) / 2)
        assert 0.1 < hits.mean() < 0.95
    assert set(np.unique(hits)) == {0, 0.5, 1}


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
        "rankme": pytest.approx(references.rankme(a), rel=1e-4),
        "uniformity": pytest.approx(references.uniformity(a), rel=1e-3),
        "alignment": pytest.approx(references.alignment(a, b), rel=1e-4),
    }


@pytest.mark.parametrize(
    ("a", "b"), [((3, 2), (4, 2)), ((3,), (3,)), ((0, 2), (0, 2)), ((3, 2), (3, 4))]
)
def test_shapes_that_do_not_fit_are_refused(a, b):
    with pytest.raises(UserError):
        label_free.retrieval_ranks(np.zeros(a), np.zeros(b))


def hits(count=1000, **shares):
    """Returns hits of given shares; the images that are found are random."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.permutation(count) < share * count).astype(float)
        for name, share in shares.items()
    }


def test_the_verdict_of_a_run_that_learned():
    verdict = label_free.verdict(hits(pixels=0.12, random_h=0.09, h=0.71))
    assert verdict["sentence"] == (
        "h finds the right image of 1,000 in 71 %; pixels 12 %, untrained 9 %: the "
        "encoder has learned."
    )
    assert verdict["learned"] is True and verdict["baseline"] == "pixels"
    assert verdict["difference"] == pytest.approx(0.59)
    low, high = verdict["interval"]
    assert 0.5 < low < 0.59 < high < 0.65


@pytest.mark.parametrize("best", ["pixels", "random_h", "init_h"])
def test_h_must_beat_every_baseline(best):
    shares = {"pixels": 0.1, "random_h": 0.1, "init_h": 0.1, "h": 0.4, best: 0.6}
    verdict = label_free.verdict(hits(**shares))
    assert verdict["learned"] is False and verdict["baseline"] == best
    assert verdict["sentence"].endswith("the encoder has not learned.")


def test_a_difference_within_its_interval_is_not_learning():
    verdict = label_free.verdict(hits(pixels=0.302, random_h=0.1, h=0.304))
    assert verdict["interval"][0] < 0 < verdict["difference"]
    assert verdict["learned"] is False
    # Shares that would read the same get a decimal.
    assert "30.4 %; pixels 30.2 %, untrained 10.0 %" in verdict["sentence"]


def test_the_interval_covers_the_true_difference_in_95_of_100():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        sample = {
            "pixels": (rng.random(200) < 0.3).astype(float),
            "random_h": np.zeros(200),
            "h": (rng.random(200) < 0.4).astype(float),
        }
        low, high = label_free.verdict(sample)["interval"]
        covered += low <= 0.1 <= high
    assert 925 <= covered <= 970


def test_few_images_give_no_verdict():
    verdict = label_free.verdict(hits(count=29, pixels=0, random_h=0, h=1))
    assert verdict["learned"] is None
    assert "no verdict, which needs at least 30 images" in verdict["sentence"]
    assert label_free.verdict(hits(count=30, pixels=0, random_h=0, h=1))["learned"]
