"""The linear classifier against scikit-learn, and how its learning rate is chosen."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsimclr import losses
from tfsimclr.data import sampling
from tfsimclr.errors import UserError
from tfsimclr.evaluation import knn, linear, metrics
from tfsimclr.optimizers import lars

ADAM_RATES = linear.LEARNING_RATES["adam"]


def clusters(num, seed=0, scale=1.0, classes=4, dim=20):
    """Returns features `[num, dim]`, a Gaussian cluster per class, and labels."""
    centres = 0.7 * np.random.default_rng(42).normal(size=(classes, dim))
    generator = np.random.default_rng((seed, num))
    labels = generator.integers(0, classes, num)
    noise = generator.normal(size=(num, dim))
    return (scale * (centres[labels] + noise)).astype("float32"), labels


def accuracy(classifier, features, labels):
    return metrics.top_k_accuracy(linear.predict(classifier, features), labels, 1)


@pytest.mark.promise("evaluation")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_linear_classifier_is_as_accurate_as_scikit_learn(optimizer):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = clusters(400)
    test, test_labels = clusters(2000, seed=1)
    reference = linear_model.LogisticRegression(max_iter=1000).fit(features, labels)
    expected = reference.score(test, test_labels)
    assert 0.7 < expected < 0.95  # neither too easy nor too hard
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
    features, labels = clusters(200)
    classifier = linear.linear_classifier(
        *(features, labels, 4),
        **{"epochs": 40, "batch_size": 50, "optimizer": optimizer},
        learning_rate=rate,
    )
    assert accuracy(classifier, *clusters(500, seed=1)) > 0.75


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lars"])
def test_the_selected_rate_trains_every_optimizer(optimizer):
    # As with --probe_optimizer alone: the learning rate is selected.
    features, labels = clusters(300)
    training = {"epochs": 30, "batch_size": 32, "optimizer": optimizer}
    rate = linear.select_learning_rate(features, labels, 4, 0, **training)
    classifier = linear.linear_classifier(
        features, labels, 4, learning_rate=rate, **training
    )
    assert accuracy(classifier, *clusters(500, seed=1)) > 0.75


@pytest.mark.parametrize(
    ("num", "batch", "epochs"),
    [(12, 4, 3), (10, 5, 2), (10, 4, 4), (7, 7, 3), (5, 1, 2), (6, 100, 3)],
)
def test_every_image_is_used_equally_often(monkeypatch, num, batch, epochs):
    # The features are the identity matrix, so image i moves only row i of the kernel.
    # Without momentum and with a tiny rate every use of the image moves it as far.
    monkeypatch.setattr(linear, "MOMENTUM", 0.0)
    rate = 1e-3
    arguments = (np.eye(num, dtype="float32"), np.zeros(num, int), 2)
    options = {"batch_size": batch, "optimizer": "sgd", "seed": 3}
    trained, start = (
        linear.linear_classifier(
            *arguments, epochs=epochs, learning_rate=r, **options
        ).get_weights()[0]
        for r in (rate, 1e-12)
    )
    distance = (trained - start)[:, 0]
    wrong_share = 1 / (1 + np.exp(start[:, 0] - start[:, 1]))
    uses = distance * min(batch, num) / (rate * wrong_share)
    np.testing.assert_allclose(uses, epochs, rtol=0.02)


def test_the_order_differs_between_epochs_and_seeds_but_not_between_runs():
    features, labels = clusters(100)
    options = {"epochs": 2, "batch_size": 10, "learning_rate": 0.01}
    first, again, other = (
        linear.linear_classifier(features, labels, 4, seed=seed, **options)
        for seed in (1, 1, 2)
    )
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(first.get_weights()[0], other.get_weights()[0])


def test_a_batch_larger_than_the_data_is_the_whole_data():
    features, labels = clusters(30)
    big, whole = (
        linear.linear_classifier(features, labels, 4, epochs=5, batch_size=size)
        for size in (10_000, 30)
    )
    np.testing.assert_array_equal(big.get_weights()[0], whole.get_weights()[0])


def test_the_classifier_is_float32_whatever_the_encoder_was():
    keras.config.set_dtype_policy("mixed_float16")
    features, labels = clusters(50, scale=1000)
    classifier = linear.linear_classifier(features, labels, 4, epochs=3)
    assert classifier.compute_dtype == "float32"
    assert all(weight.dtype == np.float32 for weight in classifier.get_weights())


@pytest.mark.promise("evaluation-input")
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
@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: linear.linear_classifier(x, y, 2),
        lambda x, y: linear.select_learning_rate(x, y, 2, seed=0),
        lambda x, y: knn.knn_votes(x, y, x, 2),
    ],
    ids=["linear_classifier", "select_learning_rate", "knn_votes"],
)
def test_labels_that_do_not_fit_are_errors(function, labels, message):
    features = np.zeros((3, 2), "float32")
    labels = np.array(labels) if labels else np.zeros(0, int)
    with pytest.raises(UserError, match=message):
        function(features, labels)


def test_labels_may_be_a_list():
    features, labels = clusters(50)
    layers = [
        linear.linear_classifier(features, any_labels, 4, epochs=2)
        for any_labels in (labels, labels.tolist())
    ]
    np.testing.assert_array_equal(*[layer.kernel.numpy() for layer in layers])


@pytest.mark.promise("evaluation-input")
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
def test_settings_of_the_classifier_out_of_range_are_errors(settings, message):
    features, labels = clusters(8)
    with pytest.raises(UserError, match=message):
        linear.linear_classifier(features, labels, 4, **settings)


def test_an_unknown_optimizer_has_no_rates():
    with pytest.raises(UserError, match="one of adam, sgd, lars, got 'adamw'"):
        linear.select_learning_rate(*clusters(8), 4, 0, optimizer="adamw")


def test_no_images_are_an_error():
    with pytest.raises(UserError, match="at least one"):
        linear.linear_classifier(np.zeros((0, 2), "float32"), np.zeros(0, int), 2)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_learning_rate_follows_the_scale_of_the_features(scale):
    features, labels = clusters(400, scale=scale)
    test = clusters(1000, seed=1, scale=scale)
    training = {"epochs": 30, "batch_size": 64}
    selected = linear.select_learning_rate(features, labels, 4, 0, **training)
    assert selected in ADAM_RATES
    scores = {
        rate: accuracy(
            linear.linear_classifier(
                features, labels, 4, learning_rate=rate, **training
            ),
            *test,
        )
        for rate in ADAM_RATES
    }
    assert max(scores.values()) - min(scores.values()) > 0.1  # the rate matters
    # Only 40 images are held out, so the selected rate need not be the best.
    assert scores[selected] > max(scores.values()) - 0.08
    if scale == 0.01:
        assert selected == max(ADAM_RATES)


@pytest.mark.promise("evaluation")
def test_the_learning_rate_is_selected_without_the_test_set():
    names = list(inspect.signature(linear.select_learning_rate).parameters)
    assert names == [
        "features",
        "labels",
        "num_classes",
        "seed",
        "optimizer",
        "training",
    ]


def test_a_rate_whose_classifier_diverges_is_not_selected(monkeypatch):
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


KERAS_OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    "lars": lars.LARS,
}


@pytest.mark.parametrize("optimizer", KERAS_OPTIMIZERS)
def test_it_is_what_keras_trains(optimizer):
    """The same batches through a Dense layer, a gradient tape and Keras's optimizer."""
    features, labels = clusters(40)
    rates = linear.LEARNING_RATES[optimizer][:3]
    layers = linear.linear_classifiers(
        features, labels, 4, rates, epochs=4, batch_size=10, optimizer=optimizer, seed=7
    )
    for rate, layer in zip(rates, layers, strict=True):
        initializer = keras.initializers.GlorotUniform(seed=7)
        expected = keras.layers.Dense(4, kernel_initializer=initializer)
        expected.build((None, 20))
        updates = KERAS_OPTIMIZERS[optimizer](rate)
        for epoch in range(4):
            order = np.random.default_rng((7, epoch)).permutation(40)
            for rows in order.reshape(4, 10):
                with tf.GradientTape() as tape:
                    loss = losses.cross_entropy(expected(features[rows]), labels[rows])
                variables = expected.trainable_variables
                updates.apply(tape.gradient(loss, variables), variables)
        for ours, theirs in zip(
            layer.get_weights(), expected.get_weights(), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lars"])
def test_classifiers_trained_together_equal_those_trained_alone(optimizer):
    features, labels = clusters(60)
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
    # TensorFlow warns from the fifth tf.function on that is traced for one call.
    features, labels = clusters(20)
    for seed in range(7):
        linear.linear_classifier(features, labels, 4, epochs=1, seed=seed)
    assert not caplog.records


@pytest.mark.parametrize("labels", [[0], [0, 1], [0, 0, 0], [0, 1, 2, 3]])
def test_with_too_few_images_to_hold_out_the_smallest_rate_is_used(labels):
    labels = np.array(labels)
    features = np.zeros((len(labels), 3), "float32")
    rate = linear.select_learning_rate(features, labels, 4, 0, epochs=1)
    assert rate == ADAM_RATES[0]


@pytest.mark.parametrize("batch", [1, 7, 4096])
def test_predict_gives_the_logits_of_the_layer(batch):
    features, labels = clusters(20)
    classifier = linear.linear_classifier(features, labels, 4, epochs=1)
    logits = linear.predict(classifier, features, batch_size=batch)
    np.testing.assert_allclose(logits, classifier(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_stratified_mask_holds_out_the_share_of_every_class(share):
    counts = (100, 50, 10, 2, 1)
    labels = np.random.default_rng(0).permutation(np.repeat(range(5), counts))
    mask = sampling.stratified_mask(labels, share, seed=0)
    counts_held_out = np.bincount(labels[mask], minlength=5)
    assert mask.dtype == bool and len(mask) == len(labels)
    np.testing.assert_array_equal(
        counts_held_out, [100 * share, 50 * share, 10 * share, 1, 0]
    )  # one image of two; never the only image of a class
    np.testing.assert_array_equal(mask, sampling.stratified_mask(labels, share, seed=0))
    assert (mask != sampling.stratified_mask(labels, share, seed=1)).any()


def test_stratified_mask_is_not_the_first_of_each_class():
    labels = np.repeat([0, 1], 50)
    rows = np.flatnonzero(sampling.stratified_mask(labels, 0.2, seed=0))
    assert not np.array_equal(rows, [*range(10), *range(50, 60)])
