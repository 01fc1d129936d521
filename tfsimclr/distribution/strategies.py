"""The `tf.distribute` strategies by name: the devices that share a training."""

import contextlib
import functools

import tensorflow as tf

from tfsimclr.distribution import workers
from tfsimclr.errors import UserError

STRATEGIES = ("auto", "none", "mirrored", "multi_worker")


@functools.cache  # one strategy for a process: TensorFlow allows no second cluster
def make(name: str) -> tf.distribute.Strategy | None:
    """Returns the strategy of a name, or None for training on one device.

    Args:
        name: `none`; `mirrored`, all GPUs of this machine, or all logical CPUs if there
            is no GPU; `multi_worker`, all machines of the environment variable
            TF_CONFIG, after `workers.join`; `auto`: `multi_worker` if this process has
            joined a cluster, `mirrored` if there is more than one GPU, otherwise
            `none`.

    Raises:
        UserError: If the name is unknown, or there is no cluster for `multi_worker`.
    """
    if name not in STRATEGIES:
        raise UserError(f"strategy must be one of {STRATEGIES}, got {name!r}.")
    gpus = tf.config.list_logical_devices("GPU") if not _has_cluster() else []
    if name == "auto":
        name = "multi_worker" if _has_cluster() else "mirrored" if gpus else "none"
    if name == "multi_worker":
        if not _has_cluster():
            raise UserError(
                "The strategy multi_worker needs the environment variable TF_CONFIG, "
                "and workers.join() with the cluster that it names."
            )
        # After that time the step of a worker that waits for another raises an error.
        options = tf.distribute.experimental.CommunicationOptions(
            timeout_seconds=workers.timeout()
        )
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    devices = gpus or tf.config.list_logical_devices("CPU")
    if name == "none" or len(devices) == 1:
        return None
    return mirrored([device.name for device in devices])


def mirrored(devices: list[str]) -> tf.distribute.MirroredStrategy:
    """Returns a strategy of some devices of this machine, such as `["CPU:0", "CPU:1"]`.

    Logical CPUs, which `tf.config.set_logical_device_configuration` makes of one, are
    for tests: they share its cores.
    """
    if any("GPU" in device for device in devices):
        return tf.distribute.MirroredStrategy(devices)
    # TensorFlow's default for CPUs, ring reduction, can wait for itself for ever when
    # a step has many reductions (seen with TensorFlow 2.21).
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


def of_model(model) -> tf.distribute.Strategy | None:
    """Returns the strategy of several devices in whose scope a model was made."""
    strategy = model.distribute_strategy
    return strategy if strategy.num_replicas_in_sync > 1 else None


def num_replicas(strategy: tf.distribute.Strategy | None) -> int:
    """Returns the number of devices of a strategy, over all machines."""
    return 1 if strategy is None else strategy.num_replicas_in_sync


def scope(strategy: tf.distribute.Strategy | None):
    """Returns a context in which models and optimizers get variables on all devices."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def is_chief(strategy: tf.distribute.Strategy | None) -> bool:
    """Returns whether this process writes the run folder: one of all workers does."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or not resolver.cluster_spec():
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    chief = ("chief", 0) if has_chief else ("worker", 0)
    return (resolver.task_type, resolver.task_id) == chief


def _has_cluster() -> bool:
    return workers.watchdog() is not None
