"""Finds the fastest way to train a batch that fits into a given memory."""

import dataclasses

from tfsimclr import resolve
from tfsimclr.modes import dry_run
from tfsimclr.networks import norms
from tfsimclr.networks.encoders import ENCODERS
from tfsimclr.report import command
from tfsimclr.runs import hardware
from tfsimclr.settings import options
from tfsimclr.settings.config import Config

# Batch norm over fewer images is noise, and the processor is no longer busy.
SMALLEST_MICROBATCH = 16
TIMED_STEPS = 3
BFLOAT16_CPUS = ("avx512_bf16", "amx_bf16")
SETTINGS = ("microbatch_size", "remat", "loss_block_rows", "precision")


@dataclasses.dataclass(frozen=True)
class Result:
    """A combination of settings and what its dry run measured.

    Attributes:
        config: The settings; those of `SETTINGS` differ between results.
        peak_bytes: Peak memory of the steps and of the end of an epoch; None if it does
            not fit.
        images_per_second: Speed; None if it does not fit.
    """

    config: Config
    peak_bytes: int | None = None
    images_per_second: float | None = None


def search(
    config: Config, images, available: int, measured: dict | None = None
) -> list[Result]:
    """Returns the combinations that were tried, the fastest one that fits first.

    Tried are the plain step, gradient checkpointing, and micro-batches from half of the
    batch down to the first size that fits; each in the precision of the config and, on
    a processor or GPU with bfloat16 arithmetic, in mixed bfloat16. Large batches that
    do not fit with the whole similarity matrix are tried with row blocks of the loss.

    Args:
        config: Resolved; its batch size is not changed.
        images: uint8 `[n, s, s, 3]`, at least a batch.
        available: Memory in bytes.
        measured: Result of `dry_run.measure_steps` of the config itself, which is then
            not measured again.
    """
    results = []

    def fits(candidate) -> bool:
        known = measured if candidate == config else None
        results.append(_result(candidate, images, available, known))
        return results[-1].peak_bytes is not None

    blocks = config.loss_block_rows or resolve.large_loss_blocks(config)
    for precision in _precisions(config):
        plain = dataclasses.replace(
            config, precision=precision, microbatch_size=0, remat=False
        )
        if not fits(plain) and blocks != plain.loss_block_rows:
            plain = dataclasses.replace(plain, loss_block_rows=blocks)
            fits(plain)
        if ENCODERS[config.backbone].residual_blocks:
            fits(dataclasses.replace(plain, remat=True))
        for size in _microbatch_sizes(config):
            if fits(_in_microbatches(plain, size, blocks)):
                break
    return sorted(results, key=lambda r: -(r.images_per_second or 0.0))


def describe(results: list[Result], available: int, dataset=None) -> str:
    """Returns a table of the results, and the command of the best one.

    Args:
        results: The results of `search`.
        available: Memory in bytes.
        dataset: The data of the run, with which the command is shorter.
    """
    rows = [("settings", "peak memory", "images/s")]
    for result in results:
        fits = result.peak_bytes is not None
        peak = f"{result.peak_bytes / 1e9:.2f} GB" if fits else "too much"
        speed = f"{result.images_per_second:.4g}" if fits else ""
        rows.append((_flags(result.config), peak, speed))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    table = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    best = results[0]
    heading = f"Batch {best.config.batch_size} in {available / 1e9:.3g} GB:"
    if best.peak_bytes is None:
        advice = "Nothing that was tried fits. Use a smaller network or smaller images."
    else:
        run = dataclasses.replace(best.config, memory_gb=0.0)
        advice = f"The fastest that fits: {command.command(run, dataset)}"
    return "\n".join([heading, *table, advice])


def _precisions(config: Config) -> list[str]:
    described = hardware.describe()
    bfloat16 = described["gpu"] is not None or any(
        name in BFLOAT16_CPUS for name in described["instruction_sets"] or ()
    )
    others = ["mixed_bfloat16"] if bfloat16 else []
    return list(dict.fromkeys([config.precision, *others]))


def _microbatch_sizes(config: Config) -> list[int]:
    """Returns halves, quarters, ... of the batch that are whole numbers."""
    sizes, size = [], config.batch_size
    while size % 2 == 0 and size // 2 >= SMALLEST_MICROBATCH:
        size //= 2
        sizes.append(size)
    return sizes


def _in_microbatches(config: Config, size: int, loss_block_rows: int) -> Config:
    pieces = config.batch_size // size
    if (config.bn_groups or 1) > 1 and config.bn_groups % pieces:
        groups = norms.default_bn_groups(config.batch_size, pieces)
        config = dataclasses.replace(config, bn_groups=groups)
    return dataclasses.replace(
        config, microbatch_size=size, loss_block_rows=loss_block_rows
    )


def _flags(config: Config) -> str:
    """Returns the flags of a combination, such as "--microbatch_size=128"."""
    values = {
        f.name: f.default for f in dataclasses.fields(Config) if f.name in SETTINGS
    }
    return " ".join(
        f"--{name}={options.to_flag_value(getattr(config, name))}"
        for name, default in values.items()
        if name == "precision" or (getattr(config, name) or default) != default
    )


def _result(config: Config, images, available: int, measured: dict | None) -> Result:
    if measured is None:
        try:
            measured = dry_run.measure_in_subprocess(
                config, images, TIMED_STEPS, available
            )
        except MemoryError:
            return Result(config)
    if measured["peak_bytes"] > available:
        return Result(config)
    speed = config.batch_size / measured["step_seconds"]
    return Result(config, measured["peak_bytes"], speed)
