"""How good frozen features are: a linear classifier and nearest neighbours."""

import keras
import numpy as np
import tensorflow as tf

from tfsimclr.data import sampling
from tfsimclr.errors import UserError
from tfsimclr.evaluation import metrics
from tfsimclr.optimizers import lars

# Decades: what suits the features of one encoder is far too small for another's.
LEARNING_RATES = {
    "adam": (3e-4, 3e-3, 3e-2, 3e-1),
    "sgd": (3e-3, 3e-2, 3e-1, 3.0),
    "lars": (0.1, 1.0, 10.0),
}
HELD_OUT = 0.1
OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    "lars": lars.LARS,
}


def linear_classifier(
    features, labels, num_classes: int, *, learning_rate: float = 3e-4, **training
) -> keras.layers.Dense:
    """Returns the Dense layer of `linear_classifiers` at one learning rate."""
    rates = (learning_rate,)
    return linear_classifiers(features, labels, num_classes, rates, **training)[0]


def linear_classifiers(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    learning_rates,
    *,
    epochs: int = 100,
    batch_size: int = 256,
    optimizer: str = "adam",
    seed: int = 0,
) -> list[keras.layers.Dense]:
    """Returns Dense layers trained on frozen features with cross-entropy.

    One for each learning rate; they start alike and see the same batches.

    Args:
        features: `[n, d]` float32, as the encoder gives them: not normalised.
        labels: `[n]` integers in 0 .. num_classes - 1.
        num_classes: Classes to tell apart.
        learning_rates: Constant ones, above 0.
        epochs: Passes over the features; every pass in another order, no image left
            out at its end.
        batch_size: Features per step.
        optimizer: `adam`, `sgd` or `lars`.
        seed: Of the initial weights and the order.

    Raises:
        UserError: If features and labels do not fit, or a setting is out of range.

    Source: Zhang et al. 2016 and Chen et al. 2020 (arXiv:2002.05709), section 2.3.
    """
    labels = metrics.checked_labels(features, labels, num_classes)
    if optimizer not in LEARNING_RATES:
        raise UserError(
            f"optimizer must be one of {', '.join(LEARNING_RATES)}, got {optimizer!r}."
        )
    wrong = [rate for rate in learning_rates if not rate > 0]
    if epochs < 1 or batch_size < 1 or wrong:
        raise UserError(
            "epochs and batch_size must be at least 1 and learning_rate above 0, got "
            f"epochs={epochs}, batch_size={batch_size}, learning_rate="
            f"{(wrong or list(learning_rates))[0]}."
        )
    pairs = []
    for rate in learning_rates:
        glorot = keras.initializers.GlorotUniform(seed=seed)
        layer = keras.layers.Dense(
            num_classes, kernel_initializer=glorot, dtype="float32"
        )
        layer.build((None, features.shape[1]))
        updates = OPTIMIZERS[optimizer](rate)
        updates.build(layer.trainable_variables)
        pairs.append((layer, updates))
    x, y = tf.constant(features, tf.float32), tf.constant(labels, tf.int32)

    # `fit` costs milliseconds a step, more than the step itself; a loop in the graph
    # trains thirty classifiers in the time of one. Four side by side take 1.6 times as
    # long as one: what a step costs is its batch and starting its operations.
    @tf.function
    def train(order):  # [steps, batch]
        for step in tf.range(tf.shape(order)[0]):
            batch, targets = tf.gather(x, order[step]), tf.gather(y, order[step])
            for layer, updates in pairs:
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(
                        tf.nn.sparse_softmax_cross_entropy_with_logits(
                            labels=targets, logits=layer(batch)
                        )
                    )
                variables = layer.trainable_variables
                updates.apply(tape.gradient(loss, variables), variables)

    order = np.concatenate(
        [np.random.default_rng((seed, e)).permutation(len(y)) for e in range(epochs)]
    )
    # One stream over all epochs: a batch may straddle two, so none is cut short. The
    # last is filled up from the beginning.
    batch_size = min(batch_size, len(y))
    steps = -(-len(order) // batch_size)
    order = tf.constant(np.resize(order, (steps, batch_size)), tf.int32)
    # Not `train(order)`: from the fifth classifier on, that would warn of retracing.
    train.get_concrete_function(order)(order)
    return [layer for layer, _ in pairs]


def select_learning_rate(
    features, labels, num_classes: int, seed: int, optimizer: str = "adam", **training
) -> float:
    """Returns the rate of `LEARNING_RATES` that is best on held-out training labels.

    A tenth of every class (at least one image, of those with two) is held out; the test
    set has no say. Ties go to the smaller rate.

    Raises:
        UserError: As `linear_classifiers`.
    """
    labels = metrics.checked_labels(features, labels, num_classes)
    if optimizer not in LEARNING_RATES:
        raise UserError(
            f"optimizer must be one of {', '.join(LEARNING_RATES)}, got {optimizer!r}."
        )
    rates = LEARNING_RATES[optimizer]
    held_out = sampling.stratified_mask(labels, HELD_OUT, seed)
    kept = ~held_out
    if not held_out.any() or len(np.unique(labels[kept])) < 2:
        return rates[0]
    training = {"optimizer": optimizer, "seed": seed, **training}
    known = (features[kept], labels[kept], num_classes)
    accuracies = [
        metrics.top_k_accuracy(predict(layer, features[held_out]), labels[held_out], 1)
        for layer in linear_classifiers(*known, rates, **training)
    ]
    return rates[int(np.argmax(accuracies))]


def predict(classifier, features: np.ndarray, batch_size: int = 4096) -> np.ndarray:
    """Returns the logits `[n, classes]` of features `[n, d]`."""
    kernel, bias = (np.array(weight) for weight in classifier.get_weights())
    blocks = [features[i : i + batch_size] for i in range(0, len(features), batch_size)]
    return np.concatenate([block @ kernel + bias for block in blocks])
