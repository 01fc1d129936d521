"""Which kernels oneDNN runs in a step, in which type and for how long."""

import collections
import json
import subprocess

from bench import harness

DIRECTIONS = {
    "forward_training": "forward",
    "backward_data": "gradient of the maps",
    "backward_weights": "gradient of the weights",
}


def kernels(case: dict, precision: str) -> dict[str, tuple[float, set[str]]]:
    """Returns {kind: (milliseconds of one step, names of the kernels)}."""
    settings = json.dumps({**case, "precision": precision, "steps": 1})
    done = subprocess.run(
        harness.python_command("worker", "step", settings),
        input="go\ngo\n",
        capture_output=True,
        text=True,
        env=harness.environment(
            {
                "ONEDNN_VERBOSE": "1",
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "CUDA_VISIBLE_DEVICES": "-1",
            }
        ),
    )
    return parse(done.stderr)


def parse(text: str) -> dict[str, tuple[float, set[str]]]:
    """Returns {kind: (milliseconds, kernels)} of the second of two equal steps.

    Args:
        text: What ONEDNN_VERBOSE=1 printed during both.
    """
    lines = [x.split(",") for x in text.splitlines() if ",primitive,exec," in x]
    kinds: dict = collections.defaultdict(lambda: [0.0, set()])
    for line in lines[len(lines) // 2 :]:
        _, _, _, _, _, primitive, kernel, direction = line[:8]
        kind = primitive
        if primitive == "convolution":
            kind = DIRECTIONS.get(direction, "other")
        kinds[kind][0] += float(line[-1])
        kinds[kind][1].add(kernel)
    return {kind: (time, names) for kind, (time, names) in kinds.items()}


def paragraph(case: dict, gain: float) -> str:
    """Returns a paragraph that explains what bfloat16 gains on this processor.

    Args:
        case: Settings of the step.
        gain: Speed of the whole step in bfloat16 relative to float32.
    """
    full, half = (kernels(case, name) for name in ("float32", "mixed_bfloat16"))
    types = ", ".join(harness.machine()["fast_types"]) or "none"
    if not full or not half:
        return f"oneDNN printed nothing, so TensorFlow does not use it here ({types})."
    gains = [
        f"{kind} {full[kind][0] / half[kind][0]:.2f}x"
        for kind in DIRECTIONS.values()
        if kind in full and kind in half
    ]
    convolutions = [
        sum(x[k][0] for k in DIRECTIONS.values() if k in x) for x in (full, half)
    ]
    used = [half[k][1] for k in DIRECTIONS.values() if k in half]
    names = sorted(set().union(*used))
    num_bfloat16 = sum("bf16" in name for name in names)
    reorders = half.get("reorder", (0.0, set()))[0] / sum(x[0] for x in half.values())
    return (
        f"Why bfloat16 gains this much (fast types of this processor: {types}). "
        "ONEDNN_VERBOSE=1 shows that oneDNN runs the convolutions of TensorFlow's "
        "bfloat16 step, forward and backward, on maps in NHWC without conversion: "
        f"{num_bfloat16} of its {len(names)} kernels are bfloat16 kernels "
        f"({', '.join(names)}). They gain {convolutions[0] / convolutions[1]:.2f}x in "
        f"all: {', '.join(gains)}. Reordering weights into its layout takes "
        f"{reorders:.0%} of its time. The whole step gains {gain:.2f}x. {EXPLANATION}"
    )


EXPLANATION = (
    "Without AMX a bfloat16 instruction does two multiply-adds where a float32 one "
    "does one, so about 2x is the ceiling. The operations beside the convolutions "
    "gained nothing at first: Keras computes batch norm as ten operations on float32 "
    "maps, with casts before and after. Ours is one fused operation that reads and "
    "writes bfloat16 (networks/norms.py); the rows above show both. The remaining "
    "operations are additions and the gradient of ReLU, which Eigen converts to "
    "float32 and back element by element."
)
