"""The time that a training step waits for its images."""

from bench import harness, overhead

CASES = {
    "full": {
        "stem": "medium",
        "size": 32,
        "batch": 128,
        "images": 4096,
        "steps": 20,
        "width": 0.25,
    },
    "tiny": overhead.CASES["tiny"],
}
MAX_STARVATION = 0.02


def measure(options) -> dict:
    """Measures `fit` fed from the store against `fit` on one batch in memory."""
    case = CASES[options.size]
    tasks = {
        "store": harness.tensorflow_worker("fit", resident=False, **case),
        "resident": harness.tensorflow_worker("fit", resident=True, **case),
    }
    with harness.workers(tasks):
        timings = harness.measure_rounds(tasks, 2 * options.pairs)
    row = harness.row(
        f"step fed from the store, {overhead.describe(case)}",
        "the same with the batch already on the device",
        [x - 1 for x in harness.ratios(timings["store"], timings["resident"])],
        most=MAX_STARVATION,
        form=overhead.PERCENT,
    )
    return {"rows": [row], "paragraphs": [PARAGRAPH], "clock": "wall"}


PARAGRAPH = (
    "A smaller network needs images faster, so this is the quarter-width network of "
    "the first command of the README, not ResNet-18 at full width."
)
