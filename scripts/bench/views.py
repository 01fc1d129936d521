"""Measures views per CPU-second against the usual ways of making them.

    python scripts/bench_views.py [--torch_python=PYTHON] [--rounds=5]

All are measured in turn (A B C A B C ...) in CPU time of the process, which counts all
threads and leaves out what else the machine does; a ratio is the median of those of the
rounds. All make two views of the same uint8 images, with the same settings.

Torchvision is measured in a process of its own, so that its threads and TensorFlow's do
not meet: `--torch_python` is a Python that can import it, by default this one.
"""

import argparse
import functools
import importlib.util
import json
import statistics
import subprocess
import sys
import time

import numpy as np
import usual_views

BATCH_SIZE = 128
# Pixels of a view, pixels of a stored image, probability of a blur.
CASES = ((32, 32, 0.0), (96, 96, 0.5), (96, 96, 0.0), (96, 128, 0.5))
NO_TORCHVISION = "  torchvision: not installed (see --torch_python), skipped"
_made: dict = {}


def make_images(count: int, side: int) -> np.ndarray:
    """Returns uint8 `[count, side, side, 3]`: patches of colour with a little noise."""
    rng = np.random.default_rng((count, side))
    patches = rng.integers(16, 240, [count, side // 8 + 1, side // 8 + 1, 3])
    patches = patches.repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side]
    return (patches + rng.integers(-16, 16, patches.shape)).astype("uint8")


def ours(images, size: int, blur: float, jit_compile: bool = False) -> list:
    """Returns the views, a pair of `[n, size, size, 3]` for each batch.

    Args:
        images: uint8 `[n, H, W, 3]`.
        size: Pixels of a side of a view.
        blur: Probability of a blur.
        jit_compile: Whether to compile with XLA.
    """
    import tensorflow as tf

    from tfsimclr.views import random_view

    def make():
        views = random_view.Views(size, blur=blur)

        @tf.function(jit_compile=jit_compile, reduce_retracing=True)
        def pair(batch, step):
            return [views(batch, tf.stack([step, view])) for view in (0, 1)]

        return pair

    pair = _once(("ours", size, blur, jit_compile), make)
    starts = range(0, len(images), BATCH_SIZE)
    return [pair(images[i : i + BATCH_SIZE], tf.constant(i)) for i in starts]


def tf_data_map(images, size: int, blur: float) -> list:
    """Returns the same of the usual `tf.data` map over single images."""
    import tensorflow as tf

    def make():
        def pair(image):
            return tuple(usual_views.tensorflow(image, size, blur) for _ in range(2))

        dataset = tf.data.Dataset.from_tensor_slices(images)
        dataset = dataset.map(pair, num_parallel_calls=tf.data.AUTOTUNE)
        return dataset.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE), images

    dataset, _ = _once(("tf_data_map", id(images), size, blur), make)
    return list(dataset)


def torchvision(images, size: int, blur: float) -> list | None:
    """Returns the same of torchvision's transforms on PIL images, or None without it.

    The PIL images are made once, outside of what is timed, and each batch is stacked.
    """
    if importlib.util.find_spec("torchvision") is None:
        print(NO_TORCHVISION)
        return None
    import torch
    from PIL import Image

    def make():
        torch.set_num_threads(1)  # for the pixels of one image more only cost
        pictures = [Image.fromarray(image) for image in images]
        return usual_views.torchvision(size, blur), pictures, images

    view, pictures, _ = _once(("torchvision", id(images), size, blur), make)
    batches = range(0, len(pictures), BATCH_SIZE)
    return [
        tuple(
            torch.stack([view(p) for p in pictures[i : i + BATCH_SIZE]])
            for _ in range(2)
        )
        for i in batches
    ]


def _once(key, make):
    """Returns what `make` made for this key, so that no timing includes making it."""
    if key not in _made:
        _made[key] = make()
    return _made[key]


def cpu_seconds(function, *arguments) -> float:
    """Returns the CPU time, over all threads, that a call takes this process."""
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


class Torchvision:
    """Torchvision in a process of its own; calling it returns CPU seconds.

    Args:
        python: A Python that can import torchvision; `missing` says whether it can.
        case: Of `make_images`, then pixels of a view and probability of a blur.
    """

    def __init__(self, python: str, *case):
        command = [python, __file__, "--serve", json.dumps(case)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.missing = self.process.stdout.readline().strip() != "ready"

    def __call__(self) -> float:
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def _serve(count, side, size, blur):
    images = make_images(count, side)
    if torchvision(images, size, blur):
        print("ready", flush=True)
        for _ in sys.stdin:
            print(cpu_seconds(torchvision, images, size, blur), flush=True)


def measure(timings: dict, rounds: int = 5) -> dict:
    """Returns the seconds of each, `{name: [rounds]}`, measured in turn.

    Args:
        timings: Functions that return how long they took; each runs once before.
        rounds: Number of times that each is measured.
    """
    for timing in timings.values():
        timing()
    measured = [{k: timing() for k, timing in timings.items()} for _ in range(rounds)]
    return {name: [times[name] for times in measured] for name in timings}


def ratio(times, others) -> tuple[float, float, float]:
    """Returns median, least and greatest of `others / times`, of one round each."""
    ratios = [b / a for a, b in zip(times, others, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def cases(rounds: int = 5, count: int = 512, torch_python: str = sys.executable):
    """Yields pixels of a view, of a stored image, blur, and what `measure` returns.

    Args:
        rounds: As `measure` takes them.
        count: Images of a run.
        torch_python: A Python that can import torchvision.
    """
    for size, side, blur in CASES:
        images = make_images(count, side)
        case = (images, size, blur)
        timings = {
            "ours": functools.partial(cpu_seconds, ours, *case),
            "ours, XLA": functools.partial(cpu_seconds, ours, *case, True),
            "tf.data map": functools.partial(cpu_seconds, tf_data_map, *case),
        }
        theirs = Torchvision(torch_python, count, side, size, blur)
        if not theirs.missing:
            timings["torchvision"] = theirs
        yield size, side, blur, measure(timings, rounds)
        theirs.close()
        _made.clear()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=512, help="images of a run")
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(*json.loads(arguments.serve))
        return
    views = 2 * arguments.count
    for size, side, blur, seconds in cases(
        arguments.rounds, arguments.count, arguments.torch_python
    ):
        print(f"{side} px to {size} px, blur {blur}: CPU microseconds per view")
        if "torchvision" not in seconds:
            print(NO_TORCHVISION)
        for name, times in seconds.items():
            line = f"  {name:12s}{1e6 * statistics.median(times) / views:8.1f}"
            for ours in ("ours", "ours, XLA"):
                if not name.startswith("ours"):
                    median, low, high = ratio(seconds[ours], times)
                    line += f"   {median:5.2f}x {ours} ({low:.2f} to {high:.2f})"
            print(line, flush=True)


if __name__ == "__main__":
    main()
