"""A trial of a few steps: what a run takes of time and memory."""

import gc
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from tfsimclr import build
from tfsimclr.data import batches
from tfsimclr.settings.config import Config
from tfsimclr.training import recorder

WARM_STEPS = 2
STEPS = 10
HEALTH_IMAGES = 256  # as many as a run's journal looks at


def measure_in_subprocess(config: Config, images) -> dict:
    """Returns what `run` does, of a process of its own unless there is a GPU.

    A new process has what a run will have, and nothing that an earlier trial left
    behind. A GPU's memory is counted exactly, and one process holds all of it.

    Raises:
        MemoryError: If the memory does not suffice.
        RuntimeError: If the trial fails otherwise.
    """
    if has_gpu():
        try:
            return measure_steps(config, images)
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(f"batch {config.batch_size}") from error
    count = max(HEALTH_IMAGES, (WARM_STEPS + STEPS) * config.batch_size)
    given = pickle.dumps((config, np.array(images[:count]), STEPS))
    package = str(pathlib.Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", "from tfsimclr import trial; trial.answer()"],
        input=given,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        # The system ends by SIGKILL who takes what it does not have.
        if done.returncode == -9 or "ResourceExhausted" in str(words):
            raise MemoryError(f"batch {config.batch_size}")
        raise RuntimeError(f"The trial of {config.batch_size} images failed: {words}.")
    return json.loads(done.stdout.splitlines()[-1])


def _subprocess_main() -> None:
    """The other side of `apart`."""
    config, images, steps = pickle.load(sys.stdin.buffer)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    print(json.dumps(measure_steps(config, images, steps)))


def measure_steps(config: Config, images, timed_steps: int = STEPS) -> dict:
    """Returns what a few steps of a fresh model take.

    They are those of a real run, with its journal, which writes to a folder that is
    deleted.

    Args:
        config: Resolved.
        images: uint8 `[n, s, s, 3]`, at least a batch.
        timed_steps: Steps that are timed; two before them are not.

    Returns:
        `batch_size`; `base_bytes` in use before the first step, `step_peak_bytes` at
        most in the steps, `peak_bytes` at most in all; `start_seconds` until the end
        of the first step, with the compilation; `step_seconds` of the others; and of
        the records and the checkpoint at an epoch's end `first_end_seconds`, at which
        much is made once, and `epoch_end_seconds`.
    """
    keras.backend.clear_session()
    gc.collect()
    start = time.monotonic()
    steps = WARM_STEPS + timed_steps
    model = build.method(config, steps)
    schedule = build.schedule(config, steps)
    optimizer = build.optimizer(config, schedule, model.learned_variables)
    model.compile(optimizer=optimizer, jit_compile=config.jit_compile == "true")
    model.optimizer.build(model.learned_variables)
    base = reset_peak()
    clock = _Clock()
    steps_data = batches.training_batches(
        images, config.batch_size, config.seed, 0, steps + 2
    )
    model.fit(steps_data.take(steps), callbacks=[clock], shuffle=False, verbose=0)
    step_peak = recorder.peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        journal = recorder.Recorder(
            pathlib.Path(folder),
            sample=np.asarray(images[:HEALTH_IMAGES]),
            batch_size=config.batch_size,
            steps_per_epoch=1,
            schedule=schedule,
            keep=1,
            minutes=config.checkpoint_minutes,
            meta={"images": ""},
        )
        model.fit(
            steps_data.skip(steps),
            epochs=2,
            steps_per_epoch=1,
            callbacks=[clock, journal],
            shuffle=False,
            verbose=0,
        )
        end = time.monotonic()
    ends = clock.marks[1 : 1 + steps]
    *_, first_done, second_begun, second_done = clock.marks
    return {
        "batch_size": config.batch_size,
        "base_bytes": base,
        "step_peak_bytes": step_peak,
        "peak_bytes": recorder.peak_memory(),
        "start_seconds": ends[0] - start,
        "step_seconds": (ends[-1] - ends[WARM_STEPS - 1]) / timed_steps,
        "first_end_seconds": second_begun - first_done,
        "epoch_end_seconds": end - second_done,
    }


class _Clock(keras.callbacks.Callback):
    """Notes when the epoch begins and when each step ends."""

    def __init__(self):
        super().__init__()
        self.marks: list[float] = []

    def on_epoch_begin(self, epoch, logs=None):
        self.marks.append(time.monotonic())

    def on_train_batch_end(self, batch, logs=None):
        self.marks.append(time.monotonic())


def device_memory() -> int | None:
    """Returns the bytes of the GPU's memory, else the machine's; None if unknown."""
    if has_gpu():
        command = "nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits"
        try:
            done = subprocess.run(
                command.split(), capture_output=True, text=True, timeout=30, check=True
            )
            return int(done.stdout.split()[0]) * 2**20
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            return None
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        path = pathlib.Path("/sys/fs/cgroup") / name
        if path.exists() and path.read_text().strip().isdecimal():
            limits.append(int(path.read_text()))
    return min(limits)


def reset_peak() -> int:
    """Lets the peak of memory begin anew, where that is possible; returns what is used.

    Where it is not (macOS), peaks only grow: try the smaller thing first.
    """
    if has_gpu():
        tf.config.experimental.reset_memory_stats("GPU:0")
        return int(tf.config.experimental.get_memory_info("GPU:0")["current"])
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return recorder.peak_memory()


def has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))
