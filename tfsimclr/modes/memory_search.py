"""Finds the fastest way to train a batch that fits into a given memory."""

import dataclasses

from tfsimclr import resolve
from tfsimclr.modes import dry_run
from tfsimclr.networks.encoders import ENCODERS
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
        peak_bytes: Peak memory of a step; None if it does not fit.
        images_per_second: Speed; None if it does not fit.
    """

    config: Config
    peak_bytes: int | None = None
    images_per_second: float | None = None


def search(config: Config, images, available: int) -> list[Result]:
    """Returns the combinations that were tried, the fastest one that fits first.

    Tried are the plain step, gradient checkpointing, and micro-batches from half of the
    batch down to the first size that fits; each in the precision of the config and, on
    a processor or GPU with bfloat16 arithmetic, in mixed bfloat16.

    Args:
        config: Resolved; its batch size is not changed.
        images: uint8 `[n, s, s, 3]`, at least a batch.
        available: Memory in bytes.
    """
    results = []
    for precision in _precisions(config):
        plain = dataclasses.replace(
            config, precision=precision, microbatch_size=0, remat=False
        )
        results.append(_measured(plain, images, available))
        if ENCODERS[config.backbone].residual_blocks:
            remat = dataclasses.replace(plain, remat=True)
            results.append(_measured(remat, images, available))
        for size in _microbatch_sizes(config):
            pieces = dataclasses.replace(plain, microbatch_size=size, loss_block_rows=0)
            pieces = resolve.resolve_memory(pieces)
            results.append(_measured(pieces, images, available))
            if results[-1].peak_bytes is not None:
                break
    return sorted(results, key=lambda r: -(r.images_per_second or 0.0))


def describe(results: list[Result], config: Config, available: int) -> str:
    """Returns a table of the results, and the flags of the best one.

    Args:
        results: The results of `search`.
        config: The resolved config that was searched for.
        available: Memory in bytes.
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
    heading = f"Batch {config.batch_size} in {available / 1e9:.3g} GB:"
    if best.peak_bytes is None:
        advice = "Nothing that was tried fits. Use a smaller network or smaller images."
    else:
        advice = f"The fastest that fits: add {_flags(best.config)}"
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


def _measured(config: Config, images, available: int) -> Result:
    try:
        run = dry_run.measure_in_subprocess(config, images, TIMED_STEPS, available)
    except MemoryError:
        return Result(config)
    if run["step_peak_bytes"] > available:
        return Result(config)
    speed = config.batch_size / run["step_seconds"]
    return Result(config, run["step_peak_bytes"], speed)
