"""One pretraining step: ours and PyTorch's, float32 and bfloat16, on the CPU."""

import json
import subprocess
import sys

from bench import harness, onednn

CASES = {
    "full": (
        {"stem": "small", "size": 32, "batch": 128},
        {"stem": "imagenet", "size": 96, "batch": 128},
    ),
    "tiny": ({"stem": "medium", "size": 16, "batch": 4, "width": 0.125},),
}
# The network that the first command of the README trains.
QUICK = {
    "full": {"stem": "medium", "size": 32, "batch": 128, "width": 0.25},
    "tiny": {"stem": "medium", "size": 16, "batch": 4, "width": 0.125},
}
HALF = "mixed_bfloat16"
OURS = "ours in float32"


def torch_version(python: str) -> str | None:
    """Returns the version of torch in an interpreter's environment, or None."""
    code = "import torch; print(torch.__version__)"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def torch_worker(python: str, **settings) -> harness.Worker:
    """Returns a worker that takes the same step with PyTorch.

    Args:
        python: A Python interpreter that has torch.
        **settings: Of the step; also `environment`, variables of the process.
    """
    variables = settings.pop("environment", {})
    command = harness.python_command(
        "torch_worker", json.dumps(settings), python=python
    )
    return harness.Worker(command, variables)


def measure(options) -> dict:
    python = options.torch_python or sys.executable
    version = torch_version(python)
    rows = []
    for case in CASES[options.size]:
        rows += against_torch(case, python if version else None, options.pairs)
    rows += choices(QUICK[options.size], options.pairs)
    gain = next(row["median"] for row in rows if row["against"] == OURS)
    missing = [] if version else ["PyTorch is not installed: see --torch_python."]
    return {
        "rows": rows,
        "paragraphs": [
            WHAT,
            onednn.paragraph(CASES[options.size][0], gain),
        ],
        "skipped": missing,
        "versions": {"torch": version} if version else {},
        "clock": "wall",
    }


def against_torch(case: dict, python: str | None, pairs: int) -> list[dict]:
    """Returns the rows of one network.

    Args:
        case: Settings of the network.
        python: A Python interpreter that has torch; None measures ours alone.
        pairs: Rounds that are measured.
    """
    case = {"width": 1.0, "steps": 1, **case}
    name = (
        f"step, ResNet-18, {case['stem']} stem, {case['size']} px, batch "
        f"{case['batch']}"
    )
    tasks = {
        "float32": harness.tensorflow_worker("step", **case),
        "bfloat16": harness.tensorflow_worker("step", precision=HALF, **case),
    }
    if python:
        tasks["torch float32"] = torch_worker(python, precision="float32", **case)
        tasks["torch bfloat16"] = torch_worker(python, precision=HALF, **case)
    timings = measure_same_network(tasks, pairs)

    def speed(ours, other):
        return harness.ratios(timings[other], timings[ours])

    rows = []
    if python:
        rows.append(
            harness.row(
                f"{name}, float32: speed",
                "PyTorch, float32",
                speed("float32", "torch float32"),
                least=1.0,
            )
        )
    rows.append(
        harness.row(
            f"{name}, bfloat16: speed",
            OURS,
            speed("bfloat16", "float32"),
            least=1.3,
        )
    )
    if python:
        rows += [
            harness.row(
                f"{name}, bfloat16: speed",
                "PyTorch, bfloat16",
                speed("bfloat16", "torch bfloat16"),
            ),
            harness.row(
                "PyTorch's bfloat16, the same step: speed",
                "PyTorch, float32",
                speed("torch bfloat16", "torch float32"),
            ),
        ]
    return rows


def choices(case: dict, pairs: int) -> list[dict]:
    """Returns the evidence for `--precision=auto` and `--jit_compile=auto`."""
    start = harness.tensorflow_worker
    tasks = {
        "plain": start("step", **case, steps=3),
        "XLA": start("step", **case, steps=3, jit=True),
        "bfloat16": start("step", **case, steps=3, precision=HALF),
        "unfused": start("step", **case, steps=3, fused=False),
        "unfused bfloat16": start("step", **case, steps=3, precision=HALF, fused=False),
    }
    timings = measure_same_network(tasks, pairs)
    name = f"step, ResNet-18, width {case['width']}, {case['size']} px"
    keras = "Keras's own batch norm, not fused"
    comparisons = (
        (f"{name}, XLA: speed", "the plain graph", "XLA", "plain"),
        (f"{name}, bfloat16: speed", "float32", "bfloat16", "plain"),
        (f"{name}, float32: speed", keras, "plain", "unfused"),
        (f"{name}, bfloat16: speed", keras, "bfloat16", "unfused bfloat16"),
    )
    return [
        harness.row(what, against, harness.ratios(timings[b], timings[a]))
        for what, against, a, b in comparisons
    ]


def measure_same_network(tasks: dict, pairs: int) -> dict:
    """Returns the timings of some workers that must train the same network.

    Raises:
        ValueError: If their numbers of parameters differ.
    """
    with harness.workers(tasks) as reported:
        counts = {name: reported[name]["parameters"] for name in tasks}
        if len(set(counts.values())) > 1:
            raise ValueError(f"The networks compared are not the same: {counts}.")
        return harness.measure_rounds(tasks, pairs)


WHAT = (
    "A step is the forward pass of two views in one batch, NT-Xent, the gradient and "
    "an update of SGD with momentum, on ready views. PyTorch: the network of "
    "scripts/bench/torch_worker.py, with the same number of parameters, in "
    "channels-last, bfloat16 by autocast. Each is a process of its own on all cores; "
    "while one works the others wait."
)
