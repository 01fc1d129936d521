"""The search index against exact search."""

import numpy as np
import pytest

from tfsimclr.errors import UserError
from tfsimclr.evaluation import duplicates, neighbors, search_index

pytest.importorskip("faiss")
pytestmark = pytest.mark.quick


def clustered(n, d=16, seed=0):
    """Returns rows around fifty centres, some of them twice."""
    centers = np.random.default_rng(99).normal(size=(50, d))
    rng = np.random.default_rng(seed)
    rows = centers[rng.integers(0, 50, n)] + 0.5 * rng.normal(size=(n, d))
    rows[1::20] = rows[::20]
    return rows.astype("float32")


def blocks_of(rows, size=300):
    return lambda: (rows[i : i + size] for i in range(0, len(rows), size))


@pytest.fixture(scope="module")
def rows():
    return clustered(4000)


@pytest.fixture(scope="module")
def built(rows):
    return search_index.build(blocks_of(rows), len(rows), rows.shape[1])


def test_recall_of_other_queries(rows, built):
    index, own_recall = built
    assert own_recall >= search_index.TARGET_RECALL
    assert index.num_probed < index.num_clusters  # and not by comparing with all
    queries = clustered(500, seed=1)
    exact = neighbors.top_k(queries, rows, 10)
    found = index.top_k(queries, 10)
    same = [len(set(a) & set(b)) / 10 for a, b in zip(found[1], exact[1], strict=True)]
    assert np.mean(same) >= 0.99
    assert search_index.recall_of(found[0], exact[0]) >= 0.99
    assert (np.diff(found[0]) <= 0).all() and found[0].max() <= 1


def test_an_excluded_row_is_not_found(rows, built):
    near, found = built[0].top_k(rows[:50], 5, np.arange(50))
    assert found.shape == near.shape == (50, 5)
    assert not (found == np.arange(50)[:, None]).any()
    everything, found = built[0].top_k(rows[:2], 10**6)
    assert everything.shape == (2, len(rows)) and (np.sort(found) >= 0).all()


def test_pairs_are_those_of_the_exact_search(rows, built):
    exact = duplicates.pairs_above(rows, 0.97)
    found = built[0].pairs_above(blocks_of(rows)(), 0.97, 10**6)
    keys = [set(zip(*pairs[:2], strict=True)) for pairs in (exact, found)]
    assert keys[1] <= keys[0] and len(keys[1]) >= 0.99 * len(keys[0]) > 200
    assert (found[0] < found[1]).all() and found[2].min() >= 0.97
    copies = {(i, i + 1) for i in range(0, len(rows), 20)}
    assert copies <= keys[1]
    with pytest.raises(UserError, match="more than 100 pairs.*higher similarity"):
        built[0].pairs_above(blocks_of(rows)(), 0.97, 100)


def test_saved_and_loaded(rows, built, tmp_path):
    path = tmp_path / "a.faiss"
    built[0].save(path)
    loaded = search_index.load(path)
    for first, second in zip(
        loaded.top_k(rows[:9], 5), built[0].top_k(rows[:9], 5), strict=True
    ):
        np.testing.assert_array_equal(first, second)
    assert loaded.num_probed == built[0].num_probed
    # Another file: the loaded index has the first one mapped into memory.
    (tmp_path / "b.faiss").write_bytes(path.read_bytes()[:1000])
    assert search_index.load(tmp_path / "b.faiss") is None
    assert search_index.load(tmp_path / "none") is None


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_rows(count):
    rows = clustered(count)
    index, recall = search_index.build(blocks_of(rows), count, rows.shape[1])
    assert recall == 1
    assert index.top_k(rows, 3)[1].shape == (count, min(3, count))


def test_other_dimensions_are_refused(built):
    with pytest.raises(UserError, match="3 dimensions, and the index has 16"):
        built[0].top_k(np.ones((1, 3)), 2)


def test_recall_counts_equal_similarities_as_equal():
    exact = np.array([[1.0, 0.9, 0.9], [1.0, 0.8, 0.7]])
    found = np.array([[1.0, 0.9, 0.9], [1.0, 0.7, 0.5]])
    assert search_index.recall_of(found, exact) == pytest.approx(5 / 6)
