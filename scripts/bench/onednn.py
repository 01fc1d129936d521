"""What oneDNN says it ran in a step: which kernels, in which type, for how long."""

import collections
import json
import os
import subprocess
import sys

import bench_tools

KINDS = {
    "forward_training": "forward",
    "backward_data": "gradient of the maps",
    "backward_weights": "gradient of the weights",
}


def kernels(case: dict, precision: str) -> dict[str, tuple[float, set[str]]]:
    """Returns {kind: (milliseconds of one step, names of the kernels)}."""
    settings = json.dumps({**case, "precision": precision, "steps": 1})
    done = subprocess.run(
        [sys.executable, str(bench_tools.HERE / "bench_child.py"), "step", settings],
        input="go\ngo\n",
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "ONEDNN_VERBOSE": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
        },
    )
    return parsed(done.stderr)


def parsed(text: str) -> dict[str, tuple[float, set[str]]]:
    """Returns the second half of what ONEDNN_VERBOSE=1 printed, by kind."""
    lines = [x.split(",") for x in text.splitlines() if ",primitive,exec," in x]
    found: dict = collections.defaultdict(lambda: [0.0, set()])
    for line in lines[len(lines) // 2 :]:
        _, _, _, _, _, primitive, kernel, direction = line[:8]
        kind = KINDS.get(direction) if primitive == "convolution" else primitive
        found[kind or "other"][0] += float(line[-1])
        found[kind or "other"][1].add(kernel)
    return {kind: (time, names) for kind, (time, names) in found.items()}


def paragraph(case: dict, gain: float) -> str:
    """Returns the evidence on what bfloat16 gains here, in words.

    Args:
        case: Settings of the step.
        gain: Of the whole step.
    """
    full, half = (kernels(case, name) for name in ("float32", "mixed_bfloat16"))
    types = ", ".join(bench_tools.machine()["fast_types"]) or "none"
    if not full or not half:
        return f"oneDNN said nothing, so TensorFlow does not use it here ({types})."
    parts = [
        f"{kind} {full[kind][0] / half[kind][0]:.2f}x"
        for kind in KINDS.values()
        if kind in full and kind in half
    ]
    convolutions = [
        sum(x[k][0] for k in KINDS.values() if k in x) for x in (full, half)
    ]
    names = sorted(set().union(*(half[k][1] for k in KINDS.values() if k in half)))
    of_half = sum("bf16" in name for name in names)
    reorders = half.get("reorder", (0.0, set()))[0] / sum(x[0] for x in half.values())
    return (
        f"Why bfloat16 gains what it gains (fast types of this processor: {types}). "
        "ONEDNN_VERBOSE=1 shows that oneDNN runs the convolutions of TensorFlow's "
        "bfloat16 step, forward and backward, on maps in NHWC as they lie: "
        f"{of_half} of its {len(names)} kernels are bfloat16 ones "
        f"({', '.join(names)}). They gain {convolutions[0] / convolutions[1]:.2f}x in "
        f"all: {', '.join(parts)}. Putting weights into its layout takes "
        f"{reorders:.0%} of its time. The whole step gains {gain:.2f}x. {STATIC}"
    )


STATIC = (
    "Without AMX a bfloat16 instruction does two multiply-adds where a float32 one "
    "does one, so about 2x is the ceiling. What lies beside the convolutions gained "
    "nothing at first: Keras computes batch norm as ten operations on float32 maps, "
    "with casts before and after. Ours is one fused operation that reads and writes "
    "bfloat16 (norms.py); the rows above have both. What is left are additions and the "
    "gradient of ReLU, which Eigen converts to float32 and back element by element."
)
