"""Peak memory and time per image of large batches: plain, micro-batches, remat."""

import time

from bench import harness, training_tasks

# As `--microbatch_size` chooses them.
LARGE_BATCH, BLOCK_ROWS = 2048, 256
# Network -> settings, images of a micro-batch, batches of the plain step, batches in
# micro-batches.
CASES: dict[str, dict[str, tuple]] = {
    "full": {
        "ResNet-18, width 0.25, 32 px": (
            {"depth": 18, "width": 0.25, "stem": "medium", "size": 32},
            128,
            (128, 512, 1024, 2048),
            (512, 1024, 2048, 4096, 8192),
        ),
        "ResNet-18, width 1, 32 px": (
            {"depth": 18, "width": 1.0, "stem": "medium", "size": 32},
            128,
            (128, 512),
            (512, 1024),
        ),
        "ResNet-18, width 0.25, 96 px": (
            {"depth": 18, "width": 0.25, "stem": "imagenet", "size": 96},
            128,
            (128, 512),
            (512, 1024, 4096),
        ),
        "ResNet-18, width 1, 96 px": (
            {"depth": 18, "width": 1.0, "stem": "imagenet", "size": 96},
            32,
            (32, 128),
            (128, 256),
        ),
    },
    "tiny": {
        "ResNet-10": (
            {"depth": 10, "width": 0.125, "stem": "medium", "size": 16},
            4,
            (4, 8),
            (8, 16),
        ),
    },
}
REMAT: dict[str, dict[str, dict]] = {
    "full": {
        "ResNet-50, 96 px, batch 32": {
            **{"depth": 50, "width": 1.0, "stem": "imagenet"},
            **{"size": 96, "batch": 32},
        }
    },
    "tiny": {
        "ResNet-10, batch 4": {
            **{"depth": 10, "width": 0.125, "stem": "medium"},
            **{"size": 16, "batch": 4},
        }
    },
}
TARGET_BATCH = 4096
# Quantity, its key in a measurement, the largest ratio.
TARGETS = (
    ("peak memory", "bytes", 1.25),
    ("processor time per image", "seconds", 1.5),
)
HEADINGS = ("Network", "Step", "Batch", "Peak memory", "against", "CPU per image", "")


def measure(options) -> dict:
    lines, rows = [HEADINGS], []
    for name, (network, size, plain, pieces) in CASES[options.size].items():
        runs = [("plain", {**network, "batch": batch}) for batch in plain]
        for batch in pieces:
            settings = {**network, "batch": batch, "microbatch_size": size}
            if batch >= LARGE_BATCH:
                settings["loss_block_rows"] = BLOCK_ROWS
            runs.append((f"micro-batches of {size}", settings))
        measured = _measured(runs)
        lines += _lines(name, runs, measured)
        rows += _rows(name, runs, measured)
    for name, network in REMAT[options.size].items():
        runs = [("plain", network), ("--remat", {**network, "remat": True})]
        lines += _lines(name, runs, _measured(runs))
    return {
        "rows": rows,
        "grid": lines,
        "paragraphs": [PARAGRAPH],
        "clock": "cpu",
    }


def _measured(runs) -> list[dict]:
    """Returns what the worker of each run reports."""
    measured = []
    for _, settings in runs:
        with harness.tensorflow_worker("memory", gpu=True, **settings) as task:
            task.ready()
            measured.append(task()["measured"])
    return measured


def _lines(name: str, runs, measured: list[dict]) -> list[tuple]:
    """Returns a line of the table for each run, relative to the first one."""
    first = measured[0]
    return [
        (
            name,
            step,
            f"{settings['batch']:,}",
            f"{result['bytes'] / 1e6:.0f} MB",
            f"{result['bytes'] / first['bytes']:.2f}x",
            f"{1e3 * result['seconds']:.2f} ms",
            f"{result['seconds'] / first['seconds']:.2f}x",
        )
        for (step, settings), result in zip(runs, measured, strict=True)
    ]


def _rows(name: str, runs, measured: list[dict]) -> list[dict]:
    """Returns the comparisons of the target batch with the first, plain step."""
    first, rows = measured[0], []
    for (_, settings), result in zip(runs, measured, strict=True):
        if settings["batch"] != TARGET_BATCH:
            continue
        size = settings["microbatch_size"]
        what = f"{name}, batch {TARGET_BATCH} in micro-batches of {size}"
        for quantity, key, most in TARGETS:
            ratio = [result[key] / first[key]]
            against = f"the plain step of batch {runs[0][1]['batch']}"
            rows.append(harness.row(f"{what}: {quantity}", against, ratio, most=most))
    return rows


def memory(settings: dict):
    """A worker's task: memory and processor time of a training step."""
    import numpy as np
    import tensorflow as tf

    from tfsimclr.modes import dry_run
    from tfsimclr.training import recorder

    settings = {**training_tasks.NETWORK, **settings}
    model = training_tasks.build_model(settings)
    batch, size = settings["batch"], settings["size"]
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), "uint8")
    images = tf.constant(images)
    step = tf.function(model.train_step, jit_compile=settings["jit"])
    step.get_concrete_function(images)

    def run():
        base = dry_run.reset_peak()
        step(images)
        start = time.process_time()
        float(step(images)["loss"])
        seconds = time.process_time() - start
        peak = recorder.peak_memory() - base
        return {"measured": {"bytes": peak, "seconds": seconds / batch}}

    return run, {}


PARAGRAPH = (
    "The whole training step, with views, on noise: the peak of two steps above the "
    "memory before them, and the processor time of the second one, relative to the "
    "first line of each network. Each line is a process of its own. From a batch of "
    f"{LARGE_BATCH:,} on, micro-batches have --loss_block_rows={BLOCK_ROWS}."
)
