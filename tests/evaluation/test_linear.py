"""The linear classifier and the neighbours, against scikit-learn and slow twins."""

import inspect

import keras
import numpy as np
import pytest

from tfsimclr.data import sampling
from tfsimclr.evaluation import knn, linear, metrics

ADAM_RATES = linear.LEARNING_RATES["adam"]


def made(num, seed=0, scale=1.0, classes=4, dim=20):
    """Returns features `[num, dim]` around a centre per class, and labels."""
    centres = 0.7 * np.random.default_rng(42).normal(size=(classes, dim))
    generator = np.random.default_rng((seed, num))
    labels = generator.integers(0, classes, num)
    noise = generator.normal(size=(num, dim))
    return (scale * (centres[labels] + noise)).astype("float32"), labels


def accuracy(classifier, features, labels):
    return metrics.top_k_accuracy(linear.predict(classifier, features), labels, 1)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_linear_classifier_is_as_good_as_scikit_learn_s(optimizer):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = made(400)
    test, test_labels = made(2000, seed=1)
    reference = linear_model.LogisticRegression(max_iter=1000).fit(features, labels)
    expected = reference.score(test, test_labels)
    assert 0.7 < expected < 0.95  # neither trivial nor hopeless
    classifier = linear.linear_classifier(
        *(features, labels, 4),
        **{"epochs": 60, "batch_size": 64, "optimizer": optimizer},
        learning_rate=3e-3,
    )
    assert accuracy(classifier, test, test_labels) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("optimizer", "rate"), [("adam", 0.01), ("sgd", 0.01), ("lars", 1.0)]
)
def test_every_optimizer_trains(optimizer, rate):
    features, labels = made(200)
    classifier = linear.linear_classifier(
        *(features, labels, 4),
        **{"epochs": 40, "batch_size": 50, "optimizer": optimizer},
        learning_rate=rate,
    )
    assert accuracy(classifier, *made(500, seed=1)) > 0.75


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lars"])
def test_the_rate_chosen_trains_every_optimizer(optimizer):
    # --probe_optimizer alone, the rate left to the program.
    features, labels = made(300)
    training = {"epochs": 30, "batch_size": 32, "optimizer": optimizer}
    rate = linear.select_learning_rate(features, labels, 4, 0, **training)
    classifier = linear.linear_classifier(
        features, labels, 4, learning_rate=rate, **training
    )
    assert accuracy(classifier, *made(500, seed=1)) > 0.75


@pytest.mark.parametrize(
    ("num", "batch", "epochs"),
    [(12, 4, 3), (10, 5, 2), (10, 4, 4), (7, 7, 3), (5, 1, 2), (6, 100, 3)],
)
def test_every_image_is_used_equally_often(monkeypatch, num, batch, epochs):
    # Image i owns row i of the kernel; without momentum and with a tiny rate the row
    # moves by the same step at every visit.
    plain = keras.optimizers.SGD
    monkeypatch.setattr(keras.optimizers, "SGD", lambda rate, momentum: plain(rate))
    rate = 1e-3
    arguments = (np.eye(num, dtype="float32"), np.zeros(num, int), 2)
    options = {"batch_size": batch, "optimizer": "sgd", "seed": 3}
    trained, start = (
        linear.linear_classifier(
            *arguments, epochs=epochs, learning_rate=r, **options
        ).get_weights()[0]
        for r in (rate, 1e-12)
    )
    moved = (trained - start)[:, 0]
    wrong_share = 1 / (1 + np.exp(start[:, 0] - start[:, 1]))
    visits = moved * min(batch, num) / (rate * wrong_share)
    np.testing.assert_allclose(visits, epochs, rtol=0.02)


def test_the_order_differs_between_epochs_and_seeds_but_not_between_runs():
    features, labels = made(100)
    options = {"epochs": 2, "batch_size": 10, "learning_rate": 0.01}
    first, again, other = (
        linear.linear_classifier(features, labels, 4, seed=seed, **options)
        for seed in (1, 1, 2)
    )
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(first.get_weights()[0], other.get_weights()[0])


def test_a_batch_larger_than_the_data_is_the_whole_data():
    features, labels = made(30)
    big, whole = (
        linear.linear_classifier(features, labels, 4, epochs=5, batch_size=size)
        for size in (10_000, 30)
    )
    np.testing.assert_array_equal(big.get_weights()[0], whole.get_weights()[0])


def test_the_classifier_is_float32_whatever_the_encoder_was():
    keras.config.set_dtype_policy("mixed_float16")
    features, labels = made(50, scale=1000)
    classifier = linear.linear_classifier(features, labels, 4, epochs=3)
    assert classifier.compute_dtype == "float32"
    assert all(weight.dtype == np.float32 for weight in classifier.get_weights())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1], r"0 \.\. 1, got -1"),  # one_hot(-1) would train on nothing
        ([0, 1, 2], r"0 \.\. 1, got 0 \.\. 2"),
        ([0, 1], r"got \[3, 2\] and \[2\]"),
        ([], r"got \[3, 2\] and \[0\]"),
        ([[0], [1], [1]], r"got \[3, 2\] and \[3, 1\]"),
        ([0.0, 1.0, 1.0], "integers, got float64"),
    ],
)
@pytest.mark.parametrize("score", ["linear_classifier", "knn", "chosen_learning_rate"])
def test_labels_that_do_not_fit_are_refused(score, labels, message):
    features = np.zeros((3, 2), "float32")
    labels = np.array(labels) if labels else np.zeros(0, int)
    rest = {"knn": (features, 2), "chosen_learning_rate": (2, 0)}.get(score, (2,))
    with pytest.raises(ValueError, match=message):
        getattr(linear, score)(features, labels, *rest)


def test_lists_of_labels_will_do():
    features, labels = made(50)
    layers = [
        linear.linear_classifier(features, given, 4, epochs=2)
        for given in (labels, labels.tolist())
    ]
    np.testing.assert_array_equal(*[layer.kernel.numpy() for layer in layers])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamw"}, "one of adam, sgd, lars, got 'adamw'"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": np.nan}, "learning_rate=nan"),
    ],
)
def test_settings_of_the_classifier_out_of_range_are_refused(settings, message):
    features, labels = made(8)
    with pytest.raises(ValueError, match=message):
        linear.linear_classifier(features, labels, 4, **settings)


def test_an_unknown_optimizer_has_no_rates():
    with pytest.raises(ValueError, match="one of adam, sgd, lars, got 'adamw'"):
        linear.select_learning_rate(*made(8), 4, 0, optimizer="adamw")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test": np.zeros((2, 5), "float32")}, r"\[2, 5\] and \[8, "),
        ({"test": np.zeros(2, "float32")}, r"\[2\] and \[8, "),
        ({"test": made(8)[0][:0]}, "not empty"),
        ({"k": 0}, "k=0"),
        ({"block": 0}, "block=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_settings_of_knn_out_of_range_are_refused(settings, message):
    train, labels = made(8)
    with pytest.raises(ValueError, match=message):
        knn.knn_votes(train, labels, **{"test": train, "num_classes": 4, **settings})


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        linear.linear_classifier(np.zeros((0, 2), "float32"), np.zeros(0, int), 2)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_learning_rate_follows_the_scale_of_the_features(scale):
    features, labels = made(400, scale=scale)
    test = made(1000, seed=1, scale=scale)
    training = {"epochs": 30, "batch_size": 64}
    chosen = linear.select_learning_rate(features, labels, 4, 0, **training)
    assert chosen in ADAM_RATES
    scores = {
        rate: accuracy(
            linear.linear_classifier(
                features, labels, 4, learning_rate=rate, **training
            ),
            *test,
        )
        for rate in ADAM_RATES
    }
    assert max(scores.values()) - min(scores.values()) > 0.1  # there is a choice
    # The held-out tenth is 40 images: the choice is good, not perfect.
    assert scores[chosen] > max(scores.values()) - 0.08
    if scale == 0.01:
        assert chosen == max(ADAM_RATES)


def test_the_learning_rate_is_chosen_without_the_test_set():
    names = list(inspect.signature(linear.select_learning_rate).parameters)
    wanted = ["features", "labels", "num_classes", "seed", "optimizer", "training"]
    assert names == wanted


def test_a_rate_whose_classifier_breaks_is_not_chosen(monkeypatch):
    def logits(rate, features):
        if rate > ADAM_RATES[0]:
            return np.full((len(features), 4), np.nan)
        return np.tile([1.0, 0, 0, 0], (len(features), 1))  # right for a quarter

    monkeypatch.setattr(linear, "predict", logits)
    monkeypatch.setattr(
        linear, "linear_classifiers", lambda x, y, classes, rates, **training: rates
    )
    features, labels = np.zeros((40, 3), "float32"), np.arange(40) % 4
    rate = linear.select_learning_rate(features, labels, 4, 0)
    assert rate == ADAM_RATES[0]


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lars"])
def test_side_by_side_each_rate_trains_as_if_alone(optimizer):
    features, labels = made(60)
    rates = linear.LEARNING_RATES[optimizer]
    training = {"epochs": 3, "batch_size": 16, "optimizer": optimizer, "seed": 5}
    together = linear.linear_classifiers(features, labels, 4, rates, **training)
    assert len(together) == len(rates)
    for layer, rate in zip(together, rates, strict=True):
        alone = linear.linear_classifier(
            features, labels, 4, learning_rate=rate, **training
        )
        for a, b in zip(layer.get_weights(), alone.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_many_classifiers_are_trained_without_a_warning(caplog):
    # TensorFlow warns from the fifth on of a function that is traced anew each time.
    features, labels = made(20)
    for seed in range(7):
        linear.linear_classifier(features, labels, 4, epochs=1, seed=seed)
    assert not caplog.records


@pytest.mark.parametrize("labels", [[0], [0, 1], [0, 0, 0], [0, 1, 2, 3]])
def test_with_too_few_images_to_hold_out_the_smallest_rate_is_taken(labels):
    labels = np.array(labels)
    features = np.zeros((len(labels), 3), "float32")
    rate = linear.select_learning_rate(features, labels, 4, 0, epochs=1)
    assert rate == ADAM_RATES[0]


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_stratified_takes_its_share_of_every_class(share):
    counts = (100, 50, 10, 2, 1)
    labels = np.random.default_rng(0).permutation(np.repeat(range(5), counts))
    mask = sampling.stratified_mask(labels, share, seed=0)
    taken = np.bincount(labels[mask], minlength=5)
    assert mask.dtype == bool and len(mask) == len(labels)
    np.testing.assert_array_equal(
        taken, [100 * share, 50 * share, 10 * share, 1, 0]
    )  # of two images one, the only image of a class never
    np.testing.assert_array_equal(mask, sampling.stratified_mask(labels, share, seed=0))
    assert (mask != sampling.stratified_mask(labels, share, seed=1)).any()


def test_stratified_is_not_the_first_of_each_class():
    labels = np.repeat([0, 1], 50)
    rows = np.flatnonzero(sampling.stratified_mask(labels, 0.2, seed=0))
    assert not np.array_equal(rows, [*range(10), *range(50, 60)])


@pytest.mark.parametrize("batch", [1, 7, 4096])
def test_predict_gives_the_logits_of_the_layer(batch):
    features, labels = made(20)
    classifier = linear.linear_classifier(features, labels, 4, epochs=1)
    logits = linear.predict(classifier, features, batch_size=batch)
    np.testing.assert_allclose(logits, classifier(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("scores", "label", "right_from"),
    [
        ([3, 2, 1], 0, 1),
        ([3, 2, 1], 1, 2),
        ([3, 2, 1], 2, 3),
        ([1, 1, 1], 0, 3),  # nothing told apart: no credit for the first place
        ([2, 2, 1], 0, 2),
        ([2, 2, 1], 1, 2),
        ([-np.inf, 0, 1], 0, 3),
    ],
)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_and_its_ties(scores, label, right_from, k):
    found = metrics.top_k_accuracy(np.array([scores], "float32"), np.array([label]), k)
    assert found == (1.0 if k >= right_from else 0.0)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_matches_a_loop(k):
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(200, 7)), generator.integers(0, 7, 200)
    hits = [y in np.argsort(-s)[:k] for s, y in zip(scores, labels, strict=True)]
    assert metrics.top_k_accuracy(scores, labels, k) == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("broken", [np.nan, [0.0, np.nan, 1.0], [np.nan, 0.0, 1.0]])
def test_scores_that_are_no_numbers_score_nothing(broken):
    # A classifier that diverged must not be 100 % right.
    scores = np.broadcast_to(np.array(broken, "float32"), (6, 3))
    assert metrics.top_k_accuracy(scores, np.zeros(6, int), 1) == 0.0


@pytest.mark.parametrize(
    ("images", "classes", "k"),
    [(50_000, 10, 200), (1000, 10, 100), (5, 10, 1), (13_000, 1000, 13)],
)
def test_neighbour_count(images, classes, k):
    assert knn.default_k(images, classes) == k


def slow_knn(train, train_labels, test, num_classes, k, temperature):
    """Votes by loops; their scale is free, so the nearest has weight 1."""
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


@pytest.mark.parametrize("k", [1, 5, 40, 1000])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_knn_matches_loops(k, temperature):
    train, labels = made(40)
    test, _ = made(15, seed=1)
    fast = knn.knn_votes(train, labels, test, 4, k, temperature)
    slow = slow_knn(train, labels, test, 4, k, temperature)
    assert fast.shape == (15, 4)
    np.testing.assert_allclose(fast, slow, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("block", [1, 4, 15, 512])
def test_the_block_of_knn_changes_nothing(block):
    train, labels = made(40)
    test, _ = made(15, seed=1)
    whole = knn.knn_votes(train, labels, test, 4, 5, block=15)
    found = knn.knn_votes(train, labels, test, 4, 5, block=block)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)


def test_knn_is_by_angle_not_by_length():
    train, labels = made(40)
    test, _ = made(15, seed=1)
    lengths = np.random.default_rng(0).uniform(0.1, 50, size=(55, 1)).astype("float32")
    found = knn.knn_votes(train * lengths[:40], labels, test * lengths[40:], 4, 5)
    np.testing.assert_allclose(
        found, knn.knn_votes(train, labels, test, 4, 5), rtol=1e-3
    )
    # By the dot product the long one would win.
    train = np.array([[1, 0], [50, 50]], "float32")
    votes = knn.knn_votes(
        train, np.array([0, 1]), np.array([[1, 0.1]], "float32"), 2, 1
    )
    np.testing.assert_allclose(votes, [[1, 0]])


def test_knn_survives_empty_features():
    train = np.zeros((3, 2), "float32")
    votes = knn.knn_votes(train, np.array([0, 1, 1]), train, 2, 3)
    assert np.isfinite(votes).all()
