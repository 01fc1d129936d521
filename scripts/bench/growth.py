"""How the time of an epoch and the memory of a run grow with the number of images."""

import pathlib
import re
import tempfile

from bench import harness, training_tasks

COUNTS = {"full": (1000, 50_000, 100_000), "tiny": (64, 128, 192)}
NETWORK_FLAGS = {
    "dataset": "textures",
    "backbone": "resnet10",
    "width": 0.125,
    "image_size": 18,
    "stem": "imagenet",
}
FLAGS = {
    "full": {**NETWORK_FLAGS, "batch_size": 250},
    "tiny": {**NETWORK_FLAGS, "batch_size": 16},
}


def measure(options) -> dict:
    """Measures epochs of more and more images, and the memory held after them."""
    counts, flags = COUNTS[options.size], FLAGS[options.size]
    few, half, many = counts
    workers = {
        count: harness.tensorflow_worker(
            "growth", images=count, stored_size=24, flags=flags
        )
        for count in counts
    }
    with harness.workers(workers):
        timings = harness.measure_rounds(workers, options.pairs)
    seconds = {n: [timing["wall"] for timing in timings[n]] for n in counts}
    # Differences of epochs: the constant time of an epoch's end cancels.
    slopes = [
        ((c - b) / (many - half)) / ((b - a) / (half - few))
        for a, b, c in zip(*(seconds[n] for n in counts), strict=True)
    ]
    rows = [
        harness.row(
            f"seconds per image of an epoch, from {half:,} to {many:,} images",
            f"from {few:,} to {half:,}",
            slopes,
            least=0.95,
            most=1.05,
        ),
        harness.row(
            f"private memory after an epoch of {many:,} images",
            f"after one of {few:,}",
            harness.ratios(timings[many], timings[few], "RssAnon"),
            most=1.05,
        ),
    ]
    last = timings[few][-1], timings[many][-1]
    private = [timing["RssAnon"] / 1e6 for timing in last]
    mapped = [timing["RssFile"] / 1e6 for timing in last]
    paragraph = (
        "A tiny network, to keep this short. An epoch includes its end: records and a "
        f"checkpoint. Private memory: {private[0]:.0f} MB at {few:,} images, "
        f"{private[1]:.0f} MB at {many:,}. Mapped files add {mapped[0]:.0f} and "
        f"{mapped[1]:.0f} MB to what the system shows as resident: TensorFlow's "
        "library and pages of the store, which the system drops when it needs memory."
    )
    return {"rows": rows, "paragraphs": [paragraph], "clock": "wall"}


def growth(settings: dict):
    """A worker's task: one epoch, with its end, over a store of `images` images."""
    import time

    import keras

    from tfsimclr import build
    from tfsimclr.data import batches
    from tfsimclr.training import recorder, safeguards

    folder = tempfile.mkdtemp()
    config, _ = training_tasks.resolve_config(settings["flags"], folder)
    images = training_tasks.create_store(settings["images"], settings["stored_size"])
    steps = len(images) // config.batch_size
    model = build.method(config, 100 * steps)
    schedule = build.schedule(config, steps)
    model.compile(build.optimizer(config, schedule, model.learned_variables))
    model.optimizer.build(model.learned_variables)
    starts = []
    callbacks = [
        safeguards.TerminateOnNonFinite(pathlib.Path(folder), schedule),
        recorder.Recorder(
            folder,
            sample=images[:256],
            batch_size=config.batch_size,
            steps_per_epoch=steps,
            schedule=schedule,
            keep=2,
            minutes=60.0,
            meta={"images": ""},
        ),
        keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: starts.append(time.perf_counter())
        ),
    ]

    def task():
        first = int(model.step)
        data = batches.training_batches(
            images, config.batch_size, 0, first, first + steps
        )
        model.fit(data, callbacks=callbacks, shuffle=False, verbose=0)
        return {"wall": time.perf_counter() - starts[-1], **resident_memory()}

    return task, {"steps": steps}


def resident_memory() -> dict[str, int]:
    """Returns the process's bytes of private memory and of mapped files (Linux)."""
    memory = {}
    status = pathlib.Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        match = re.match(r"(RssAnon|RssFile):\s+(\d+) kB", line)
        if match:
            memory[match[1]] = 1024 * int(match[2])
    return memory
