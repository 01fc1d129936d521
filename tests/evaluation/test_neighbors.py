"""Neighbours, duplicates and selection against loops in float64."""

import numpy as np
import pytest
import references

from tfsimclr.errors import UserError
from tfsimclr.evaluation import duplicates, neighbors, selection

pytestmark = pytest.mark.quick


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbors, "QUERY_BLOCK", 7)
    monkeypatch.setattr(neighbors, "BANK_BLOCK", 11)


def random_features(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype("float32")


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (9, 40, 5), (20, 8, 3), (3, 4, 9)]
)
def test_top_k_equals_loops(small_blocks, m, n, k):
    queries, bank = random_features(m, 6), random_features(n, 6, seed=1)
    similarities = references.cosine_similarities(queries, bank)
    near, rows = neighbors.top_k(queries, bank, k)
    assert near.shape == rows.shape == (m, min(k, n))
    for i in range(m):
        expected = sorted(range(n), key=lambda j: -similarities[i, j])[:k]
        assert rows[i].tolist() == expected
        np.testing.assert_allclose(near[i], similarities[i, expected], atol=1e-6)


def test_top_k_of_blocks_is_that_of_the_array(small_blocks):
    queries, bank = random_features(9, 6), random_features(40, 6, seed=1)
    blocks = (bank[i : i + 13] for i in range(0, 40, 13))
    near, rows = neighbors.top_k(queries, blocks, 5)
    expected, expected_rows = neighbors.top_k(queries, bank, 5)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(near, expected, atol=1e-6)


def test_equal_similarities_are_in_the_order_of_the_rows(small_blocks):
    rows = neighbors.top_k(np.ones((1, 3)), np.ones((30, 3), "float32"), 25)[1]
    assert rows.tolist() == [list(range(25))]


def test_the_scale_of_a_row_does_not_matter():
    bank = np.float32([[1e-30, 0], [0, 1e30], [1, 1], [0, 0]])
    near, rows = neighbors.top_k(np.float32([[3e30, 0]]), bank, 4)
    assert rows[0, :2].tolist() == [0, 2] and set(rows[0, 2:]) == {1, 3}
    np.testing.assert_allclose(near, [[1, 0.5**0.5, 0, 0]], atol=1e-6)


def test_a_row_is_not_its_own_neighbour(small_blocks):
    features = np.repeat(random_features(10, 4), 3, axis=0)
    near, rows = neighbors.nearest_others(features, 2)
    for i, others in enumerate(rows.tolist()):
        assert sorted(others) == sorted({*range(i // 3 * 3, i // 3 * 3 + 3)} - {i})
    np.testing.assert_allclose(near, 1, atol=1e-6)
    assert neighbors.nearest_others(features[:2], 9)[1].tolist() == [[1], [0]]


def test_an_outlier_has_the_lowest_mean_similarity(small_blocks):
    features = random_features(30, 5) * 0.1 + [[1, 0, 0, 0, 0]]
    features[17] = [0, 0, -1, 0, 0]
    scores = neighbors.mean_similarity(features, 4)
    assert scores.argmin() == 17
    similarities = references.cosine_similarities(features, features)
    np.fill_diagonal(similarities, -2)
    expected = np.sort(similarities, axis=1)[:, -4:].mean(axis=1)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.promise("search-input")
@pytest.mark.parametrize(
    ("queries", "bank", "k", "message"),
    [
        (np.ones((2, 3)), np.ones((4, 5)), 1, "3 dimensions.*shape .4, 5."),
        (np.ones((2, 3)), np.ones((0, 3)), 1, "no features to search in"),
        (np.ones((2, 3)), np.ones((4, 3)), 0, "k must be at least 1"),
        (np.ones(3), np.ones((4, 3)), 1, "features must be .n, d., got.*3"),
        (np.full((2, 3), np.nan), np.ones((4, 3)), 1, "row 0 hold.* not finite"),
    ],
)
def test_what_does_not_fit_is_refused(queries, bank, k, message):
    with pytest.raises(UserError, match=message):
        neighbors.top_k(queries, bank, k)


def test_no_query_has_no_neighbours():
    near, rows = neighbors.top_k(np.zeros((0, 3)), np.ones((4, 3)), 2)
    assert near.shape == rows.shape == (0, 2)
    with pytest.raises(UserError, match="at least two images, got 1"):
        neighbors.nearest_others(np.ones((1, 3)), 2)


@pytest.mark.parametrize("similarity", [0.2, 0.7, 1.1])
def test_pairs_equal_loops(small_blocks, similarity):
    features = random_features(40, 4)
    similarities = references.cosine_similarities(features, features)
    expected = [
        (i, j)
        for i in range(40)
        for j in range(i + 1, 40)
        if similarities[i, j] >= similarity
    ]
    first, second, values = duplicates.pairs_above(features, similarity)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected
    np.testing.assert_allclose(values, similarities[first, second], atol=1e-6)
    best = duplicates.best_similarity(40, first, second, values)
    np.fill_diagonal(similarities, -2)
    highest = similarities.max(axis=1)
    expected = np.where(highest >= similarity, highest, -1)
    np.testing.assert_allclose(best, expected, atol=1e-6)


def test_too_many_pairs_are_refused():
    with pytest.raises(UserError, match="more than 10 pairs.*higher similarity"):
        duplicates.pairs_above(np.ones((9, 2), "float32"), 0.9, max_pairs=10)


def test_groups_are_chains_of_pairs():
    first, second = np.array([5, 1, 2, 8]), np.array([7, 2, 6, 9])
    found = duplicates.groups(10, first, second)
    assert [group.tolist() for group in found] == [[1, 2, 6], [5, 7], [8, 9]]
    assert duplicates.groups(10, first[:0], second[:0]) == []
    chain = np.arange(2000)
    (whole,) = duplicates.groups(2001, chain[::-1] + 1, chain[::-1])
    assert len(whole) == 2001


def test_k_centre_takes_one_of_every_direction_first():
    directions = np.eye(6, dtype="float32")
    features = np.repeat(directions, 20, axis=0) + 0.01 * random_features(120, 6)
    rows, similarities = selection.k_centre(features, 8)
    assert sorted(rows[:6] // 20) == list(range(6))
    assert len(set(rows.tolist())) == 8
    assert similarities[0] == -1 and (similarities[1:6] < 0.2).all()
    assert (similarities[6:] > 0.9).all()
    assert selection.k_centre(features, 3)[0].tolist() == rows[:3].tolist()


def test_k_centre_equals_loops():
    features = random_features(30, 5)
    similarities = references.cosine_similarities(features, features)
    rows, nearest = selection.k_centre(features, 10)
    for i in range(1, 10):
        chosen = rows[:i].tolist()
        others = [row for row in range(30) if row not in chosen]
        expected = min(others, key=lambda row: similarities[row, chosen].max())
        assert rows[i] == expected
        np.testing.assert_allclose(
            nearest[i], similarities[expected, chosen].max(), atol=1e-6
        )


def test_k_centre_takes_every_row_once_also_of_equal_ones():
    rows, _ = selection.k_centre(np.ones((5, 2)), 5)
    assert sorted(rows.tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="between 1 and the 5 images there are, got 6"):
        selection.k_centre(np.ones((5, 2)), 6)
