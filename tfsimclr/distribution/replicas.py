"""What the replicas of a training step have in common, inside the step.

Under a `tf.distribute` strategy of N devices, each device runs the training step as a
replica, on its part of the batch: replica r has rows r b, ..., (r + 1) b - 1 of the
N b rows. Every replica then computes the loss of the whole batch from the gathered
outputs of the networks, so a step is that of one device.

Outside of such a step, or with one device, the functions return what they are given and
add no operation to the graph.
"""

import contextlib
import threading

import numpy as np
import tensorflow as tf


class _Local(threading.local):
    # The replicas of a MirroredStrategy are traced in threads of their own.
    separate_batch_norm = False


_local = _Local()


def count() -> int:
    """Returns the number of replicas of the running step; 1 outside of one."""
    context = _context()
    return 1 if context is None else context.num_replicas_in_sync


def index():
    """Returns which replica runs this code: 0, ..., `count()` - 1."""
    context = _context()
    return 0 if context is None else context.replica_id_in_sync_group


def gather(tensor):
    """Returns the rows of all replicas, `[N n, ...]`, in the order of the replicas.

    It can be differentiated: the gradient is that of the sum of the replicas' losses.
    So if every replica computes the loss of the whole batch and divides it by N, its
    gradient is the part that its own rows have in the gradient of one device; `total`
    adds up the parts. No replica computes larger numbers than one device, which in
    float16 matters.

    Args:
        tensor: `[n, ...]`, of a float type, int32 or int64, with equal n everywhere.
    """
    context = _context()
    if context is None:
        return tensor
    # Zeros around the own rows and a sum: tf.distribute's all_gather makes a graph
    # twice as large and loses the static shape.
    n = tensor.shape[0]
    rows = tf.shape(tensor)[0] if n is None else n
    first = context.replica_id_in_sync_group * rows
    whole = context.num_replicas_in_sync * rows
    around = [[first, whole - rows - first], *[[0, 0]] * (tensor.shape.rank - 1)]
    padded = tf.pad(tensor, around)
    padded = tf.ensure_shape(padded, [None if n is None else whole, *tensor.shape[1:]])
    return context.all_reduce(tf.distribute.ReduceOp.SUM, padded)


def total(tensors: list) -> list:
    """Returns the sums of tensors over the replicas; entries may be None."""
    return _reduce(tf.distribute.ReduceOp.SUM, tensors)


def mean(tensors: list) -> list:
    """Returns the means of tensors over the replicas; entries may be None."""
    return _reduce(tf.distribute.ReduceOp.MEAN, tensors)


def _reduce(how, tensors: list) -> list:
    context = _context()
    if context is None:
        return tensors
    known = [tensor for tensor in tensors if tensor is not None]
    reduced = iter(context.all_reduce(how, known))
    return [None if tensor is None else next(reduced) for tensor in tensors]


def combined_moments(mean, variance):
    """Returns mean and variance over all replicas' values.

    They are the mean of the means, and the mean of the variances plus the variance of
    the means. The difference of E[x^2] and E[x]^2 would lose all digits where the mean
    is much larger than the standard deviation.

    Args:
        mean: The means of this replica's values, `[channels]`.
        variance: Their variances, `[channels]`.
    """
    if _context() is None:
        return mean, variance
    means, variances = tf.unstack(gather(tf.stack([mean, variance])[None]), axis=1)
    mean = tf.reduce_mean(means, axis=0)
    spread = tf.reduce_mean(tf.math.squared_difference(means, mean), axis=0)
    return mean, tf.reduce_mean(variances, axis=0) + spread


@contextlib.contextmanager
def separate_batch_norm(separate: bool = True):
    """Makes batch norm, inside the block, use the images of its own replica alone."""
    before = _local.separate_batch_norm
    _local.separate_batch_norm = before or separate
    try:
        yield
    finally:
        _local.separate_batch_norm = before


def batch_norm_is_shared() -> bool:
    """Returns whether batch norm has to combine the statistics of several replicas."""
    return count() > 1 and not _local.separate_batch_norm


class StepValue:
    """A value that a step keeps from its loss to its update.

    Each replica has its own: the step of a model is traced once for every replica, in
    threads that take turns.
    """

    def __init__(self):
        self._local = threading.local()

    def set(self, value) -> None:
        self._local.value = value

    def take(self):
        """Returns the value and forgets it; None if there is none."""
        value = getattr(self._local, "value", None)
        self._local.value = None
        return value


def log_value(scalar):
    """Returns a scalar as a training step has to return it under the strategy.

    Keras averages what the replicas return. Under several workers it does so over the
    first axis, which a scalar does not have (keras-team/keras#20585).
    """
    strategy = tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return scalar
    # Without a cluster the strategy is that of one machine.
    return scalar[None] if strategy.cluster_resolver.cluster_spec() else scalar


def local_value(variable) -> np.ndarray:
    """Returns the value of a Keras variable on this process's first device.

    `variable.numpy()` may ask all workers, which need not be listening.
    """
    value = variable.value
    if isinstance(value, tf.distribute.DistributedValues):
        value = value.distribute_strategy.experimental_local_results(value)[0]
    return value.numpy()


def _context():
    """Returns the context of a replica among several, or None."""
    context = tf.distribute.get_replica_context()  # None while a model is built
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context
