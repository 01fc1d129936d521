"""What `--mode=plan` predicts, against short runs: memory, speed and time."""

import shutil
import tempfile

from bench import harness, training_tasks

LIMITS = {"least": 0.75, "most": 1.25}
SHARED = {"dataset": "textures", "epochs": 2}
CASES: dict[str, dict[str, dict]] = {
    "full": {
        "SimCLR, LARS, batch 128": {
            "optimizer": "lars",
            "proj_layers": 4,
            "num_pretrain_images": 1920,
        },
        "MoCo, ResNet-10, width 0.5, batch 64": {
            "method": "moco",
            "backbone": "resnet10",
            "width": 0.5,
            "batch_size": 64,
            "num_pretrain_images": 960,
        },
        "BYOL, bfloat16, batch 256": {
            "method": "byol",
            "precision": "mixed_bfloat16",
            "batch_size": 256,
            "num_pretrain_images": 2560,
        },
    },
    "tiny": {
        "SimCLR": {
            "backbone": "resnet10",
            "width": 0.125,
            "image_size": 16,
            "batch_size": 16,
            "num_pretrain_images": 64,
        },
    },
}
# A network whose memory is mostly its activations.
LARGEST_BATCH_FLAGS: dict[str, dict] = {
    "full": {"width": 0.5, "stem": "small", "batch_size": 64},
    "tiny": CASES["tiny"]["SimCLR"],
}
MEMORY_GB = {"full": 2.5, "tiny": 1.2}
MAX_BATCH = 1000  # images; a quarter of the data set
MEMORY = "peak_memory_bytes"
REAL = "the run itself"


def measure(options) -> dict:
    rows, skipped = [], []
    with tempfile.TemporaryDirectory() as cache:
        shared = {**SHARED, "cache_dir": cache}
        for name, flags in CASES[options.size].items():
            rows += compare(name, {**shared, **flags}, options.pairs)
        flags = {**shared, **LARGEST_BATCH_FLAGS[options.size]}
        largest = largest_batch(flags, MEMORY_GB[options.size])
        if largest:
            rows.append(largest)
        else:
            skipped.append("The largest batch for the memory is beyond the data set.")
    return {
        "rows": rows,
        "paragraphs": [PARAGRAPH],
        "skipped": skipped,
        "clock": "wall",
    }


def compare(name: str, flags: dict, pairs: int) -> list[dict]:
    """Returns the rows of memory, images/s and hours, predicted over real."""
    tasks = {
        who: harness.tensorflow_worker("plan", gpu=True, real=who == "run", flags=flags)
        for who in ("plan", "run")
    }
    with harness.workers(tasks):
        timings = harness.measure_rounds(tasks, pairs, warm_up=0)
    measured = {who: [timing["measured"] for timing in timings[who]] for who in timings}
    # The first round only: later ones start with the memory that it left behind.
    memory = harness.ratios(measured["plan"][:1], measured["run"][:1], MEMORY)
    rows = [harness.row(f"{name}: peak memory, planned", REAL, memory, **LIMITS)]
    for what, key in (("images/s", "images_per_second"), ("hours", "seconds")):
        values = harness.ratios(measured["plan"], measured["run"], key)
        rows.append(harness.row(f"{name}: {what}, planned", REAL, values, **LIMITS))
    return rows


def largest_batch(flags: dict, memory_gb: float) -> dict | None:
    """Returns the row of a run with the largest batch planned for some memory.

    Returns None if that batch is beyond MAX_BATCH.
    """
    planned = {**flags, "memory_gb": memory_gb}
    with harness.tensorflow_worker("plan", gpu=True, real=False, flags=planned) as task:
        task.ready()
        batch = task()["measured"]["largest_batch"]
    if not batch or not 2 <= batch <= MAX_BATCH:
        return None
    flags = {**flags, "batch_size": batch, "num_pretrain_images": 4 * batch}
    with harness.tensorflow_worker("plan", gpu=True, real=True, flags=flags) as task:
        task.ready()
        peak = task()["measured"][MEMORY]
    return harness.row(
        f"the largest batch for {memory_gb} GB, {batch} images: its peak memory",
        "--memory_gb",
        [peak / (1e9 * memory_gb)],
        **LIMITS,
    )


def plan(settings: dict):
    """A worker's task: the plan of a run, or, if `real`, the run itself."""
    import time

    folder = tempfile.mkdtemp()
    config, dataset = training_tasks.resolve_config(settings["flags"], folder)

    def predict():
        from tfsimclr.modes import plan

        return {"measured": plan.measure(config, dataset)}

    def run():
        from tfsimclr.modes import pretrain
        from tfsimclr.runs import folder as run_folder
        from tfsimclr.training import checkpoints

        workdir = run_folder.prepare(config)
        start = time.perf_counter()
        pretrain.pretrain(config, dataset, workdir)
        seconds = time.perf_counter() - start
        _, meta = checkpoints.load_latest(workdir / "checkpoints")
        shutil.rmtree(folder)
        rates = sorted(row["images_per_second"] for row in meta["rows"])
        return {
            "measured": {
                "seconds": seconds,
                "images_per_second": rates[len(rates) // 2],
                "peak_memory_bytes": meta["peak_memory_bytes"],
            }
        }

    return run if settings["real"] else predict, {}


PARAGRAPH = (
    "Planned over real, for runs of two epochs: `--mode=plan` tries ten steps, the "
    "run does all of them, with its records and checkpoints."
)
