"""Views per second of processor time, against the usual ways of making them.

All are measured in the processor time of their process, which counts all threads and
leaves out what else the machine does. All make two views of the same uint8 images with
the same settings. Torchvision runs in a worker of its own, so that its threads and
TensorFlow's do not compete:

python -m bench.views <settings as JSON>     with scripts/ on PYTHONPATH
"""

import importlib.util
import json
import sys
import typing

import numpy as np

from bench import baselines, harness

BATCH_SIZE = 128
# Pixels of a view, pixels of a stored image, probability of a blur.
CASES = ((32, 32, 0.0), (96, 96, 0.5), (96, 96, 0.0), (96, 128, 0.5))
COUNT = {"full": 512, "tiny": 4}  # images per round


class Baseline(typing.NamedTuple):
    """What ours is compared with: its name, and target speeds by pixels of a view."""

    name: str
    targets: dict[int, float]


BASELINES = {
    "tf.data map": Baseline(
        "the usual tf.data map over images", targets={32: 3.0, 96: 2.5}
    ),
    "torchvision": Baseline(
        "torchvision's transforms on PIL images", targets={32: 10.0, 96: 4.0}
    ),
}


def measure(options) -> dict:
    python = options.torch_python or sys.executable
    rows, skipped = [], []
    for size, side, blur in CASES:
        timings = measure_case(
            size, side, blur, COUNT[options.size], python, options.pairs
        )
        for key, baseline in BASELINES.items():
            if key not in timings:
                skipped = ["torchvision is not installed: see --torch_python."]
                continue
            for ours, suffix in (("ours", ""), ("ours, XLA", ", XLA")):
                # A run on a processor makes views without XLA: that has the target.
                least = None if suffix else baseline.targets.get(size)
                rows.append(
                    harness.row(
                        f"views per second of the processor, {side} to {size} px, "
                        f"blur {blur}{suffix}",
                        baseline.name,
                        harness.ratios(timings[key], timings[ours], "cpu"),
                        least=least,
                    )
                )
    return {"rows": rows, "skipped": skipped, "clock": "cpu"}


def measure_case(
    size: int, side: int, blur: float, count: int, python: str, rounds: int
) -> dict[str, list[dict]]:
    """Returns the timings of every way to make views.

    Args:
        size: Pixels of a side of a view.
        side: Pixels of a side of an image.
        blur: Probability of a blur.
        count: Images per round.
        python: A Python interpreter that may have torchvision.
        rounds: Rounds that are measured.
    """
    images = synthetic_images(count, side)
    ways = {
        "ours": ours(images, size, blur),
        "ours, XLA": ours(images, size, blur, jit_compile=True),
        "tf.data map": tf_data_map(images, size, blur),
    }
    tasks = {name: lambda way=way: harness.time_call(way) for name, way in ways.items()}
    settings = json.dumps({"count": count, "side": side, "size": size, "blur": blur})
    command = harness.python_command("views", settings, python=python)
    with harness.Worker(command) as worker:
        if worker.ready()["torchvision"]:
            tasks["torchvision"] = worker
        return harness.measure_rounds(tasks, rounds)


def synthetic_images(count: int, side: int) -> np.ndarray:
    """Returns uint8 `[count, side, side, 3]`: patches of colour with a little noise."""
    rng = np.random.default_rng((count, side))
    patches = rng.integers(16, 240, [count, side // 8 + 1, side // 8 + 1, 3])
    patches = patches.repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side]
    return (patches + rng.integers(-16, 16, patches.shape)).astype("uint8")


def ours(images, size: int, blur: float, jit_compile: bool = False):
    """Returns a task that makes two views of every image, a batch at a time.

    Args:
        images: uint8 `[n, H, W, 3]`.
        size: Pixels of a side of a view.
        blur: Probability of a blur.
        jit_compile: Whether to compile with XLA.
    """
    import tensorflow as tf

    from tfsimclr.views import random_view

    views = random_view.Views(size, blur=blur)

    @tf.function(jit_compile=jit_compile, reduce_retracing=True)
    def two_views(batch, step):
        return [views(batch, tf.stack([step, view])) for view in (0, 1)]

    def task():
        for start in range(0, len(images), BATCH_SIZE):
            two_views(images[start : start + BATCH_SIZE], tf.constant(start))

    return task


def tf_data_map(images, size: int, blur: float):
    """Returns a task that does the same with a `tf.data` map over single images."""
    import tensorflow as tf

    def two_views(image):
        return tuple(baselines.tensorflow(image, size, blur) for _ in range(2))

    dataset = tf.data.Dataset.from_tensor_slices(images)
    dataset = dataset.map(two_views, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)

    def task():
        for _ in dataset:
            pass

    return task


def torchvision(settings: dict):
    """A worker's task: the same with torchvision's transforms, each batch stacked.

    The PIL images are made once, outside of what is timed.
    """
    if importlib.util.find_spec("torchvision") is None:
        return dict, {"torchvision": False}
    import torch
    from PIL import Image

    torch.set_num_threads(1)  # more threads only cost, for the pixels of one image
    view = baselines.torchvision(settings["size"], settings["blur"])
    images = synthetic_images(settings["count"], settings["side"])
    pictures = [Image.fromarray(image) for image in images]

    def task():
        for start in range(0, len(pictures), BATCH_SIZE):
            batch = pictures[start : start + BATCH_SIZE]
            for _ in range(2):
                torch.stack([view(picture) for picture in batch])

    return task, {"torchvision": True}


if __name__ == "__main__":
    harness.serve(lambda: torchvision(json.loads(sys.argv[1])))
