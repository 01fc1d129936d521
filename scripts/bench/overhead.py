"""The time of a training step beyond the network's forward and backward pass."""

from bench import harness

CASES = {
    "full": {"stem": "small", "size": 32, "batch": 128, "images": 4096, "steps": 1},
    "tiny": {
        "stem": "medium",
        "size": 16,
        "batch": 4,
        "images": 64,
        "steps": 2,
        "width": 0.125,
    },
}
MAX_OVERHEAD = 0.08
PERCENT = "{:+.1%}"


def measure(options) -> dict:
    """Measures views, loss, optimizer and host against the network alone."""
    case = CASES[options.size]
    network = {name: value for name, value in case.items() if name != "images"}
    tasks = {
        "whole": harness.tensorflow_worker("fit", resident=False, **case),
        "network": harness.tensorflow_worker("network", **network),
    }
    with harness.workers(tasks):
        timings = harness.measure_rounds(tasks, options.pairs)
    # `network` reports the time of all steps, `fit` the mean of one.
    values = [
        case["steps"] * whole["wall"] / network["wall"] - 1
        for whole, network in zip(timings["whole"], timings["network"], strict=True)
    ]
    row = harness.row(
        f"views, loss, optimizer and host, {describe(case)}",
        "forward and backward of encoder and head",
        values,
        most=MAX_OVERHEAD,
        form=PERCENT,
    )
    return {"rows": [row], "paragraphs": [PARAGRAPH], "clock": "wall"}


def describe(case: dict) -> str:
    return (
        f"ResNet-18, width {case.get('width', 1)}, {case['size']} px, batch "
        f"{case['batch']}"
    )


PARAGRAPH = (
    "The whole step is one inside of `fit`: reading images from the store, making "
    "views, SGD with momentum, and the check for numbers that are not finite. The "
    "network alone computes the gradient of a weighted sum of z."
)
