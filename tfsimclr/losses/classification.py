"""Losses of logits: cross-entropy with labels and with the logits of a teacher."""

import tensorflow as tf


def distillation(logits, teacher_logits, temperature: float) -> tf.Tensor:
    """Returns the cross-entropy of a student with the soft labels of its teacher.

    It is the mean over the images times the squared temperature.

    Differs: equation 2 does not have the factor temperature^2, but the notebook that
    its authors published does. Without it the gradient grows as 1 / temperature: at 0.1
    the biases and batch-norm variables, whose steps LARS does not normalise, would move
    ten times as far as at 1.

    Args:
        logits: Logits of the student, `[n, classes]`, any float type.
        teacher_logits: Logits of the teacher on the same views, `[n, classes]`.
        temperature: Positive scalar by which both are divided; smaller is sharper.

    Returns:
        Scalar float32.

    Source: Chen et al. 2020 (arXiv:2006.10029), equation 2; the factor: Hinton et al.
    2015 (arXiv:1503.02531), section 2.
    """
    logits = tf.cast(logits, tf.float32) / temperature
    targets = tf.nn.softmax(tf.cast(teacher_logits, tf.float32) / temperature)
    entropies = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    return temperature**2 * tf.reduce_mean(entropies)


def cross_entropy(logits, labels) -> tf.Tensor:
    """Returns the mean cross-entropy of logits and labels, scalar float32.

    Args:
        logits: `[n, classes]`, any float type.
        labels: `[n]` integers in 0 .. classes - 1.
    """
    logits = tf.cast(logits, tf.float32)
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    )
