"""Projections as rows of length one."""

import tensorflow as tf


def normalize(z: tf.Tensor) -> tf.Tensor:
    """Returns the rows of z scaled to length one; zero rows stay zero.

    Args:
        z: `[n, d]`, any float type.

    Returns:
        `[n, d]`, float32.
    """
    # Cast before normalising: 1e-12 is zero in float16.
    z = tf.cast(z, tf.float32)
    squared = tf.reduce_sum(tf.square(z), axis=1, keepdims=True)
    # The gradient of tf.math.l2_normalize at a zero row is 1e6, infinite in float16.
    return z * tf.math.rsqrt(tf.where(squared > 1e-12, squared, 1.0))
