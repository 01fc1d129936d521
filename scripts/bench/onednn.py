"""Which kernels oneDNN runs in a step, in which type and for how long."""

import collections
import json
import subprocess
import typing

from bench import harness

DIRECTIONS = {
    "forward_training": "forward",
    "backward_data": "gradient of the maps",
    "backward_weights": "gradient of the weights",
}


class Kind(typing.NamedTuple):
    """Primitives of one kind: time in a step, kernels, and those that read bfloat16."""

    milliseconds: float
    kernels: set[str]
    bfloat16: set[str]


def kernels(case: dict, precision: str) -> dict[str, Kind]:
    """Returns the primitives of one step by their kind."""
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


def parse(text: str) -> dict[str, Kind]:
    """Returns the primitives of the second of two equal steps by their kind.

    Args:
        text: What ONEDNN_VERBOSE=1 printed during both.
    """
    lines = [x.split(",") for x in text.splitlines() if ",primitive,exec," in x]
    kinds: dict = collections.defaultdict(lambda: Kind(0.0, set(), set()))
    for line in lines[len(lines) // 2 :]:
        _, _, _, _, _, primitive, kernel, direction, memory = line[:9]
        name = primitive
        if primitive == "convolution":
            name = DIRECTIONS.get(direction, "other")
        kind = kinds[name]
        kinds[name] = kind._replace(milliseconds=kind.milliseconds + float(line[-1]))
        kind.kernels.add(kernel)
        # By the type of the memory: names such as brg_conv_fwd:avx10_1_512_amx have
        # no type in them.
        if "bf16" in memory:
            kind.bfloat16.add(kernel)
    return dict(kinds)


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
        f"{kind} {full[kind].milliseconds / half[kind].milliseconds:.2f}x"
        for kind in DIRECTIONS.values()
        if kind in full and kind in half
    ]
    convolutions = [
        sum(x[k].milliseconds for k in DIRECTIONS.values() if k in x)
        for x in (full, half)
    ]
    used = [half[k] for k in DIRECTIONS.values() if k in half]
    names = sorted(set().union(*(kind.kernels for kind in used)))
    num_bfloat16 = len(set().union(*(kind.bfloat16 for kind in used)))
    total = sum(kind.milliseconds for kind in half.values())
    reorders = half["reorder"].milliseconds / total if "reorder" in half else 0.0
    return (
        f"Why bfloat16 gains this much (fast types of this processor: {types}). "
        "ONEDNN_VERBOSE=1 shows that oneDNN runs the convolutions of TensorFlow's "
        "bfloat16 step, forward and backward, on maps in NHWC without conversion: "
        f"{num_bfloat16} of its {len(names)} kernels read or write bfloat16 "
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
