"""The float32 step with oneDNN, without it, and PyTorch's, by instruction set."""

import statistics
import sys

from bench import harness, step

CASES = {
    "full": (
        {"stem": "medium", "size": 32, "batch": 128, "width": 0.25},
        {"stem": "imagenet", "size": 96, "batch": 32, "width": 1.0},
    ),
    "tiny": ({"stem": "medium", "size": 16, "batch": 4, "width": 0.125},),
}
STEPS = {"full": 3, "tiny": 1}
HELD_TO_AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # of TensorFlow and of PyTorch
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
WITHOUT = "ours without oneDNN"
TORCH = "PyTorch"
TARGET = 1.3
HEADINGS = ("Network", "Instructions", "With oneDNN", "Without", "PyTorch")


def measure(options) -> dict:
    python = options.torch_python or sys.executable
    version = step.torch_version(python)
    limits = {"all": {}}
    if "avx512f" in harness.machine()["fast_types"]:
        limits["AVX2"] = HELD_TO_AVX2
    rows, lines = [], []
    for case in CASES[options.size]:
        for limit, variables in limits.items():
            timings = measure_case(
                {**case, "steps": STEPS[options.size]},
                variables,
                python if version else None,
                options.pairs,
            )
            name = network(case)
            if limit != "all":
                name += f", held to {limit}"
            rows += rows_of(name, timings)
            seconds = {
                key: statistics.median(timing["wall"] for timing in values)
                / STEPS[options.size]
                for key, values in timings.items()
            }
            keys = ("ours", WITHOUT, TORCH)
            times = [f"{seconds[k]:.3f} s" if k in seconds else "" for k in keys]
            lines.append([network(case), limit, *times])
    missing = [] if version else ["PyTorch is not installed: see --torch_python."]
    return {
        "rows": rows,
        "grid": [HEADINGS, *lines],
        "paragraphs": [PARAGRAPH],
        "skipped": missing,
        "versions": {"torch": version} if version else {},
        "clock": "wall",
    }


def network(case: dict) -> str:
    return (
        f"ResNet-18, width {case['width']:g}, {case['stem']} stem, {case['size']} px, "
        f"batch {case['batch']}"
    )


def measure_case(case: dict, variables: dict, python: str | None, pairs: int) -> dict:
    """Returns the timings of one network: ours, ours without oneDNN, and PyTorch.

    Args:
        case: Settings of the network.
        variables: Environment variables that limit the instruction set.
        python: A Python interpreter that has torch, or None.
        pairs: Rounds that are measured.
    """
    tasks = {
        name: harness.tensorflow_worker(
            "step", environment={**variables, "TF_ENABLE_ONEDNN_OPTS": onednn}, **case
        )
        for name, onednn in (("ours", "1"), (WITHOUT, "0"))
    }
    if python:
        tasks[TORCH] = step.torch_worker(
            python, precision="float32", environment=variables, **case
        )
    return step.measure_same_network(tasks, pairs)


def rows_of(name: str, timings: dict) -> list[dict]:
    rows = [
        harness.row(
            f"{name}: speed",
            WITHOUT,
            harness.ratios(timings[WITHOUT], timings["ours"]),
        )
    ]
    if TORCH in timings:
        rows.append(
            harness.row(
                f"{name}: speed",
                "PyTorch, float32",
                harness.ratios(timings[TORCH], timings["ours"]),
                least=TARGET,
            )
        )
    return rows


PARAGRAPH = (
    "The step of `step`, in float32. On a processor with AVX-512 it is measured a "
    "second time with ONEDNN_MAX_CPU_ISA=AVX2, ATEN_CPU_CAPABILITY=avx2 and "
    "MKL_ENABLE_INSTRUCTIONS=AVX2, which stands for a processor without AVX-512. "
    "Without: TF_ENABLE_ONEDNN_OPTS=0, which is TensorFlow's own default on such a "
    "processor."
)
