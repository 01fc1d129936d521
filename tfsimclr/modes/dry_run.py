"""Measures the time and memory of a few training steps (`--mode=plan`)."""

import gc
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import threading
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
ABOVE_LIMIT = 77  # exit status of a process that was ended at its memory limit
HEALTH_IMAGES = 256  # as many as the recorder of a run uses for feature health


def measure_in_subprocess(
    config: Config,
    images,
    timed_steps: int | None = None,
    memory_limit: int | None = None,
) -> dict:
    """Returns the result of `measure_steps`, computed in a new process on a CPU.

    The peak memory of a process never falls, so an earlier measurement in the same
    process would hide a smaller one. On a GPU TensorFlow counts the memory exactly, and
    a second process could not allocate any, so the steps run in this process.

    Args:
        config: Resolved.
        images: uint8 `[n, s, s, 3]`, at least a batch.
        timed_steps: As in `measure_steps`; None is `STEPS`.
        memory_limit: Bytes above which the process is ended, or None. On a GPU it is
            not enforced: the memory of the device is the limit.

    Raises:
        MemoryError: If the steps need more memory than there is, or than the limit.
        RuntimeError: If the process fails for another reason.
    """
    timed_steps = timed_steps or STEPS
    if has_gpu():
        try:
            return measure_steps(config, images, timed_steps)
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(f"batch {config.batch_size}") from error
    count = max(HEALTH_IMAGES, (WARM_STEPS + timed_steps) * config.batch_size)
    images = np.array(images[:count])
    arguments = pickle.dumps((config, images, timed_steps, memory_limit))
    package = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    process = subprocess.run(
        [sys.executable, "-c", f"import {__name__} as m; m._subprocess_main()"],
        input=arguments,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if process.returncode:
        last_line = process.stderr.decode(errors="replace").strip().splitlines()[-1:]
        # Linux kills a process with SIGKILL (9) when memory runs out.
        killed = process.returncode in (-9, ABOVE_LIMIT)
        if killed or "ResourceExhausted" in str(last_line):
            raise MemoryError(f"batch {config.batch_size}")
        raise RuntimeError(
            f"The dry run at batch {config.batch_size} failed: {last_line}."
        )
    return json.loads(process.stdout.splitlines()[-1])


def _subprocess_main() -> None:
    """Runs `measure_steps` on pickled arguments from stdin; prints the result."""
    config, images, steps, memory_limit = pickle.load(sys.stdin.buffer)
    if memory_limit is not None:
        threading.Thread(target=_exit_above, args=[memory_limit], daemon=True).start()
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    print(json.dumps(measure_steps(config, images, steps)))


def _exit_above(memory_limit: int) -> None:
    """Ends this process when it needs more than a limit, before the machine pages."""
    while (resident_memory() or recorder.peak_memory()) <= memory_limit:
        time.sleep(0.05)
    os._exit(ABOVE_LIMIT)


def measure_steps(config: Config, images, timed_steps: int = STEPS) -> dict:
    """Returns the time and memory of a few training steps of a new model.

    The steps and the end of an epoch are those of a real run, including its recorder,
    which writes to a temporary folder.

    Args:
        config: Resolved.
        images: uint8 `[n, s, s, 3]`, at least a batch.
        timed_steps: Number of timed steps; `WARM_STEPS` more before them are not timed.

    Returns:
        A dict with these entries:

        - `batch_size`: That of the config.
        - `base_bytes`: Memory in use before the first step.
        - `step_peak_bytes`: Peak memory during the steps.
        - `peak_bytes`: Peak memory during steps and end of the epoch.
        - `start_seconds`: Time until the end of the first step, with compilation.
        - `step_seconds`: Mean time of a timed step.
        - `first_end_seconds`: Time of the first end of an epoch (records, checkpoint),
          which includes tracing of its graphs.
        - `epoch_end_seconds`: Time of a later end of an epoch.
    """
    keras.backend.clear_session()
    gc.collect()
    start = time.monotonic()
    steps = WARM_STEPS + timed_steps
    model = build.method(config, steps, len(images))
    schedule = build.schedule(config, steps)
    optimizer = build.optimizer(config, schedule, model.learned_variables)
    model.compile(optimizer=optimizer, jit_compile=config.jit_compile == "true")
    model.optimizer.build(model.learned_variables)
    base = reset_peak()
    clock = _Clock()
    steps_data = batches.training_batches(
        images,
        config.batch_size,
        config.seed,
        0,
        steps + 2,
        labels=np.arange(len(images)) if model.needs_index else None,
    )
    model.fit(steps_data.take(steps), callbacks=[clock], shuffle=False, verbose=0)
    step_peak = recorder.peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        epoch_end = recorder.Recorder(
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
            callbacks=[clock, epoch_end],
            shuffle=False,
            verbose=0,
        )
        end = time.monotonic()
    ends = clock.marks[1 : 1 + steps]
    *_, first_end, second_begin, second_end = clock.marks
    return {
        "batch_size": config.batch_size,
        "base_bytes": base,
        "step_peak_bytes": step_peak,
        "peak_bytes": recorder.peak_memory(),
        "start_seconds": ends[0] - start,
        "step_seconds": (ends[-1] - ends[WARM_STEPS - 1]) / timed_steps,
        "first_end_seconds": second_begin - first_end,
        "epoch_end_seconds": end - second_end,
    }


class _Clock(keras.callbacks.Callback):
    """Records the times at which epochs begin and steps end."""

    def __init__(self):
        super().__init__()
        self.marks: list[float] = []

    def on_epoch_begin(self, epoch, logs=None):
        self.marks.append(time.monotonic())

    def on_train_batch_end(self, batch, logs=None):
        self.marks.append(time.monotonic())


def device_memory() -> int | None:
    """Returns the memory of the GPU, or else of the machine, in bytes.

    Without a GPU it is the smaller one of the physical memory and the limit of the
    container. None if `nvidia-smi` does not answer.
    """
    if has_gpu():
        command = "nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits"
        try:
            process = subprocess.run(
                command.split(), capture_output=True, text=True, timeout=30, check=True
            )
            return int(process.stdout.split()[0]) * 2**20
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            return None
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2 and v1
        path = pathlib.Path("/sys/fs/cgroup") / name
        if path.exists() and path.read_text().strip().isdecimal():
            limits.append(int(path.read_text()))
    return min(limits)


def reset_peak() -> int:
    """Resets the peak memory counter; returns the memory in use, in bytes.

    On macOS the counter cannot be reset; measure the smaller case first there.
    """
    if has_gpu():
        tf.config.experimental.reset_memory_stats("GPU:0")
        return int(tf.config.experimental.get_memory_info("GPU:0")["current"])
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return recorder.peak_memory()
    return resident_memory() or recorder.peak_memory()


def resident_memory() -> int | None:
    """Returns the physical memory of this process, in bytes; None except on Linux."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))
