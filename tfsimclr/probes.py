"""How good frozen features are: a linear classifier and nearest neighbours."""

import keras
import numpy as np
import tensorflow as tf

from tfsimclr import lars

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
        ValueError: If features and labels do not fit, or a setting is out of range.

    Source: Zhang et al. 2016 and Chen et al. 2020 (arXiv:2002.05709), section 2.3.
    """
    labels = _checked(features, labels, num_classes, optimizer)
    wrong = [rate for rate in learning_rates if not rate > 0]
    if epochs < 1 or batch_size < 1 or wrong:
        raise ValueError(
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


def chosen_learning_rate(
    features, labels, num_classes: int, seed: int, optimizer: str = "adam", **training
) -> float:
    """Returns the rate of `LEARNING_RATES` that is best on held-out training labels.

    A tenth of every class (at least one image, of those with two) is held out; the test
    set has no say. Ties go to the smaller rate.

    Raises:
        ValueError: As `linear_classifiers`.
    """
    labels = _checked(features, labels, num_classes, optimizer)
    rates = LEARNING_RATES[optimizer]
    held_out = stratified(labels, HELD_OUT, seed)
    kept = ~held_out
    if not held_out.any() or len(np.unique(labels[kept])) < 2:
        return rates[0]
    training = {"optimizer": optimizer, "seed": seed, **training}
    known = (features[kept], labels[kept], num_classes)
    accuracies = [
        top_k(predict(layer, features[held_out]), labels[held_out], 1)
        for layer in linear_classifiers(*known, rates, **training)
    ]
    return rates[int(np.argmax(accuracies))]


def stratified(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns a mask `[n]` that is true for about `share` of every class."""
    mask = np.zeros(len(labels), bool)
    generator = np.random.default_rng((seed, 0x5EED))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(share * len(members))) if len(members) > 1 else 0
        mask[generator.permutation(members)[:count]] = True
    return mask


def predict(classifier, features: np.ndarray, batch_size: int = 4096) -> np.ndarray:
    """Returns the logits `[n, classes]` of features `[n, d]`."""
    kernel, bias = (np.array(weight) for weight in classifier.get_weights())
    blocks = [features[i : i + batch_size] for i in range(0, len(features), batch_size)]
    return np.concatenate([block @ kernel + bias for block in blocks])


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Returns how often the label is among the k highest scores, in 0-1.

    A tie counts against the classifier: scores that are all equal score nothing
    unless k covers every class.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    # Not `scores >= own`: where the scores are no numbers, that would rank first.
    at_least_as_high = (~(scores < own)).sum(axis=1)  # the label itself included
    return float(np.mean(at_least_as_high <= k))


def neighbour_count(num_train: int, num_classes: int) -> int:
    """Returns k: 200, or on small sets as many as an average class has images."""
    return max(1, min(200, num_train // num_classes))


def knn(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
    block: int = 512,
) -> np.ndarray:
    """Returns the votes `[n, classes]` of the k most similar training images.

    Similarity is the cosine, so the rows are normalised here; a vote weighs
    exp(similarity / temperature).

    Args:
        train: `[m, d]` features.
        train_labels: `[m]` integers in 0 .. num_classes - 1.
        test: `[n, d]` features.
        num_classes: Classes that may be voted for.
        k: Neighbours, at most m.
        temperature: Of the weights.
        block: Test images at a time; memory is block * m floats.

    Raises:
        ValueError: If features and labels do not fit, or a setting is out of range.

    Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4.
    """
    train_labels = _checked(train, train_labels, num_classes)
    if np.shape(test)[1:] != np.shape(train)[1:] or not len(test):
        raise ValueError(
            "test must be [n, d] as train is, and not empty, got "
            f"{list(np.shape(test))} and {list(np.shape(train))}."
        )
    if k < 1 or block < 1 or not temperature > 0:
        raise ValueError(
            "k and block must be at least 1 and temperature above 0, got "
            f"k={k}, block={block}, temperature={temperature}."
        )
    k = min(k, len(train))
    bank = tf.math.l2_normalize(tf.constant(train, tf.float32), axis=1)
    classes = tf.constant(train_labels, tf.int32)

    @tf.function(reduce_retracing=True)
    def votes(queries):
        queries = tf.math.l2_normalize(queries, axis=1)
        near, rows = tf.math.top_k(tf.matmul(queries, bank, transpose_b=True), k)
        # Relative to the nearest: the largest weight is 1, none overflows.
        weights = tf.exp((near - near[:, :1]) / temperature)  # [b, k]
        chosen = tf.one_hot(tf.gather(classes, rows), num_classes)  # [b, k, c]
        return tf.einsum("bk,bkc->bc", weights, chosen)

    blocks = [test[i : i + block] for i in range(0, len(test), block)]
    return np.concatenate([votes(tf.constant(b, tf.float32)).numpy() for b in blocks])


def _checked(features, labels, num_classes, optimizer="adam") -> np.ndarray:
    """Returns the labels as an array; raises a ValueError where something is wrong."""
    if optimizer not in LEARNING_RATES:
        raise ValueError(
            f"optimizer must be one of {', '.join(LEARNING_RATES)}, got {optimizer!r}."
        )
    labels = np.asarray(labels)
    shapes = np.shape(features), labels.shape
    if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1] or not len(labels):
        raise ValueError(
            "features must be [n, d] and labels [n], of the same n and at least one, "
            f"got {list(shapes[0])} and {list(shapes[1])}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be in 0 .. {num_classes - 1}, got {labels.min()} .. "
            f"{labels.max()}. Leave images without a label (-1) out."
        )
    return labels
