"""One pretraining step on a GPU: precisions, and XLA on and off."""

import bench_step
import bench_tools

PRECISIONS = {
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
    for case in bench_step.CASES[options.size]:
        works = {
            (name, jit): {**case, **settings, "jit": jit}
            for name, settings in PRECISIONS.items()
            for jit in (False, True)
        }
        rows += measured(works, case, options.pairs)
    return {"rows": rows, "clock": "wall"}


def measured(works: dict, case: dict, pairs: int) -> list[dict]:
    """Returns the speed of every work over that of plain float32."""
    # One process at a time has the memory of the GPU unless told to share it.
    share = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    children = {
        name: bench_tools.tensorflow_child(
            "step", gpu=True, environment=share, steps=20, **settings
        )
        for name, settings in works.items()
    }
    taken = bench_step.measured(children, pairs)
    base = taken["float32", False]
    return [
        bench_tools.row(
            f"step, ResNet-18, {case['stem']} stem, {case['size']} px, batch "
            f"{case['batch']}, {name}{', XLA' if jit else ''}: speed",
            "float32 without tf32 and XLA",
            bench_tools.ratios(base, taken[name, jit]),
        )
        for name, jit in works
        if (name, jit) != ("float32", False)
    ]
