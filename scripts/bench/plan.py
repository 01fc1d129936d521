"""The plan against reality: memory, speed and time of short runs."""

import tempfile

import bench_tools

LIMITS = {"least": 0.75, "most": 1.25}
SHARED = {"dataset": "textures", "epochs": 2}
CASES = {
    "full": {
        "SimCLR, LARS, batch 128": {
            **{"optimizer": "lars", "proj_layers": 4, "num_pretrain_images": 1920},
        },
        "MoCo, ResNet-10, width 0.5, batch 64": {
            **{"method": "moco", "backbone": "resnet10", "width": 0.5},
            **{"batch_size": 64, "num_pretrain_images": 960},
        },
        "BYOL, bfloat16, batch 256": {
            **{"method": "byol", "precision": "mixed_bfloat16", "batch_size": 256},
            **{"num_pretrain_images": 2560},
        },
    },
    "tiny": {
        "SimCLR": {
            **{"backbone": "resnet10", "width": 0.125, "image_size": 16},
            **{"batch_size": 16, "num_pretrain_images": 64, "epochs": 2},
        },
    },
}
# A network whose memory is that of its maps.
LARGEST_OF = {
    "full": {"width": 0.5, "stem": "small", "batch_size": 64},
    "tiny": CASES["tiny"]["SimCLR"],
}
MEMORY_GB = {"full": 2.5, "tiny": 1.2}
LARGEST = 1000  # images; a quarter of the data set


def measure(options) -> dict:
    rows, skipped = [], []
    cases = CASES[options.size]
    with tempfile.TemporaryDirectory() as cache:
        shared = {**SHARED, "cache_dir": cache}
        for name, flags in cases.items():
            rows += compared(name, {**shared, **flags}, options.pairs)
        flags = {**shared, **LARGEST_OF[options.size]}
        found = largest(flags, MEMORY_GB[options.size])
        rows += found if found else []
        if not found:
            skipped.append("The largest batch for the memory is beyond the data set.")
    return {"rows": rows, "paragraphs": [WHAT], "skipped": skipped, "clock": "wall"}


def compared(name: str, flags: dict, pairs: int) -> list[dict]:
    start = bench_tools.tensorflow_child
    with (
        start("plan", gpu=True, real=False, flags=flags) as planned,
        start("plan", gpu=True, real=True, flags=flags) as done,
    ):
        planned.ready(), done.ready()
        taken = bench_tools.rounds({"plan": planned, "run": done}, pairs, warm=0)
    found = {who: [took["found"] for took in taken[who]] for who in taken}
    # Of fresh processes only: a second run begins with what the first one held.
    memory = bench_tools.ratios(found["plan"][:1], found["run"][:1], MEMORY)
    rows = [bench_tools.row(f"{name}: peak memory, planned", REAL, memory, **LIMITS)]
    for what, clock in (("images/s", "images_per_second"), ("hours", "seconds")):
        values = bench_tools.ratios(found["plan"], found["run"], clock)
        rows.append(bench_tools.row(f"{name}: {what}, planned", REAL, values, **LIMITS))
    return rows


def largest(flags: dict, memory_gb: float) -> list[dict]:
    """Returns the row of the largest batch for some memory, run for real."""
    start = bench_tools.tensorflow_child
    planned = {**flags, "memory_gb": memory_gb}
    with start("plan", gpu=True, real=False, flags=planned) as child:
        child.ready()
        batch = child()["found"]["largest_batch"]
    if not batch or not 2 <= batch <= LARGEST:
        return []
    flags = {**flags, "batch_size": batch, "num_pretrain_images": 4 * batch}
    with start("plan", gpu=True, real=True, flags={**flags, "epochs": 2}) as child:
        child.ready()
        peak = child()["found"][MEMORY]
    return [
        bench_tools.row(
            f"the largest batch for {memory_gb} GB, {batch} images: its peak memory",
            "--memory_gb",
            [peak / (1e9 * memory_gb)],
            **LIMITS,
        )
    ]


MEMORY = "peak_memory_bytes"
REAL = "the run itself"
WHAT = (
    "Planned over real, for runs of two epochs: `--mode=plan` tries ten steps, the "
    "run does all of them, with its records and checkpoints."
)
