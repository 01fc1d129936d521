"""Checkpoints of a training, and the record that each epoch leaves."""

import pathlib
import resource
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from tfsimclr.distribution import workers
from tfsimclr.distribution.replicas import local_value
from tfsimclr.errors import UserError
from tfsimclr.training import checkpoints, safeguards
from tfsimclr.training.health import FeatureHealth
from tfsimclr.training.history import History
from tfsimclr.views import random_view

SAVED = "Stopped and saved."
CHECKPOINTS = "checkpoints"  # folder in the run folder


class Recorder(keras.callbacks.Callback):
    """Saves and restores checkpoints, and records every epoch.

    Args:
        folder: The run folder.
        sample: uint8 images `[n, H, W, 3]` on which the features are measured.
        batch_size: Images per step, for images per second.
        steps_per_epoch: Steps of an epoch.
        schedule: Step of the optimizer -> learning rate.
        keep: How many checkpoints to keep.
        minutes: Longest time between two checkpoints, in minutes.
        meta: Goes into every checkpoint. A checkpoint is restored only if its "images",
            a checksum of the training images, is the same.
        check: Called before every save; raises if the steps since its last call must
            not be saved. The steps are finished when it returns.
        steps_per_check: Steps after which several workers tell each other whether one
            of them was interrupted. All of them stop at the same step then, and the
            chief alone writes.
    """

    def __init__(
        self,
        folder,
        sample,
        batch_size,
        steps_per_epoch,
        schedule,
        keep,
        minutes,
        meta,
        check=lambda: None,
        steps_per_check=1,
    ):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.sample = sample
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.schedule = schedule
        self.keep = keep
        self.minutes = minutes
        self.meta = meta
        self.check = check
        self.steps_per_check = steps_per_check
        self.is_chief = workers.is_chief()
        self.history = History(self.folder if self.is_chief else None)
        self.health = FeatureHealth(sample)
        self.seconds = 0.0  # of training, before the running epoch
        self.epoch_seconds = 0.0  # of the running epoch, in earlier processes
        self.epoch_steps = 0  # of the running epoch, in all
        self.peak_memory = 0
        self.interrupted = False  # set by a signal handler
        self._arrays: dict | None = None

    @property
    def checkpoint_folder(self) -> pathlib.Path:
        return self.folder / CHECKPOINTS

    def restore(self, model) -> int:
        """Sets the model to its newest checkpoint; returns the steps done.

        Raises:
            UserError: If the checkpoint is of other images or does not fit the model.
        """
        checkpoint = checkpoints.load_latest_of_chief(self.checkpoint_folder)
        if checkpoint is None:
            if self.is_chief and any(self.checkpoint_folder.glob("step-*.npz")):
                print("Training starts from the beginning.", file=sys.stderr)
            return 0
        arrays, meta = checkpoint
        if meta["images"] != self.meta["images"]:
            raise UserError(
                f"{self.folder} was trained on other images than those of this "
                "command. Restore the old images, or name another --workdir."
            )
        self._arrays = arrays
        checkpoints.restore(model, self._arrays)
        self.history.rows = meta["rows"]
        self.seconds = meta["seconds"]
        self.epoch_seconds = meta["epoch_seconds"]
        self.epoch_steps = meta["epoch_steps"]
        self.peak_memory = meta["peak_memory_bytes"]
        self.history.write()
        return int(local_value(model.step))

    def save(self) -> None:
        """Writes a checkpoint of the model, its optimizer and the running epoch."""
        self._last_save = time.monotonic()
        if not self.is_chief:
            return
        self.peak_memory = max(self.peak_memory, peak_memory())
        meta = {
            "step": int(local_value(self.model.step)),
            "rows": self.history.rows,
            "seconds": self.seconds,
            "epoch_seconds": self._elapsed(),
            "epoch_steps": self.epoch_steps,
            "peak_memory_bytes": self.peak_memory,
        }
        checkpoints.save(
            self.checkpoint_folder,
            int(local_value(self.model.step)),
            checkpoints.get_state(self.model),
            {**meta, **self.meta},
            keep=self.keep,
        )
        self._last_save = time.monotonic()

    def on_train_begin(self, logs=None):
        self._last_save = time.monotonic()
        if self.is_chief and not self.history.rows and not self.epoch_steps:
            self.history.show_pairs(pairs_grid(self.model, self.sample[:8]))

    def on_epoch_begin(self, epoch, logs=None):
        if self._arrays is not None and self.epoch_steps:
            # `fit` has just reset the metrics of an epoch that is half done.
            checkpoints.restore_metrics(self.model, self._arrays)
        self._arrays = None
        self._epoch_start = self._last_step = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.epoch_steps += 1
        self._last_step = time.monotonic()
        is_end = self.epoch_steps == self.steps_per_epoch
        is_due = self._last_step - self._last_save > 60 * self.minutes
        is_stop = not is_end and self._is_stop(self.epoch_steps)
        if not (is_end or is_due or is_stop):
            return  # without waiting until a GPU has finished the step
        self.check()
        self._last_step = time.monotonic()
        if is_end:
            return  # saved at the end of the epoch, together with its row
        self.save()
        if is_stop:
            self._stop()

    def on_epoch_end(self, epoch, logs=None):
        seconds = self._elapsed()
        logs.update(self.health.measure(self.model))  # for the callbacks after this one
        images = self.epoch_steps * self.batch_size
        row = {
            "epoch": epoch + 1,
            "step": int(local_value(self.model.step)),
            "learning_rate": safeguards.learning_rate(self.model, self.schedule),
            "loss_scale": safeguards.loss_scale(self.model),
            "images_per_second": images / seconds,
            **{name: float(value) for name, value in logs.items()},
        }
        self.seconds += seconds
        self.epoch_seconds, self.epoch_steps = 0.0, 0
        self._epoch_start = self._last_step = time.monotonic()
        self.history.append(row)
        self.save()
        if self._is_stop():
            self._stop()

    def _is_stop(self, step: int = 0) -> bool:
        """Returns whether to stop after a step of the epoch, the same on all workers.

        Workers may differ by a step in when they get a signal, and a step needs all.
        """
        if workers.watchdog() is None:
            return self.interrupted
        return step % self.steps_per_check == 0 and workers.any_of(self.interrupted)

    def _stop(self):
        workers.stop_together()
        raise KeyboardInterrupt(SAVED)

    def _elapsed(self) -> float:
        return self.epoch_seconds + self._last_step - self._epoch_start


def pairs_grid(model, images) -> np.ndarray:
    """Returns a picture, `[3 s, n s, 3]` in 0-1: images above their two views."""
    plain = random_view.plain_view(images, model.views.image_size)
    rows = [tf.unstack(row) for row in (plain, *model.two_views(images, 0))]
    return tf.concat([tf.concat(row, axis=1) for row in rows], axis=0).numpy()


def peak_memory() -> int:
    """Returns the most bytes in use so far: of the GPU, or else of this process."""
    if tf.config.list_physical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
