"""One pretraining step: ours and PyTorch's, float32 and bfloat16, on the CPU."""

import json
import subprocess
import sys

import bench_onednn
import bench_tools

CASES = {
    "full": (
        {"stem": "small", "size": 32, "batch": 128},
        {"stem": "imagenet", "size": 96, "batch": 128},
    ),
    "tiny": ({"stem": "medium", "size": 16, "batch": 4, "width": 0.125},),
}
# What the first command of the README trains.
QUICK = {
    "full": {"stem": "medium", "size": 32, "batch": 128, "width": 0.25},
    "tiny": {"stem": "medium", "size": 16, "batch": 4, "width": 0.125},
}
HALF = "mixed_bfloat16"
OWN = "ours in float32"


def torch_version(python: str) -> str | None:
    """Returns the version of the torch that a Python has, or None."""
    code = "import torch; print(torch.__version__)"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def torch_child(python: str, **settings) -> bench_tools.Child:
    path = str(bench_tools.HERE / "bench_torch.py")
    return bench_tools.Child([python, path, json.dumps(settings)])


def measure(options) -> dict:
    python = options.torch_python or sys.executable
    version = torch_version(python)
    rows = []
    for case in CASES[options.size]:
        rows += against_torch(case, python if version else None, options.pairs)
    rows += choices(QUICK[options.size], options.pairs)
    gain = next(row["median"] for row in rows if row["against"] == OWN)
    missing = [] if version else ["PyTorch is not installed: see --torch_python."]
    return {
        "rows": rows,
        "paragraphs": [
            WHAT,
            bench_onednn.paragraph(CASES[options.size][0], gain),
        ],
        "skipped": missing,
        "versions": {"torch": version} if version else {},
        "clock": "wall",
    }


def against_torch(case: dict, python: str | None, pairs: int) -> list[dict]:
    """Returns the rows of one network; without a Python with torch, ours alone."""
    case = {"width": 1.0, "steps": 1, **case}
    name = (
        f"step, ResNet-18, {case['stem']} stem, {case['size']} px, batch "
        f"{case['batch']}"
    )
    works = {
        "float32": bench_tools.tensorflow_child("step", **case),
        "bfloat16": bench_tools.tensorflow_child("step", precision=HALF, **case),
    }
    if python:
        works["torch float32"] = torch_child(python, precision="float32", **case)
        works["torch bfloat16"] = torch_child(python, precision=HALF, **case)
    taken = measured(works, pairs)

    def speed(ours, other):
        return bench_tools.ratios(taken[other], taken[ours])

    rows = []
    if python:
        rows.append(
            bench_tools.row(
                f"{name}, float32: speed",
                "PyTorch, float32",
                speed("float32", "torch float32"),
                least=1.0,
            )
        )
    rows.append(
        bench_tools.row(
            f"{name}, bfloat16: speed",
            OWN,
            speed("bfloat16", "float32"),
            least=1.3,
        )
    )
    if python:
        rows += [
            bench_tools.row(
                f"{name}, bfloat16: speed",
                "PyTorch, bfloat16",
                speed("bfloat16", "torch bfloat16"),
            ),
            bench_tools.row(
                "PyTorch's bfloat16, the same step: speed",
                "PyTorch, float32",
                speed("torch bfloat16", "torch float32"),
            ),
        ]
    return rows


def choices(case: dict, pairs: int) -> list[dict]:
    """Returns what `--precision=auto` and `--jit_compile=auto` rest on."""
    start = bench_tools.tensorflow_child
    works = {
        "plain": start("step", **case, steps=3),
        "XLA": start("step", **case, steps=3, jit=True),
        "bfloat16": start("step", **case, steps=3, precision=HALF),
        "unfused": start("step", **case, steps=3, fused=False),
        "unfused bfloat16": start("step", **case, steps=3, precision=HALF, fused=False),
    }
    taken = measured(works, pairs)
    name = f"step, ResNet-18, width {case['width']}, {case['size']} px"
    keras = "Keras's own batch norm, not fused"
    pairs_of_rows = (
        (f"{name}, XLA: speed", "the plain graph", "XLA", "plain"),
        (f"{name}, bfloat16: speed", "float32", "bfloat16", "plain"),
        (f"{name}, float32: speed", keras, "plain", "unfused"),
        (f"{name}, bfloat16: speed", keras, "bfloat16", "unfused bfloat16"),
    )
    return [
        bench_tools.row(what, against, bench_tools.ratios(taken[b], taken[a]))
        for what, against, a, b in pairs_of_rows
    ]


def measured(works: dict, pairs: int) -> dict:
    """Returns the rounds of some children, which must be the same network, and ends it.

    Raises:
        ValueError: If one has another number of parameters.
    """
    try:
        counts = {name: work.ready()["parameters"] for name, work in works.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"The networks compared are not the same: {counts}.")
        return bench_tools.rounds(works, pairs)
    finally:
        for work in works.values():
            work.__exit__()


WHAT = (
    "A step is the forward pass of two views in one batch, NT-Xent, the gradient and "
    "an update of SGD with momentum, on views that lie ready. PyTorch: the network of "
    "scripts/bench_torch.py, with the same number of parameters, in channels-last, "
    "bfloat16 by autocast. Each is a process of its own on all cores; while one works "
    "the others wait."
)
