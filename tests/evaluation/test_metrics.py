"""Feature health against loops and closed forms."""

import math

import numpy as np
import pytest
import references
import tensorflow as tf

from tfsimclr.evaluation import metrics

pytestmark = pytest.mark.quick

OF_PAIRS = ["contrastive_top1", "alignment"]
OF_FEATURES = ["uniformity", "feature_std", "effective_rank"]
SHAPES = [(2, 3), (3, 8), (7, 1), (16, 5), (5, 16), (33, 12)]


def features(shape, seed=0):
    rng = np.random.default_rng((seed, *shape))
    return (0.3 + rng.normal(size=shape)).astype("float32")


@pytest.mark.parametrize(
    "name,shape",
    [
        (name, shape)
        for name in OF_PAIRS + OF_FEATURES
        for shape in SHAPES
        # Rows of one dimension are +1 or -1: nothing but ties.
        if name != "contrastive_top1" or shape[1] > 1
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_metric_matches_loops(name, shape, dtype):
    batches = [tf.cast(features(shape), dtype)]
    if name in OF_PAIRS:
        other = features(shape) + 0.7 * features(shape, seed=1)
        batches.append(tf.cast(other, dtype))
    fast = getattr(metrics, name)(*batches)
    slow = getattr(references, name)(*[batch.numpy() for batch in batches])
    assert fast.dtype == tf.float32
    assert fast.shape == ()
    np.testing.assert_allclose(fast, slow, rtol=1e-3, atol=1e-5)


def test_the_pairs_of_the_twin_test_are_not_all_hits():
    z_a = features((33, 12))
    share = references.contrastive_top1(z_a, z_a + 0.7 * features((33, 12), seed=1))
    assert 0.2 < share < 0.95


@pytest.mark.parametrize("name", OF_PAIRS + OF_FEATURES)
def test_metric_works_in_a_function_of_unknown_batch_size(name):
    count = 2 if name in OF_PAIRS else 1
    compiled = tf.function(
        getattr(metrics, name), input_signature=[tf.TensorSpec([None, 6])] * count
    )
    for n in (4, 9):
        batches = [features((n, 6), seed) for seed in range(count)]
        slow = getattr(references, name)(*batches)
        np.testing.assert_allclose(compiled(*batches), slow, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["contrastive_top1", "alignment", "uniformity", "feature_std"]
)
def test_metric_ignores_the_length_of_the_rows(name):
    count = 2 if name in OF_PAIRS else 1
    batches = [features((12, 6), seed) for seed in range(count)]
    lengths = np.random.default_rng(0).uniform(0.01, 100, (12, 1)).astype("float32")
    first = getattr(metrics, name)(*batches)
    second = getattr(metrics, name)(*[batch * lengths for batch in batches])
    np.testing.assert_allclose(first, second, rtol=1e-4)


def test_top1_of_matching_and_of_swapped_pairs():
    z = np.eye(6, dtype="float32")
    assert float(metrics.contrastive_top1(z, 5 * z)) == 1.0
    # Each row is nearest to the other view of its neighbour.
    assert float(metrics.contrastive_top1(z, np.roll(z, 1, axis=0))) == 0.0


def test_top1_counts_both_directions():
    z_a = np.array([[1, 0, 0], [0, 1, 0]], "float32")
    z_b = np.array([[1, 0.1, 0], [1, 0.2, 0]], "float32")
    # a_0 -> b_0 (hit), a_1 -> b_1 (hit), b_0 -> b_1 or a_0, b_1 -> b_0 (miss).
    expected = references.contrastive_top1(z_a, z_b)
    assert 0.5 <= expected < 1
    assert float(metrics.contrastive_top1(z_a, z_b)) == pytest.approx(expected)


def test_top1_of_collapsed_projections_does_not_look_perfect():
    z = np.ones((8, 4), "float32")
    assert float(metrics.contrastive_top1(z, z)) < 0.5


def test_top1_of_one_pair_is_one():
    z = features((1, 4))
    assert float(metrics.contrastive_top1(z, -z)) == 1.0


@pytest.mark.parametrize("other,expected", [(3.0, 0.0), (-2.0, 4.0)])
def test_alignment_of_equal_and_opposite_views(other, expected):
    z = features((9, 5))
    np.testing.assert_allclose(metrics.alignment(z, other * z), expected, atol=1e-5)


def test_alignment_of_orthogonal_views_is_two():
    z = np.eye(6, dtype="float32")
    np.testing.assert_allclose(metrics.alignment(z[:3], z[3:]), 2.0, rtol=1e-6)


def test_uniformity_of_collapsed_orthogonal_and_opposite_rows():
    collapsed = np.full((7, 3), 0.2, "float32")
    np.testing.assert_allclose(metrics.uniformity(collapsed), 0.0, atol=1e-5)
    orthonormal = np.eye(6, dtype="float32")  # |z_i - z_j|^2 = 2
    np.testing.assert_allclose(metrics.uniformity(orthonormal), -4.0, rtol=1e-5)
    opposite = np.array([[1, 1], [-2, -2]], "float32")  # |z_i - z_j|^2 = 4
    np.testing.assert_allclose(metrics.uniformity(opposite), -8.0, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 1e4])
@pytest.mark.parametrize("n,d", [(2, 3), (100, 16)])
def test_collapsed_features(value, n, d):
    h = np.tile(value * np.linspace(1, 2, d), (n, 1)).astype("float32")
    np.testing.assert_allclose(metrics.feature_std(h), 0.0, atol=1e-4)
    np.testing.assert_allclose(metrics.effective_rank(h), 1.0, rtol=1e-4)


def test_rows_along_one_direction_have_rank_one():
    h = np.outer(np.linspace(-1, 3, 20), np.linspace(1, 2, 8)).astype("float32")
    np.testing.assert_allclose(metrics.effective_rank(h), 1.0, atol=1e-3)


@pytest.mark.parametrize("d", [2, 8, 32])
def test_orthonormal_features(d):
    h = 4 * np.eye(d, dtype="float32")
    np.testing.assert_allclose(
        metrics.feature_std(h), math.sqrt((d - 1) / d), rtol=1e-5
    )
    # Centring takes away the direction of the mean.
    np.testing.assert_allclose(metrics.effective_rank(h), d - 1, rtol=1e-4)
    both = np.concatenate([h, -h])  # centred already
    np.testing.assert_allclose(metrics.effective_rank(both), d, rtol=1e-4)
    np.testing.assert_allclose(metrics.feature_std(both), 1.0, rtol=1e-5)


def test_effective_rank_is_the_exponential_of_the_entropy():
    h = np.diag([3.0, 1.0]).astype("float32")
    h = np.concatenate([h, -h])  # singular values 3 : 1
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    np.testing.assert_allclose(metrics.effective_rank(h), math.exp(entropy), rtol=1e-5)


def test_gaussian_features_are_spread():
    h = np.random.default_rng(0).normal(size=(2000, 64)).astype("float32")
    np.testing.assert_allclose(metrics.feature_std(h), 1.0, atol=0.02)
    assert 0.95 * 64 < float(metrics.effective_rank(h)) <= 64


@pytest.mark.parametrize("block_rows", [1, 3, 12])
@pytest.mark.parametrize("with_keys", [False, True])
def test_top1_in_blocks_is_the_same(block_rows, with_keys):
    rng = np.random.default_rng(0)
    z_a, keys = rng.normal(size=(2, 6, 3)).astype("float32")
    z_b = z_a + 0.7 * rng.normal(size=(6, 3)).astype("float32")
    options = {"keys": (keys, z_b) if with_keys else None}
    whole = metrics.contrastive_top1(z_a, z_b, **options)
    blocks = metrics.contrastive_top1(z_a, z_b, block_rows=block_rows, **options)
    assert 0 < float(whole) < 1
    np.testing.assert_allclose(blocks, whole, rtol=1e-6)


def test_top1_against_keys_leaves_out_the_own_key():
    z = np.eye(4, dtype="float32")
    # The key of the same view is nearest but excluded; the positive comes next.
    near = z + 0.1
    assert float(metrics.contrastive_top1(z, z, keys=(near, near))) == 1.0
    far = np.roll(z, 1, axis=0)
    assert float(metrics.contrastive_top1(z, z, keys=(far, far))) == 0.0


@pytest.mark.parametrize(
    ("scores", "label", "right_from"),
    [
        ([3, 2, 1], 0, 1),
        ([3, 2, 1], 1, 2),
        ([3, 2, 1], 2, 3),
        ([1, 1, 1], 0, 3),  # all equal: no credit for the first place
        ([2, 2, 1], 0, 2),
        ([2, 2, 1], 1, 2),
        ([-np.inf, 0, 1], 0, 3),
    ],
)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_and_its_ties(scores, label, right_from, k):
    accuracy = metrics.top_k_accuracy(
        np.array([scores], "float32"), np.array([label]), k
    )
    assert accuracy == (1.0 if k >= right_from else 0.0)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_matches_a_loop(k):
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(200, 7)), generator.integers(0, 7, 200)
    hits = [y in np.argsort(-s)[:k] for s, y in zip(scores, labels, strict=True)]
    assert metrics.top_k_accuracy(scores, labels, k) == pytest.approx(np.mean(hits))


@pytest.mark.promise("nan-scores")
@pytest.mark.parametrize("broken", [np.nan, [0.0, np.nan, 1.0], [np.nan, 0.0, 1.0]])
def test_scores_that_are_not_numbers_count_as_wrong(broken):
    # Otherwise a classifier that diverged would be 100 % right.
    scores = np.broadcast_to(np.array(broken, "float32"), (6, 3))
    assert metrics.top_k_accuracy(scores, np.zeros(6, int), 1) == 0.0


def test_mean_class_accuracy_weights_classes_equally():
    labels = np.array([0] * 8 + [1] * 2)
    scores = np.eye(3)[[0] * 8 + [0, 1]]  # class 0 all correct, class 1 half
    assert metrics.mean_class_accuracy(scores, labels) == pytest.approx(0.75)
    assert metrics.top_k_accuracy(scores, labels, 1) == pytest.approx(0.9)
    always_0 = np.eye(3)[np.zeros(10, int)]
    assert metrics.mean_class_accuracy(always_0, labels) == pytest.approx(0.5)
    assert metrics.majority_share(labels) == pytest.approx(0.8)


def test_mean_class_accuracy_matches_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 7, 200), generator.normal(size=(200, 7))
    scores[np.arange(200), labels] += 1
    expected = sklearn_metrics.balanced_accuracy_score(labels, scores.argmax(axis=1))
    accuracy = metrics.mean_class_accuracy(scores, labels)
    assert accuracy == pytest.approx(expected)


def test_confusion_matrix_matches_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(1)
    labels, scores = generator.integers(0, 4, 50), generator.normal(size=(50, 5))
    expected = sklearn_metrics.confusion_matrix(
        labels, scores.argmax(axis=1), labels=range(5)
    )
    matrix = metrics.confusion_matrix(scores, labels)
    assert matrix.shape == (5, 5)
    np.testing.assert_array_equal(matrix, expected)
