"""SimCLR end to end, from image files to trained epochs, against lightly.

Both train the same network on the same folder of JPEGs, with decoding and views.
Lightly runs with its own SimCLR transform, its NT-Xent loss and a PyTorch DataLoader,
in the environment of --torch_python, which needs torch, torchvision and lightly.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

from bench import harness, training_tasks

LOADER_WORKERS = 2
# PyTorch's threads otherwise spin while they wait and take the cores from its loader's
# workers: on two cores an epoch takes several times as long.
PASSIVE_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
# `photo`: height and width of the images that this program makes; without it they come
# from --data_dir.
CASES: dict[str, tuple[dict, ...]] = {
    "full": (
        {"count": 10_000, "size": 32, "batch": 128, "stem": "medium", "width": 0.25},
        {
            "count": 1000,
            "photo": (375, 500),
            "size": 96,
            "batch": 128,
            "stem": "imagenet",
            "width": 1.0,
        },
        {
            "count": 256,
            "photo": (375, 500),
            "size": 224,
            "batch": 64,
            "stem": "imagenet",
            "width": 1.0,
        },
    ),
    "tiny": (
        {"count": 24, "size": 16, "batch": 8, "stem": "medium", "width": 0.125},
        {
            "count": 24,
            "photo": (30, 40),
            "size": 16,
            "batch": 8,
            "stem": "medium",
            "width": 0.125,
        },
    ),
}
EXTENSIONS = {".jpg", ".jpeg"}
NUM_PATTERNS = 16


def measure(options) -> dict:
    python = options.torch_python or sys.executable
    version = lightly_version(python)
    if not version:
        reason = "lightly is not installed: see --torch_python."
        return {"rows": [], "skipped": [reason], "clock": "wall"}
    rows, paragraphs, skipped = [], [PARAGRAPH], []
    for case in CASES[options.size]:
        with tempfile.TemporaryDirectory() as folder:
            images = pathlib.Path(folder) / "images"
            if "photo" in case:
                make_photos(images, case["count"], *case["photo"])
            elif options.data_dir:
                copy_images(options.data_dir, images, case["count"])
            else:
                skipped.append(f"{case['size']} px needs --data_dir, a JPEG folder.")
                continue
            settings = {**case, "folder": str(images), "cache": f"{folder}/cache"}
            timings = measure_case(settings, python, options.pairs)
        rows += rows_of(case, timings)
        paragraphs.append(summary(case, timings))
    return {
        "rows": rows,
        "paragraphs": paragraphs,
        "skipped": skipped,
        "versions": {"lightly": version},
        "clock": "wall",
    }


def lightly_version(python: str) -> str | None:
    """Returns the version of lightly in an interpreter's environment, or None."""
    code = "import importlib.metadata as m; print(m.version('lightly'))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def copy_images(source: str, folder: pathlib.Path, count: int) -> None:
    """Copies the first JPEGs below a folder into a folder without classes.

    Raises:
        ValueError: If there are fewer than `count`.
    """
    root = pathlib.Path(source).expanduser()
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
    if len(paths) < count:
        raise ValueError(
            f"--data_dir={source} has {len(paths)} JPEG files, expected at least "
            f"{count}."
        )
    folder.mkdir(parents=True)
    for number, path in enumerate(paths[:count]):
        shutil.copyfile(path, folder / f"{number:06d}.jpg")


def make_photos(folder: pathlib.Path, count: int, height: int, width: int) -> None:
    """Writes JPEGs of 1/f noise, which has about the frequencies of photographs.

    Args:
        folder: Created.
        count: Number of images.
        height: Pixels.
        width: Pixels.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequencies[0, 0] = 1.0
    patterns = []
    for _ in range(NUM_PATTERNS):
        noise = np.fft.rfft2(rng.normal(size=(3, height, width)))
        pattern = np.fft.irfft2(noise / frequencies, s=(height, width))
        pattern = 128 + 50 * (pattern - pattern.mean()) / pattern.std()
        patterns.append(np.clip(pattern, 0, 255).astype("uint8").transpose(1, 2, 0))
    folder.mkdir(parents=True)
    for number in range(count):
        shift = rng.integers((height, width))
        pixels = np.roll(patterns[number % NUM_PATTERNS], shift, axis=(0, 1))
        Image.fromarray(pixels).save(folder / f"{number:06d}.jpg", quality=90)


def measure_case(settings: dict, python: str, pairs: int) -> dict[str, list[dict]]:
    """Returns the timings of training and of reading images without a network.

    Returns:
        `ours` and `lightly`: the first epoch and `pairs` later ones; `our feed`, `our
        feed of images` and `lightly's feed`: `pairs` epochs without the network.

    Raises:
        ValueError: If the networks differ in their number of parameters.
    """
    tasks = {
        "ours": harness.tensorflow_worker("peer_train", **settings),
        "lightly": lightly_worker(python, "train", settings),
    }
    with harness.workers(tasks):
        timings = harness.measure_rounds(tasks, 1 + pairs, warm_up=0)
    counts = {name: timings[name][0]["parameters"] for name in tasks}
    if len(set(counts.values())) > 1:
        raise ValueError(f"The networks compared are not the same: {counts}.")
    tasks = {
        "our feed": harness.tensorflow_worker("peer_feed", views=True, **settings),
        "our feed of images": harness.tensorflow_worker(
            "peer_feed", views=False, **settings
        ),
        "lightly's feed": lightly_worker(python, "feed", settings),
    }
    with harness.workers(tasks):
        return {**timings, **harness.measure_rounds(tasks, pairs)}


def lightly_worker(python: str, task: str, settings: dict) -> harness.Worker:
    """Returns a worker that performs a task of lightly_worker.py."""
    settings = {**settings, "workers": LOADER_WORKERS}
    command = harness.python_command(
        "lightly_worker", task, json.dumps(settings), python=python
    )
    return harness.Worker(command, PASSIVE_THREADS)


def rows_of(case: dict, timings: dict) -> list[dict]:
    name = f"{case['count']:,} JPEGs at {case['size']} px"
    lightly = "lightly"
    return [
        harness.row(
            f"{name}, first epoch, with preparing the store: speed",
            lightly,
            harness.ratios(timings["lightly"][:1], timings["ours"][:1]),
        ),
        harness.row(
            f"{name}, later epochs: speed",
            lightly,
            harness.ratios(timings["lightly"][1:], timings["ours"][1:]),
        ),
        harness.row(
            f"{name}, reading images and making views without a network: speed",
            lightly,
            harness.ratios(timings["lightly's feed"], timings["our feed"]),
        ),
        harness.row(
            "the same: processor time per image",
            lightly,
            harness.ratios(timings["our feed"], timings["lightly's feed"], "cpu"),
        ),
        harness.row(
            f"{name}, reading images for a GPU that makes the views: speed",
            "lightly, with views",
            harness.ratios(timings["lightly's feed"], timings["our feed of images"]),
        ),
    ]


def summary(case: dict, timings: dict) -> str:
    """Returns the images per second and the processor time per image, in words."""
    images = case["count"] // case["batch"] * case["batch"]

    def median(name: str, rounds: slice, clock: str = "wall") -> float:
        return float(np.median([timing[clock] for timing in timings[name][rounds]]))

    first, later, every = slice(0, 1), slice(1, None), slice(None)
    feeds = ", ".join(
        f"{name} {images / median(name, every):.0f} images/s and "
        f"{1e3 * median(name, every, 'cpu') / images:.2f} ms of processor time each"
        for name in ("our feed", "our feed of images", "lightly's feed")
    )
    return (
        f"{case['count']:,} JPEGs at {case['size']} px, batch {case['batch']}, "
        f"ResNet-18 with {case['stem']} stem and width {case['width']}: first epoch "
        f"{median('ours', first):.1f} s, lightly {median('lightly', first):.1f} s; "
        f"later epochs {images / median('ours', later):.0f} images/s, lightly "
        f"{images / median('lightly', later):.0f}. Without a network: {feeds}."
    )


PARAGRAPH = (
    "Each trains SimCLR in a process of its own: same network, SGD with momentum, "
    "float32, random crop, flip, colour jitter, grayscale and blur for half of the "
    "views. The first epoch includes listing the files, building the model and, for "
    "ours, decoding all images into the store and compiling; imports are not "
    "included. The store holds the images at 4/3 of the views' size or, if they are "
    "smaller, at their own; lightly decodes the files in every epoch, with "
    f"{LOADER_WORKERS} DataLoader workers and threads that do not spin while they "
    "wait (OMP_WAIT_POLICY=PASSIVE, GOMP_SPINCOUNT=0), which is faster for it. No "
    "checkpoints or records are written. The larger images are noise with the "
    "frequencies of photographs."
)


def _prepare(settings: dict):
    """Returns (resolved Config, data set) of a run on the folder of images."""
    flags = {
        "dataset": "folder",
        "data_dir": settings["folder"],
        "cache_dir": settings["cache"],
        "image_size": settings["size"],
        "batch_size": settings["batch"],
        "backbone": "resnet18",
        "stem": settings["stem"],
        "width": settings["width"],
        "blur": 0.5,
        "optimizer": "sgd",
    }
    return training_tasks.resolve_config(flags, f"{settings['cache']}/run")


def peer_train(settings: dict):
    """A worker's task: one epoch of SimCLR; the first one prepares the store."""
    from tfsimclr import build
    from tfsimclr.data import batches

    prepared: dict = {}

    def prepare():
        config, dataset = _prepare(settings)
        images = dataset.pretrain.images
        model = build.method(config)
        optimizer = build.optimizer(config, 0.03, model.learned_variables)
        model.compile(optimizer, jit_compile=config.jit_compile == "true")
        return {"model": model, "images": images}

    def task():
        if not prepared:
            prepared.update(prepare())
        model, images = prepared["model"], prepared["images"]
        batch, first = settings["batch"], int(model.step)
        stop = first + batches.steps_per_epoch(len(images), batch)
        data = batches.training_batches(images, batch, 0, first, stop)
        model.fit(data, shuffle=False, verbose=0)
        return training_tasks.count_parameters(model)

    return task, {}


def peer_feed(settings: dict):
    """A worker's task: reads one epoch, and makes two views of every image if asked."""
    import tensorflow as tf

    from tfsimclr.data import batches
    from tfsimclr.views import random_view

    _, dataset = _prepare(settings)
    images, batch = dataset.pretrain.images, settings["batch"]
    steps = batches.steps_per_epoch(len(images), batch)
    views = random_view.Views(settings["size"], blur=0.5)

    @tf.function
    def two_views(batch, step):
        return [views(batch, tf.stack([step, view])) for view in (0, 1)]

    def task():
        data = batches.training_batches(images, batch, 0, 0, steps)
        for step, pixels in enumerate(data):
            if settings["views"]:
                two_views(pixels, tf.constant(step))

    return task, {}
