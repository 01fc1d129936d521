"""Linear evaluation: a linear classifier on frozen features."""

import keras
import numpy as np
import tensorflow as tf

from tfsimclr.data import sampling
from tfsimclr.errors import UserError
from tfsimclr.evaluation import metrics
from tfsimclr.optimizers import lars

# The candidates of `select_learning_rate`. A factor of ten apart: features of different
# encoders differ that much in scale.
LEARNING_RATES = {
    "adam": (3e-4, 3e-3, 3e-2, 3e-1),
    "sgd": (3e-3, 3e-2, 3e-1, 3.0),
    "lars": (0.1, 1.0, 10.0),
}
HELD_OUT = 0.1
MOMENTUM = 0.9  # of sgd and lars
ADAM_BETAS = (0.9, 0.999)
LARS_L2, LARS_TRUST = 1e-6, 0.001


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
    """Trains linear classifiers on frozen features, one for each learning rate.

    All start from the same weights and see the same batches. The loss is the
    cross-entropy.

    Args:
        features: `[n, d]` float32, the output of the encoder, not normalised.
        labels: `[n]` integers in 0 .. num_classes - 1.
        num_classes: Number of classes.
        learning_rates: Constant learning rates, above 0.
        epochs: Passes over the features, each in another random order. Every image is
            used equally often.
        batch_size: Features per step.
        optimizer: `adam`, `sgd` (momentum 0.9) or `lars`.
        seed: Seed of the initial weights and of the order.

    Returns:
        A Dense layer, float32, for each learning rate.

    Raises:
        UserError: If features and labels do not fit, or a setting is out of range.

    Source: Zhang et al. 2016 and Chen et al. 2020 (arXiv:2002.05709), section 2.3.
    """
    labels = metrics.checked_labels(features, labels, num_classes)
    _check_optimizer(optimizer)
    not_positive = [rate for rate in learning_rates if not rate > 0]
    if epochs < 1 or batch_size < 1 or not_positive:
        raise UserError(
            "epochs and batch_size must be at least 1 and learning_rate above 0, got "
            f"epochs={epochs}, batch_size={batch_size}, learning_rate="
            f"{(not_positive or list(learning_rates))[0]}."
        )
    batch_size = min(batch_size, len(labels))
    order = np.concatenate(
        [
            np.random.default_rng((seed, epoch)).permutation(len(labels))
            for epoch in range(epochs)
        ]
    )
    # The permutations of all epochs form one sequence, so that a batch may contain the
    # end of one epoch and the beginning of the next and no batch is smaller. The last
    # batch is filled from the beginning of the sequence.
    steps = -(-len(order) // batch_size)
    order = np.resize(order, (steps, batch_size))
    start = keras.initializers.GlorotUniform(seed=seed)(
        (features.shape[1], num_classes)
    )
    weights = _train(
        tf.constant(features, tf.float32),
        tf.constant(labels, tf.int32),
        tf.constant(order, tf.int32),
        start,
        tf.constant(learning_rates, tf.float32),
        optimizer,
    )
    return [_dense(kernel_and_bias) for kernel_and_bias in weights]


def _train(features, labels, order, start, rates, optimizer: str) -> np.ndarray:
    """Trains classifiers at all learning rates together.

    A classifier is one matrix, its kernel and below it its bias, and the matrices of
    all rates stand side by side. They are `start + rate * movement`, and the movement
    is trained with learning rate 1. So a step is one matrix product forward, one
    backward and one update, however many rates there are. Keras `fit` adds milliseconds
    per step, more than such a step takes.

    Args:
        features: `[n, d]`, float32.
        labels: `[n]`, int32.
        order: Rows of the batches, `[steps, batch]`, int32.
        start: Initial kernel of every classifier, `[d, classes]`.
        rates: Learning rates, `[r]`, float32.
        optimizer: Key of `LEARNING_RATES`.

    Returns:
        Kernels, and biases as a last row, `[r, d + 1, classes]`, float32.
    """
    count, (dim, classes) = rates.shape[0], start.shape
    steps, batch_size = order.shape
    features = tf.pad(features, [[0, 0], [0, 1]], constant_values=1.0)
    scale = tf.repeat(rates, classes)  # [r * classes]
    start = tf.pad(tf.tile(start, [1, count]), [[0, 1], [0, 0]])
    movement, mean, square = (tf.Variable(tf.zeros_like(start)) for _ in range(3))
    exponents = tf.range(1.0, steps + 1.0)
    powers = tf.stack([ADAM_BETAS[0] ** exponents, ADAM_BETAS[1] ** exponents], axis=1)

    @tf.function
    def train(features, labels, order, powers):
        for step in tf.range(steps):
            batch = tf.gather(features, order[step])
            logits = tf.matmul(batch, start + scale * movement)
            logits = tf.reshape(logits, [batch_size, count, classes])
            targets = tf.one_hot(tf.gather(labels, order[step]), classes)[:, None]
            # The gradient of the mean cross-entropy with respect to the logits.
            error = (tf.nn.softmax(logits) - targets) / batch_size
            error = tf.reshape(error, [batch_size, count * classes])
            gradient = tf.matmul(batch, error, transpose_a=True)
            if optimizer == "adam":
                tf.raw_ops.ResourceApplyAdam(
                    var=movement.handle,
                    m=mean.handle,
                    v=square.handle,
                    beta1_power=powers[step, 0],
                    beta2_power=powers[step, 1],
                    lr=1.0,
                    beta1=ADAM_BETAS[0],
                    beta2=ADAM_BETAS[1],
                    epsilon=1e-7,
                    grad=gradient,
                )
                continue
            if optimizer == "lars":
                gradient = _lars_update(start + scale * movement, gradient, count)
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=movement.handle,
                accum=mean.handle,
                lr=1.0,
                grad=gradient,
                momentum=MOMENTUM,
            )

    arguments = (features, labels, order, powers)
    # Calling `train` itself would warn about retracing from the fifth call on.
    train.get_concrete_function(*arguments)(*arguments)
    weights = tf.reshape(start + scale * movement, [dim + 1, count, classes])
    return tf.transpose(weights, [1, 0, 2]).numpy()


def _lars_update(weights, gradient, count: int):
    """Returns the update of `lars.LARS` for `count` classifiers side by side.

    As in `lars.LARS` the biases, the last row, get neither decay nor adaptation.
    """
    kernels = tf.split(weights[:-1], count, axis=1)
    kernel_gradients = tf.split(gradient[:-1], count, axis=1)
    updates = []
    for kernel, update in zip(kernels, kernel_gradients, strict=True):
        update += LARS_L2 * kernel
        updates.append(lars.trust_ratio(kernel, update, LARS_TRUST) * update)
    return tf.concat([tf.concat(updates, axis=1), gradient[-1:]], axis=0)


def _dense(kernel_and_bias: np.ndarray) -> keras.layers.Dense:
    rows, classes = kernel_and_bias.shape
    layer = keras.layers.Dense(classes, dtype="float32")
    layer.build((None, rows - 1))
    layer.set_weights([kernel_and_bias[:-1], kernel_and_bias[-1]])
    return layer


def _check_optimizer(optimizer: str) -> None:
    if optimizer not in LEARNING_RATES:
        raise UserError(
            f"optimizer must be one of {', '.join(LEARNING_RATES)}, got {optimizer!r}."
        )


def select_learning_rate(
    features, labels, num_classes: int, seed: int, optimizer: str = "adam", **training
) -> float:
    """Returns the rate of `LEARNING_RATES` with the best held-out accuracy.

    A tenth of the training labels of every class (at least one image, if the class has
    two) is held out for this; the test set is not used. Of equally good rates the
    smallest is returned, and also if there are too few images to hold any out.

    Args:
        features: `[n, d]` float32, the training features.
        labels: `[n]` integers in 0 .. num_classes - 1.
        num_classes: Number of classes.
        seed: Seed of the split and of the training.
        optimizer: Key of `LEARNING_RATES`.
        **training: Further arguments of `linear_classifiers`.

    Raises:
        UserError: If an argument is not valid for `linear_classifiers`.
    """
    labels = metrics.checked_labels(features, labels, num_classes)
    _check_optimizer(optimizer)
    rates = LEARNING_RATES[optimizer]
    held_out = sampling.stratified_mask(labels, HELD_OUT, seed)
    rest = ~held_out
    if not held_out.any() or len(np.unique(labels[rest])) < 2:
        return rates[0]
    training = {"optimizer": optimizer, "seed": seed, **training}
    known = (features[rest], labels[rest], num_classes)
    accuracies = [
        metrics.top_k_accuracy(predict(layer, features[held_out]), labels[held_out], 1)
        for layer in linear_classifiers(*known, rates, **training)
    ]
    return rates[int(np.argmax(accuracies))]


def predict(classifier, features: np.ndarray, batch_size: int = 4096) -> np.ndarray:
    """Returns the logits `[n, classes]` of features `[n, d]`.

    Args:
        classifier: A Dense layer of `linear_classifiers`.
        features: `[n, d]` float32.
        batch_size: Features per matrix product.
    """
    kernel, bias = (np.array(weight) for weight in classifier.get_weights())
    blocks = [features[i : i + batch_size] for i in range(0, len(features), batch_size)]
    return np.concatenate([block @ kernel + bias for block in blocks])
