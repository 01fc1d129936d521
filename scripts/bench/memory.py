"""Peak memory and time per image of large batches: plain, micro-batches, remat."""

import time

from bench import harness, training_tasks

BLOCK_ROWS = 1024
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
HEADINGS = ("Network", "Step", "Batch", "Peak memory", "against", "CPU per image", "")


def measure(options) -> dict:
    lines = [HEADINGS]
    for name, (network, size, plain, pieces) in CASES[options.size].items():
        runs = [("plain", {**network, "batch": batch}) for batch in plain]
        for batch in pieces:
            settings = {**network, "batch": batch, "microbatch_size": size}
            if batch >= 4 * BLOCK_ROWS:
                settings["loss_block_rows"] = BLOCK_ROWS
            runs.append((f"micro-batches of {size}", settings))
        lines += _lines(name, runs)
    for name, network in REMAT[options.size].items():
        runs = [("plain", network), ("--remat", {**network, "remat": True})]
        lines += _lines(name, runs)
    return {
        "rows": [],
        "grid": lines,
        "paragraphs": [PARAGRAPH],
        "clock": "cpu",
    }


def _lines(name: str, runs) -> list[tuple]:
    """Returns a line of the table for each run, relative to the first one."""
    measured = []
    for _, settings in runs:
        with harness.tensorflow_worker("memory", gpu=True, **settings) as task:
            task.ready()
            measured.append(task()["measured"])
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
    f"{4 * BLOCK_ROWS:,} on, micro-batches have --loss_block_rows={BLOCK_ROWS}."
)
