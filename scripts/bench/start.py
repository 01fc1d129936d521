"""How a run starts, and how it grows with the number of images."""

import json
import subprocess
import sys
import tempfile

import bench_tools

# What a run of FLAGS trains: the same graph is compiled.
NET = {"stem": "medium", "size": 32, "batch": 128, "width": 0.25, "optimizer": "adam"}
FLAGS = {
    "full": {"dataset": "textures"},
    "tiny": {"dataset": "textures", "backbone": "resnet10", "width": 0.125},
}
COUNTS = {"full": (1000, 50_000, 100_000), "tiny": (64, 128, 192)}
GROWING = {
    "full": {
        **{"dataset": "textures", "backbone": "resnet10", "width": 0.125},
        **{"image_size": 18, "stem": "imagenet", "batch_size": 250},
    },
    "tiny": {
        **{"dataset": "textures", "backbone": "resnet10", "width": 0.125},
        **{"image_size": 18, "stem": "imagenet", "batch_size": 16},
    },
}


def once(work: str, settings: dict) -> dict:
    """Returns the seconds from a process's start to its one line."""
    path = str(bench_tools.HERE / "bench_child_runs.py")
    command = [sys.executable, path, work, json.dumps(settings)]

    def start():
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.stdout:
            raise RuntimeError(f"{work} failed: {done.stderr[-500:]}")

    return bench_tools.timed(start)


def measure(options) -> dict:
    """Measures the seconds to the first step against what nobody can save."""
    flags = FLAGS[options.size]

    def run():
        with tempfile.TemporaryDirectory() as folder:
            return once("first_step", {"workdir": f"{folder}/run", "flags": flags})

    net = {**NET, "depth": 10, "width": 0.125} if options.size == "tiny" else NET
    works = {"run": run, "bare": lambda: once("import_and_compile", net)}
    taken = bench_tools.rounds(works, options.pairs)
    row = bench_tools.row(
        "start of a run to the end of its first step, warm store: seconds",
        "TensorFlow's import, the network, its compilation and first step",
        bench_tools.ratios(taken["run"], taken["bare"]),
        most=1.5,
    )
    return {"rows": [row], "clock": "wall"}


def growth(options) -> dict:
    """Measures an epoch of more and more images, and the memory held after it."""
    counts, flags = COUNTS[options.size], GROWING[options.size]
    few, half, many = counts
    children = {}
    try:
        for count in counts:
            children[count] = bench_tools.tensorflow_child(
                "growth", images=count, stored_size=24, flags=flags
            )
            children[count].ready()
        taken = bench_tools.rounds(children, options.pairs)
    finally:
        for child in children.values():
            child.__exit__()
    seconds = {n: [took["wall"] for took in taken[n]] for n in counts}
    # Per image between the halves: what an epoch's end takes cancels.
    slopes = [
        ((c - b) / (many - half)) / ((b - a) / (half - few))
        for a, b, c in zip(*(seconds[n] for n in counts), strict=True)
    ]
    limits = {"least": 0.95, "most": 1.05}
    rows = [
        bench_tools.row(
            f"seconds per image of an epoch, from {half:,} to {many:,} images",
            f"from {few:,} to {half:,}",
            slopes,
            **limits,
        ),
        bench_tools.row(
            f"memory of its own after an epoch of {many:,} images",
            f"after one of {few:,}",
            bench_tools.ratios(taken[many], taken[few], "RssAnon"),
            most=1.05,
        ),
    ]
    mapped = [took["RssFile"] / 1e6 for took in (taken[few][-1], taken[many][-1])]
    own = [took["RssAnon"] / 1e6 for took in (taken[few][-1], taken[many][-1])]
    paragraph = (
        "A tiny network, so that it ends. An epoch includes its end: records and a "
        f"checkpoint. Memory of its own: {own[0]:.0f} MB at {few:,} images, "
        f"{own[1]:.0f} MB at {many:,}. Mapped files are {mapped[0]:.0f} and "
        f"{mapped[1]:.0f} MB of what the system shows as resident: TensorFlow's "
        "library and pages of the store, which it drops when it needs the memory."
    )
    return {"rows": rows, "paragraphs": [paragraph], "clock": "wall"}
