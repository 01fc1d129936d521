"""Estimates the time and memory of a run before anything is written (`--mode=plan`)."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from tfsimclr import build, optimizers
from tfsimclr.data import dataset as datasets
from tfsimclr.modes import dry_run, memory_search
from tfsimclr.networks import flops, norms
from tfsimclr.optimizers import schedules
from tfsimclr.runs import hardware
from tfsimclr.settings.config import Config

# The first dry runs use the batch size divided by these.
BATCH_DIVISORS = (8, 4)
# Similarity matrices [V n, V n] in float32 that exist at once during a loss.
SIMILARITY_MATRICES = 3


def plan(config: Config, dataset: datasets.DataSet) -> None:
    """Prints an estimate of a run's time and memory; makes no run folder.

    Args:
        config: Resolved.
        dataset: Its `pretrain` images are used for the dry runs.
    """
    estimate = measure(config, dataset)
    print("The plan; nothing is written:")
    print(describe(estimate, config), flush=True)
    available = estimate["memory_bytes"]
    if available and (config.memory_gb or not estimate["fits"]):
        images = dataset.pretrain.images
        results = memory_search.search(config, images, available, estimate["run"])
        print(memory_search.describe(results, available, dataset), flush=True)


def measure(config: Config, dataset: datasets.DataSet) -> dict:
    """Returns the numbers of the plan: counts, bytes, seconds, images.

    `run` is the result of `dry_run.measure_steps` at the batch size of the config, or
    None if it was not measured.

    Small batches are measured first. If they show that the full batch does not fit into
    memory, the full batch is not measured, and its speed is estimated from a quarter of
    it.
    """
    images, validation = build.pretraining_images(config, dataset)
    count = len(images)
    steps = count // config.batch_size
    # Pages of memory-mapped images count as memory of the process on a CPU, although
    # the system may drop them.
    mapped = 0 if dry_run.has_gpu() else count * int(np.prod(images.shape[1:]))
    available = int(config.memory_gb * 1e9) or dry_run.device_memory()
    runs = [_measure_part(config, images, BATCH_DIVISORS[0])]
    fits = available is None or peak_upper_bound(config, runs[0]) <= available
    if not fits:
        # The bound is pessimistic; a second batch size gives a linear estimate.
        runs.append(_measure_part(config, images, BATCH_DIVISORS[1]))
        fits = peak_estimate(config, runs)(config.batch_size) <= available
    if fits and runs[-1]["batch_size"] < config.batch_size:
        try:
            runs.append(dry_run.measure_in_subprocess(config, images))
        except MemoryError:
            fits = False
    largest, peak_of = runs[-1], peak_estimate(config, runs)
    peak = peak_of(config.batch_size)
    seconds_per_image = largest["step_seconds"] / largest["batch_size"]
    step_seconds = seconds_per_image * config.batch_size
    epoch_seconds = steps * step_seconds + largest["epoch_end_seconds"]
    # The loss on held-out images has no backward pass, two thirds of a step.
    epoch_seconds += len(validation) * seconds_per_image / 3
    first_end_extra = largest["first_end_seconds"] - largest["epoch_end_seconds"]
    return {
        "counts": counts(config),
        "images": count,
        "steps_per_epoch": steps,
        "peak_memory_bytes": peak + mapped,
        "mapped_bytes": mapped,
        "memory_bytes": available,
        "fits": fits and (available is None or peak <= available),
        "tried_batch_size": largest["batch_size"],
        "run": largest if largest["batch_size"] == config.batch_size else None,
        "images_per_second": 1 / seconds_per_image,
        "seconds": largest["start_seconds"]
        + first_end_extra
        + config.epochs * epoch_seconds,
        "learning_rates": learning_rates(config),
        "largest_batch": largest_batch(peak_of, available),
    }


def counts(config: Config) -> dict:
    """Returns numbers of parameters and the multiply-adds per image.

    Returns:
        `learned` (trained parameters), `parameters` (all of the model), `encoder` (all
        of the encoder), `forward_macs` (one image through the encoder) and `step_macs`
        (a training step per image: all its views, forward and backward).
    """
    # The operations of micro-batches are in loops, which would be counted once.
    whole = dataclasses.replace(config, microbatch_size=0, remat=False)
    model = build.method(whole, total_steps=1, num_images=config.batch_size)
    learned = model.learned_variables
    size, batch = config.image_size, config.batch_size

    def gradients(*batch):
        with tf.GradientTape() as tape:
            loss, _ = model.objective(*batch)
        return tape.gradient(loss, learned)

    sizes = [size] * config.num_views
    sizes += [config.local_image_size or 0] * config.num_local_views
    inputs = [tf.TensorSpec([batch, side, side, 3]) for side in sizes]
    if model.needs_index:
        inputs.append(tf.TensorSpec([batch], tf.int64))
    image = tf.TensorSpec([1, size, size, 3])
    return {
        "learned": sum(math.prod(v.shape) for v in learned),
        "parameters": model.count_params(),
        "encoder": model.encoder.count_params(),
        "forward_macs": flops.multiply_adds(
            lambda x: model.encoder(x, training=False), image
        ),
        "step_macs": flops.multiply_adds(gradients, *inputs) / batch,
    }


def with_batch(config: Config, batch_size: int) -> Config:
    """Returns a resolved config at another batch size.

    Settings that depend on the batch size (queue, batch-norm groups, row blocks of the
    loss, micro-batches) are changed to the nearest values that are valid for it.
    """
    changes: dict = {"batch_size": batch_size}
    pieces = 1
    if config.microbatch_size:
        changes["microbatch_size"] = math.gcd(config.microbatch_size, batch_size)
        pieces = batch_size // changes["microbatch_size"]
    if config.queue_size:
        changes["queue_size"] = max(1, config.queue_size // batch_size) * batch_size
    groups = config.bn_groups or 1
    if groups > 1 and (batch_size % groups or groups % pieces):
        changes["bn_groups"] = norms.default_bn_groups(batch_size, pieces)
    if config.loss_block_rows:
        rows = config.total_views * batch_size
        changes["loss_block_rows"] = math.gcd(config.loss_block_rows, rows)
    return dataclasses.replace(config, **changes)


def _measure_part(config: Config, images, divisor: int) -> dict:
    batch_size = max(2, config.batch_size // divisor)
    return dry_run.measure_in_subprocess(with_batch(config, batch_size), images)


def peak_upper_bound(config: Config, run: dict) -> float:
    """Returns an upper bound of the peak memory at the config's batch size, in bytes.

    It scales all memory that the steps of a smaller batch added with the batch size,
    although a part of it, TensorFlow's own, does not grow.

    Args:
        config: Resolved.
        run: Result of `dry_run.measure_steps` at a smaller batch size.
    """
    factor = config.batch_size / run["batch_size"]
    growth = (run["step_peak_bytes"] - run["base_bytes"]) * factor
    return run["base_bytes"] + growth + _loss_bytes(config, config.batch_size)


def peak_estimate(config: Config, runs: list[dict]):
    """Returns a function: batch size -> estimated peak memory in bytes.

    The peak of the steps is a line through the last two measurements plus the
    similarity matrices of the loss; the peak at the end of an epoch is constant.

    Args:
        config: Resolved.
        runs: Results of `dry_run.measure_steps`, by rising batch size.
    """
    last = runs[-1]
    size, peak = last["batch_size"], last["step_peak_bytes"]
    bytes_per_image = (peak - last["base_bytes"]) / size
    if len(runs) > 1 and runs[-2]["batch_size"] < size:
        previous = runs[-2]
        growth = peak - previous["step_peak_bytes"]
        slope = growth / (size - previous["batch_size"])
        # The memory of a tiny network is less than the noise of TensorFlow's own
        # memory, so the slope may be zero or negative.
        bytes_per_image = slope if slope > 0 else bytes_per_image

    def peak_of(batch_size):
        loss = _loss_bytes(config, batch_size) - _loss_bytes(config, size)
        steps = peak + bytes_per_image * (batch_size - size) + loss
        return max(steps, last["peak_bytes"])

    return peak_of


def largest_batch(peak_of, available: int | None) -> int | None:
    """Returns the largest batch size whose peak memory fits.

    Args:
        peak_of: Result of `peak_estimate`.
        available: Memory in bytes, or None if unknown.

    Returns:
        0 if not even one image fits, None if the memory is unknown.
    """
    if available is None:
        return None
    low, high = 0, 1 << 24
    while low < high:
        middle = (low + high + 1) // 2
        fits = peak_of(middle) <= available
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def learning_rates(config: Config) -> dict[str, tuple[float, float]]:
    """Returns {scaling rule: (rate before scaling, peak rate of the run)}.

    A learning rate that is the optimizer's default is replaced by the default of each
    rule.
    """

    def default(rule):
        return optimizers.optimizer_defaults(config.optimizer, rule, config.epochs)[
            "learning_rate"
        ]

    rate = config.learning_rate
    is_default = rate == default(config.learning_rate_scaling)
    bases = {r: default(r) if is_default else rate for r in schedules.SCALING_RULES}
    return {
        rule: (base, schedules.scaled_learning_rate(base, config.batch_size, rule))
        for rule, base in bases.items()
    }


def _loss_bytes(config: Config, batch_size: int) -> float:
    """Returns the bytes of the similarity matrices, quadratic in the batch size."""
    candidates = config.total_views * batch_size
    rows = config.loss_block_rows or candidates
    return 4 * SIMILARITY_MATRICES * rows * candidates


def describe(estimate: dict, config: Config) -> str:
    """Returns the plan as text, one line for each quantity.

    Args:
        estimate: Result of `measure`.
        config: Resolved.
    """
    counts, memory = estimate["counts"], estimate["memory_bytes"]
    forward, step = counts["forward_macs"], counts["step_macs"]
    memory_text = f"{memory / 1e9:.1f} GB" if memory else "unknown; give --memory_gb"
    if memory:
        memory_text += " by --memory_gb" if config.memory_gb else " of this device"
    peak = f"{estimate['peak_memory_bytes'] / 1e9:.2f} GB, memory {memory_text}"
    if estimate["mapped_bytes"]:
        mapped = estimate["mapped_bytes"] / 1e9
        peak += f" ({mapped:.2f} GB are images in files, which the system can drop)"
    if not estimate["fits"]:
        peak += ": too much"
    rate, views = estimate["images_per_second"], config.total_views
    speed = f"{rate:.4g} images/s ({rate * views:.4g} views/s) in {dry_run.STEPS} steps"
    if estimate["tried_batch_size"] != config.batch_size:
        speed += f" of {estimate['tried_batch_size']}"
    seconds, steps = estimate["seconds"], estimate["steps_per_epoch"]
    rates = [
        f"{rule} {rate:.4g}" + (" (this run)" * (rule == config.learning_rate_scaling))
        for rule, (_, rate) in estimate["learning_rates"].items()
    ]
    largest = estimate["largest_batch"]
    lines = {
        "hardware": hardware.summary(hardware.describe()),
        "parameters": f"{_large(counts['learned'])} learned, "
        f"{_large(counts['parameters'])} in all; {_large(counts['encoder'])} of the "
        "encoder",
        "FLOPs per image": f"{_large(2 * forward)} through the encoder "
        f"({_large(forward)} multiply-adds), {_large(2 * step)} in a step ({views} "
        "views, forward and backward)",
        "peak memory": peak,
        "batch norm": _batch_norm(config),
        "speed": speed,
        "pretraining": f"{seconds / 3600:.3g} hours: {config.epochs} epochs of "
        f"{steps} steps of {config.batch_size}; evaluation comes on top",
        "learning rate": ", ".join(rates),
        "largest batch": "unknown" if largest is None else f"{largest} images",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())


def _batch_norm(config: Config) -> str:
    """Returns over what batch norm computes its statistics."""
    size = config.microbatch_size or config.batch_size
    text = f"over the views of {size} images"
    if size < config.batch_size:
        pieces = config.batch_size // size
        text += f", one of {pieces} micro-batches, as on {pieces} devices"
    return text


def _large(number: float) -> str:
    """Returns "1.81 G" or "702.6 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.0f}"
