"""What a step takes beside the network, and what it waits for its images."""

import bench_tools

CASES = {
    "full": {"stem": "small", "size": 32, "batch": 128, "images": 4096, "steps": 1},
    "tiny": {
        **{"stem": "medium", "size": 16, "batch": 4, "images": 64, "steps": 2},
        "width": 0.125,
    },
}
QUICK = {
    "full": {
        **{"stem": "medium", "size": 32, "batch": 128, "images": 4096, "steps": 20},
        "width": 0.25,
    },
    "tiny": CASES["tiny"],
}
MOST_OVERHEAD = 0.08
MOST_STARVATION = 0.02
PERCENT = "{:+.1%}"


def measure(options) -> dict:
    """Measures views, loss, optimizer and host against the network alone."""
    case = CASES[options.size]
    taken = in_turn(
        options.pairs,
        whole=("fit", {**case, "resident": False}),
        network=("network", {k: v for k, v in case.items() if k != "images"}),
    )
    # One call of the network's child is some steps; of fit's, their mean.
    values = [
        case["steps"] * whole["wall"] / network["wall"] - 1
        for whole, network in zip(taken["whole"], taken["network"], strict=True)
    ]
    row = bench_tools.row(
        f"views, loss, optimizer and host, {described(case)}",
        "forward and backward of encoder and head",
        values,
        most=MOST_OVERHEAD,
        form=PERCENT,
    )
    return {"rows": [row], "paragraphs": [OVERHEAD], "clock": "wall"}


def starvation(options) -> dict:
    """Measures `fit` from the store against `fit` of a batch that is there."""
    case = QUICK[options.size]
    taken = in_turn(
        2 * options.pairs,
        store=("fit", {**case, "resident": False}),
        resident=("fit", {**case, "resident": True}),
    )
    values = [x - 1 for x in bench_tools.ratios(taken["store"], taken["resident"])]
    row = bench_tools.row(
        f"step fed from the store, {described(case)}",
        "the same with the batch already on the device",
        values,
        most=MOST_STARVATION,
        form=PERCENT,
    )
    return {"rows": [row], "paragraphs": [STARVATION], "clock": "wall"}


def in_turn(pairs: int, **children) -> dict:
    started = {}
    try:
        for name, (work, settings) in children.items():
            started[name] = bench_tools.tensorflow_child(work, **settings)
        for child in started.values():
            child.ready()
        return bench_tools.rounds(started, pairs)
    finally:
        for child in started.values():
            child.__exit__()


def described(case: dict) -> str:
    return (
        f"ResNet-18, width {case.get('width', 1)}, {case['size']} px, batch "
        f"{case['batch']}"
    )


OVERHEAD = (
    "The whole step is one inside of `fit`: images from the store, views made in it, "
    "SGD with momentum, and behind it the brake on numbers that are not finite. The "
    "network alone computes the gradient of a weighted sum of z."
)
STARVATION = (
    "The smaller the network the sooner it starves, so this is the quarter-width one "
    "of the first command, not ResNet-18 at full width."
)
