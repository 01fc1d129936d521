"""The journal of a run: its records and checkpoints."""

import contextlib
import csv
import io
import pathlib
import resource
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from tfsimclr import files
from tfsimclr.errors import UserError
from tfsimclr.evaluation import metrics
from tfsimclr.training import checkpoints, safeguards
from tfsimclr.views import random_view

COLUMNS = (
    "epoch step loss loss_above_chance contrastive_top1 learning_rate gradient_norm "
    "loss_scale skipped_steps alignment uniformity feature_std effective_rank "
    "z_std z_effective_rank images_per_second"
).split()
SAVED = "Stopped and saved."


class Recorder(keras.callbacks.Callback):
    """Writes history.csv, TensorBoard and checkpoints, and restores from the latter.

    Args:
        folder: The run folder.
        sample: uint8 images `[n, H, W, 3]` on which the features' health is measured.
        batch_size: Of the training, for images per second.
        steps_per_epoch: Of the training.
        schedule: Learning rate of an update.
        keep: Checkpoints to keep.
        minutes: Save at least this often.
        meta: Goes into every checkpoint; its "images" must be those of a checkpoint
            that is restored.
    """

    def __init__(
        self, folder, sample, batch_size, steps_per_epoch, schedule, keep, minutes, meta
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
        self.rows: list[dict] = []
        self.seconds = 0.0  # of training, over all sittings
        self.epoch_seconds = 0.0  # of the running epoch, before this sitting
        self.epoch_steps = 0  # of the running epoch, in all
        self.peak_memory = 0
        self.interrupted = False  # set by a signal handler
        self._arrays: dict | None = None
        self.board = self.folder / "tensorboard"
        # Called eagerly, Keras keeps every map until the last layer is done, which is
        # more memory than a training step of a small batch takes.
        self._layers = tf.function(lambda view: self.model(view, training=False))
        with files.disk_errors(self.board):
            self._writer = tf.summary.create_file_writer(str(self.board))

    @property
    def checkpoint_folder(self) -> pathlib.Path:
        return self.folder / "checkpoints"

    def restore(self, model) -> int:
        """Sets the model to its newest checkpoint; returns the steps done."""
        found = checkpoints.load_latest(self.checkpoint_folder)
        if found is None:
            if any(self.checkpoint_folder.glob("step-*.npz")):
                print("Training starts from the beginning.", file=sys.stderr)
            return 0
        arrays, meta = found
        if meta["images"] != self.meta["images"]:
            raise UserError(
                f"{self.folder} was trained on other images than there are now. Put "
                "the old ones back, or name another --workdir."
            )
        self._arrays = arrays
        checkpoints.restore(model, self._arrays)
        for name in ("rows", "seconds", "epoch_seconds", "epoch_steps"):
            setattr(self, name, meta[name])
        self.peak_memory = meta["peak_memory_bytes"]
        self.write_history()
        return int(model.step)

    def save(self):
        self.peak_memory = max(self.peak_memory, peak_memory())
        meta = {
            "step": int(self.model.step),
            "rows": self.rows,
            "seconds": self.seconds,
            "epoch_seconds": self._elapsed(),
            "epoch_steps": self.epoch_steps,
            "peak_memory_bytes": self.peak_memory,
        }
        checkpoints.save(
            self.checkpoint_folder,
            int(self.model.step),
            checkpoints.get_state(self.model),
            {**meta, **self.meta},
            keep=self.keep,
        )
        self._last_save = time.monotonic()

    def on_train_begin(self, logs=None):
        self._last_save = time.monotonic()
        if not self.rows and not self.epoch_steps:
            self._show_pairs()

    def on_epoch_begin(self, epoch, logs=None):
        if self._arrays is not None and self.epoch_steps:
            # `fit` has just reset the accumulators of an epoch that is half done.
            checkpoints.restore_metrics(self.model, self._arrays)
        self._arrays = None
        self._epoch_start = self._last_step = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.epoch_steps += 1
        self._last_step = time.monotonic()
        if self.epoch_steps == self.steps_per_epoch:
            return  # saved at the end of the epoch, together with its row
        if self.interrupted:
            self.save()
            raise KeyboardInterrupt(SAVED)
        if time.monotonic() - self._last_save > 60 * self.minutes:
            self.save()

    def on_epoch_end(self, epoch, logs=None):
        seconds = self._elapsed()
        logs.update(self._health())  # callbacks after this one see it
        images = self.epoch_steps * self.batch_size
        row = {
            "epoch": epoch + 1,
            "step": int(self.model.step),
            "learning_rate": safeguards.learning_rate(self.model, self.schedule),
            "loss_scale": safeguards.loss_scale(self.model),
            "images_per_second": images / seconds,
            **{name: float(value) for name, value in logs.items()},
        }
        self.rows.append(row)
        self.seconds += seconds
        self.epoch_seconds, self.epoch_steps = 0.0, 0
        self._epoch_start = self._last_step = time.monotonic()
        self.write_history()
        with self._on_board(row["step"]):
            for name in row.keys() - {"epoch", "step"}:
                tf.summary.scalar(name, row[name])
        self.save()
        if self.interrupted:
            raise KeyboardInterrupt(SAVED)

    def write_history(self):
        text = io.StringIO()
        extra = [name for name in (self.rows or [{}])[0] if name not in COLUMNS]
        writer = csv.DictWriter(text, [*COLUMNS, *extra], restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        path = self.folder / "history.csv"
        files.write_atomically(path, text.getvalue().encode())

    def _elapsed(self) -> float:
        return self.epoch_seconds + self._last_step - self._epoch_start

    def _health(self) -> dict[str, float]:
        """Returns the measures of h and z on two fixed views of the sample."""
        pair = self.model.two_views(self.sample, 2**31 - 1)
        layers_a, layers_b = (self._layers(view) for view in pair)
        z_a, z_b = layers_a[-1], layers_b[-1]
        values = {
            "alignment": metrics.alignment(z_a, z_b),
            "uniformity": metrics.uniformity(z_a),
            "feature_std": metrics.feature_std(layers_a[0]),
            "effective_rank": metrics.effective_rank(layers_a[0]),
            "z_std": metrics.feature_std(z_a),
            "z_effective_rank": metrics.effective_rank(z_a),
        }
        return {name: float(value) for name, value in values.items()}

    def _show_pairs(self):
        picture = pairs_grid(self.model, self.sample[:8])
        with self._on_board(0):
            tf.summary.image("augmented_pairs", picture[None])

    @contextlib.contextmanager
    def _on_board(self, step: int):
        """Sends summaries to TensorBoard's file, and that to the disk."""
        with files.disk_errors(self.board):
            with self._writer.as_default(step=step):
                yield
            self._writer.flush()


def pairs_grid(model, images) -> np.ndarray:
    """Returns a picture, `[3 s, n s, 3]` in 0-1: images above their two views."""
    plain = random_view.plain_view(images, model.views.image_size)
    rows = [tf.unstack(row) for row in (plain, *model.two_views(images, 0))]
    return tf.concat([tf.concat(row, axis=1) for row in rows], axis=0).numpy()


def peak_memory() -> int:
    """Returns the most bytes in use so far: the GPU's if there is one, else ours."""
    if tf.config.list_physical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
