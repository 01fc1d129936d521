"""One pretraining step on a GPU: precisions, and XLA on and off."""

from bench import harness, step

PRECISIONS: dict[str, dict] = {
    "float32": {"precision": "float32", "tf32": False},
    "tf32": {"precision": "float32", "tf32": True},
    "bfloat16": {"precision": "mixed_bfloat16"},
    "float16": {"precision": "mixed_float16"},
}
SKIPPED = "No GPU here: float32, tf32, bfloat16 and float16, with and without XLA."


def has_gpu() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def measure(options) -> dict:
    if not has_gpu():
        return {"rows": [], "skipped": [SKIPPED]}
    rows = []
    for case in step.CASES[options.size]:
        tasks = {
            (name, jit): {**case, **settings, "jit": jit}
            for name, settings in PRECISIONS.items()
            for jit in (False, True)
        }
        rows += measure_case(tasks, case, options.pairs)
    return {"rows": rows, "clock": "wall"}


def measure_case(tasks: dict, case: dict, pairs: int) -> list[dict]:
    """Returns the speed of every task relative to plain float32.

    Args:
        tasks: (name of the precision, whether with XLA) -> settings.
        case: Settings of the network.
        pairs: Rounds that are measured.
    """
    # Otherwise the first process reserves all memory of the GPU.
    share = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    workers = {
        name: harness.tensorflow_worker(
            "step", gpu=True, environment=share, steps=20, **settings
        )
        for name, settings in tasks.items()
    }
    timings = step.measure_same_network(workers, pairs)
    base = timings["float32", False]
    return [
        harness.row(
            f"step, ResNet-18, {case['stem']} stem, {case['size']} px, batch "
            f"{case['batch']}, {name}{', XLA' if jit else ''}: speed",
            "float32 without tf32 and XLA",
            harness.ratios(base, timings[name, jit]),
        )
        for name, jit in tasks
        if (name, jit) != ("float32", False)
    ]
