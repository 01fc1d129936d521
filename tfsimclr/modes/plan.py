"""What a run will cost, found out before anything is written."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from tfsimclr import build, resolve
from tfsimclr.data import dataset as datasets
from tfsimclr.modes import dry_run
from tfsimclr.networks import flops, norms
from tfsimclr.optimizers import schedules
from tfsimclr.settings.config import Config

SMALLER = (8, 4)  # the first trials have the batch divided by these
SIMILARITIES = 3  # matrices [2n, 2n] of float32 that a loss holds at a time


def plan(config: Config, dataset: datasets.DataSet) -> None:
    """Prints what a resolved config will take; makes no run folder."""
    found = measure(config, dataset)
    print("The plan; nothing is written:")
    print(text(found, config), flush=True)


def measure(config: Config, dataset: datasets.DataSet) -> dict:
    """Returns the numbers of the plan: counts, bytes, seconds, images.

    Small batches are tried first. Where the whole batch would not fit the memory by
    them, its steps are not tried, and the speed is that of a quarter of it.
    """
    images = dataset.pretrain.images
    count = config.num_pretrain_images or len(images)
    steps = count // config.batch_size
    # Pages of mapped images count as ours, although the system may drop them.
    mapped = 0 if dry_run.has_gpu() else count * int(np.prod(images.shape[1:]))
    available = int(config.memory_gb * 1e9) or dry_run.device_memory()
    trials = [_tried(config, images, SMALLER[0])]
    fits = available is None or bound(config, trials[0]) <= available
    if not fits:  # by a bound; by a line it may
        trials.append(_tried(config, images, SMALLER[1]))
        fits = line(config, trials)(config.batch_size) <= available
    if fits and trials[-1]["batch_size"] < config.batch_size:
        try:
            trials.append(dry_run.measure_in_subprocess(config, images))
        except MemoryError:
            fits = False
    tried, peak_of = trials[-1], line(config, trials)
    peak = peak_of(config.batch_size)
    per_image = tried["step_seconds"] / tried["batch_size"]
    step_seconds = per_image * config.batch_size
    of_epoch = steps * step_seconds + tried["epoch_end_seconds"]
    once = tried["first_end_seconds"] - tried["epoch_end_seconds"]
    return {
        "counts": counts(config),
        "images": count,
        "steps_per_epoch": steps,
        "peak_memory_bytes": peak + mapped,
        "mapped_bytes": mapped,
        "memory_bytes": available,
        "fits": fits and (available is None or peak <= available),
        "tried_batch_size": tried["batch_size"],
        "images_per_second": 1 / per_image,
        "seconds": tried["start_seconds"] + once + config.epochs * of_epoch,
        "learning_rates": learning_rates(config),
        "largest_batch": largest_batch(peak_of, available),
    }


def counts(config: Config) -> dict:
    """Returns numbers of parameters and the multiply-adds per image."""
    model = build.method(config, total_steps=1)
    learned = model.learned_variables
    size, batch = config.image_size, config.batch_size

    def gradients(view_a, view_b):
        with tf.GradientTape() as tape:
            loss, _ = model.objective(view_a, view_b)
        return tape.gradient(loss, learned)

    view = tf.TensorSpec([batch, size, size, 3])
    image = tf.TensorSpec([1, size, size, 3])
    return {
        "learned": sum(math.prod(v.shape) for v in learned),
        "parameters": model.count_params(),
        "encoder": model.encoder.count_params(),
        "forward_macs": flops.multiply_adds(
            lambda x: model.encoder(x, training=False), image
        ),
        "step_macs": flops.multiply_adds(gradients, view, view) / batch,
    }


def with_batch(config: Config, batch_size: int) -> Config:
    """Returns a resolved config at another batch size, the method's settings fitted."""
    changes: dict = {"batch_size": batch_size}
    if config.queue_size:
        changes["queue_size"] = max(1, config.queue_size // batch_size) * batch_size
    if config.bn_groups and batch_size % config.bn_groups:
        changes["bn_groups"] = norms.default_bn_groups(batch_size)
    if config.loss_block_rows:
        changes["loss_block_rows"] = math.gcd(config.loss_block_rows, 2 * batch_size)
    return dataclasses.replace(config, **changes)


def _tried(config: Config, images, part: int) -> dict:
    small = max(2, config.batch_size // part)
    return dry_run.measure_in_subprocess(with_batch(config, small), images)


def bound(config: Config, small: dict) -> float:
    """Returns more than the peak at the config's batch, from a trial of a smaller one.

    As if all that the steps added grew with the batch, TensorFlow's own share too.
    """
    factor = config.batch_size / small["batch_size"]
    grown = (small["step_peak_bytes"] - small["base_bytes"]) * factor
    return small["base_bytes"] + grown + _of_loss(config, config.batch_size)


def line(config: Config, trials: list[dict]):
    """Returns the peak as a function of the batch, through the last two trials.

    That of the steps grows with the batch, that of an epoch's end does not.
    """
    last = trials[-1]
    size, peak = last["batch_size"], last["step_peak_bytes"]
    per_image = (peak - last["base_bytes"]) / size
    if len(trials) > 1 and trials[-2]["batch_size"] < size:
        before = trials[-2]
        slope = (peak - before["step_peak_bytes"]) / (size - before["batch_size"])
        # A tiny network drowns in what TensorFlow itself takes.
        per_image = slope if slope > 0 else per_image

    def peak_of(batch_size):
        more = _of_loss(config, batch_size) - _of_loss(config, size)
        return max(peak + per_image * (batch_size - size) + more, last["peak_bytes"])

    return peak_of


def largest_batch(peak_of, available: int | None) -> int | None:
    """Returns the largest batch whose peak fits; 0 if none, None if none is known."""
    if available is None:
        return None
    low, high = 0, 1 << 24
    while low < high:
        middle = (low + high + 1) // 2
        fits = peak_of(middle) <= available
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def learning_rates(config: Config) -> dict[str, tuple[float, float]]:
    """Returns {rule: (rate before scaling, rate that the run would have)}.

    A rate that is the optimizer's default is replaced by its default under each rule.
    """

    def default(rule):
        return resolve.optimizer_defaults(config.optimizer, rule, config.epochs)[
            "learning_rate"
        ]

    own = config.learning_rate
    is_default = own == default(config.learning_rate_scaling)
    bases = {r: default(r) if is_default else own for r in schedules.SCALING_RULES}
    return {
        rule: (base, schedules.scaled_learning_rate(base, config.batch_size, rule))
        for rule, base in bases.items()
    }


def _of_loss(config: Config, batch_size: int) -> float:
    """Returns the bytes of the loss's matrices, which grow with the batch squared."""
    rows = config.loss_block_rows or 2 * batch_size
    return 4 * SIMILARITIES * rows * 2 * batch_size


def text(found: dict, config: Config) -> str:
    """Returns the plan in words."""
    counts, memory = found["counts"], found["memory_bytes"]
    forward, step = counts["forward_macs"], counts["step_macs"]
    known = f"{memory / 1e9:.1f} GB" if memory else "unknown; give --memory_gb"
    if memory:
        known += " by --memory_gb" if config.memory_gb else " of this device"
    peak = f"{found['peak_memory_bytes'] / 1e9:.2f} GB, memory {known}"
    if found["mapped_bytes"]:
        dropped = found["mapped_bytes"] / 1e9
        peak += f" ({dropped:.2f} GB are images in files, which the system can drop)"
    if not found["fits"]:
        peak += ": too much"
    speed = f"{found['images_per_second']:.4g} images/s in {dry_run.STEPS} steps"
    if found["tried_batch_size"] != config.batch_size:
        speed += f" of {found['tried_batch_size']}"
    seconds, steps = found["seconds"], found["steps_per_epoch"]
    rates = [
        f"{rule} {rate:.4g}" + (" (this run)" * (rule == config.learning_rate_scaling))
        for rule, (_, rate) in found["learning_rates"].items()
    ]
    largest = found["largest_batch"]
    lines = {
        "parameters": f"{_large(counts['learned'])} learned, "
        f"{_large(counts['parameters'])} in all; {_large(counts['encoder'])} of the "
        "encoder",
        "FLOPs per image": f"{_large(2 * forward)} through the encoder "
        f"({_large(forward)} multiply-adds), {_large(2 * step)} in a step (two views, "
        "forward and backward)",
        "peak memory": peak,
        "speed": speed,
        "pretraining": f"{seconds / 3600:.3g} hours: {config.epochs} epochs of "
        f"{steps} steps of {config.batch_size}; evaluation comes on top",
        "learning rate": ", ".join(rates),
        "largest batch": "unknown" if largest is None else f"{largest} images",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())


def _large(number: float) -> str:
    """Returns "1.81 G" or "702.6 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.0f}"
