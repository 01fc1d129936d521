"""Votes of the nearest neighbours, against loops."""

import numpy as np
import pytest

from tfsimclr.errors import UserError
from tfsimclr.evaluation import knn

pytestmark = pytest.mark.quick


def features_and_labels(num, seed=0, classes=4, dim=20):
    """Returns features `[num, dim]`, a Gaussian cluster per class, and labels."""
    centres = 0.7 * np.random.default_rng(42).normal(size=(classes, dim))
    generator = np.random.default_rng((seed, num))
    labels = generator.integers(0, classes, num)
    noise = generator.normal(size=(num, dim))
    return (centres[labels] + noise).astype("float32"), labels


@pytest.mark.parametrize(
    ("images", "classes", "k"),
    [(50_000, 10, 200), (1000, 10, 100), (5, 10, 1), (13_000, 1000, 13)],
)
def test_default_k(images, classes, k):
    assert knn.default_k(images, classes) == k


def slow_knn(train, train_labels, test, num_classes, k, temperature):
    """Returns votes computed by loops, scaled so that the nearest neighbour has 1."""
    votes = np.zeros((len(test), num_classes))
    for row, query in enumerate(np.float64(test)):
        similar = []
        for other, label in zip(np.float64(train), train_labels, strict=True):
            cosine = other @ query / np.linalg.norm(other) / np.linalg.norm(query)
            similar.append((cosine, label))
        similar.sort(reverse=True)
        for cosine, label in similar[:k]:
            votes[row, label] += np.exp((cosine - similar[0][0]) / temperature)
    return votes


@pytest.mark.promise("evaluation")
@pytest.mark.parametrize("k", [1, 5, 40, 1000])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_knn_matches_loops(k, temperature):
    train, labels = features_and_labels(40)
    test, _ = features_and_labels(15, seed=1)
    fast = knn.knn_votes(train, labels, test, 4, k, temperature)
    slow = slow_knn(train, labels, test, 4, k, temperature)
    assert fast.shape == (15, 4)
    np.testing.assert_allclose(fast, slow, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("block", [1, 4, 15, 512])
def test_the_block_size_of_knn_changes_nothing(block):
    train, labels = features_and_labels(40)
    test, _ = features_and_labels(15, seed=1)
    whole = knn.knn_votes(train, labels, test, 4, 5, block=15)
    blocked = knn.knn_votes(train, labels, test, 4, 5, block=block)
    np.testing.assert_allclose(blocked, whole, rtol=1e-5, atol=1e-6)


def test_knn_uses_the_angle_and_not_the_length():
    train, labels = features_and_labels(40)
    test, _ = features_and_labels(15, seed=1)
    lengths = np.random.default_rng(0).uniform(0.1, 50, size=(55, 1)).astype("float32")
    votes = knn.knn_votes(train * lengths[:40], labels, test * lengths[40:], 4, 5)
    np.testing.assert_allclose(
        votes, knn.knn_votes(train, labels, test, 4, 5), rtol=1e-3
    )
    # By the dot product the longer vector would be nearest.
    train = np.array([[1, 0], [50, 50]], "float32")
    votes = knn.knn_votes(
        train, np.array([0, 1]), np.array([[1, 0.1]], "float32"), 2, 1
    )
    np.testing.assert_allclose(votes, [[1, 0]])


def test_knn_of_zero_features_is_finite():
    train = np.zeros((3, 2), "float32")
    votes = knn.knn_votes(train, np.array([0, 1, 1]), train, 2, 3)
    assert np.isfinite(votes).all()


@pytest.mark.promise("evaluation-input")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test": np.zeros((2, 5), "float32")}, r"\[2, 5\] and \[8, "),
        ({"test": np.zeros(2, "float32")}, r"\[2\] and \[8, "),
        ({"test": features_and_labels(8)[0][:0]}, "not empty"),
        ({"k": 0}, "k=0"),
        ({"block": 0}, "block=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_settings_of_knn_out_of_range_are_errors(settings, message):
    train, labels = features_and_labels(8)
    with pytest.raises(UserError, match=message):
        knn.knn_votes(train, labels, **{"test": train, "num_classes": 4, **settings})
