"""The views' lines of the report, measured by bench_views.py in processor time."""

import sys

import bench_tools

# Opponent -> pixels of a view -> how many times as fast ours should be.
WANTED = {"tf.data map": {32: 3.0, 96: 2.5}, "torchvision": {32: 10.0, 96: 4.0}}
COUNT = {"full": 512, "tiny": 4}  # images of a run; 128 a batch


def measure(options) -> dict:
    import bench_views

    python = options.torch_python or sys.executable
    rows, skipped = [], []
    for size, side, blur, seconds in bench_views.cases(
        options.pairs, COUNT[options.size], python
    ):
        for opponent, wanted in WANTED.items():
            if opponent not in seconds:
                skipped = ["torchvision is not installed: see --torch_python."]
                continue
            for ours in ("ours", "ours, XLA"):
                xla = ", XLA" if ours != "ours" else ""
                times = zip(seconds[opponent], seconds[ours], strict=True)
                rows.append(
                    bench_tools.row(
                        f"views per second of the processor, {side} to {size} px, "
                        f"blur {blur}{xla}",
                        AGAINST[opponent],
                        [theirs / own for theirs, own in times],
                        # As a run makes them on a processor: without XLA.
                        least=None if xla else wanted.get(size),
                    )
                )
    return {"rows": rows, "skipped": skipped, "clock": "cpu"}


AGAINST = {
    "tf.data map": "the usual tf.data map over images",
    "torchvision": "torchvision's transforms on PIL images",
}
