"""The records of a training: history.csv and the scalars and images of TensorBoard."""

import contextlib
import csv
import io
import pathlib

import numpy as np
import tensorflow as tf

from tfsimclr import files

COLUMNS = (
    "epoch step loss loss_above_chance contrastive_top1 learning_rate gradient_norm "
    "loss_scale skipped_steps alignment uniformity feature_std effective_rank "
    "z_std z_effective_rank images_per_second"
).split()


class History:
    """The rows of history.csv, one for each epoch, and their copy for TensorBoard.

    Args:
        folder: The run folder; gets history.csv and `tensorboard/`. None: the rows are
            not written.
    """

    def __init__(self, folder: pathlib.Path | None):
        self.rows: list[dict] = []
        self._writes = folder is not None
        if folder is None:
            return
        self.path = folder / "history.csv"
        self._board = folder / "tensorboard"
        with files.disk_errors(self._board):
            self._writer = tf.summary.create_file_writer(str(self._board))

    def append(self, row: dict) -> None:
        """Adds the row of an epoch to both records."""
        self.rows.append(row)
        if not self._writes:
            return
        self.write()
        with self._summaries(row["step"]):
            for name in row.keys() - {"epoch", "step"}:
                tf.summary.scalar(name, row[name])

    def write(self) -> None:
        """Writes history.csv: the columns of `COLUMNS`, then those that rows add."""
        if not self._writes:
            return
        text = io.StringIO()
        extra = [name for name in (self.rows or [{}])[0] if name not in COLUMNS]
        writer = csv.DictWriter(text, [*COLUMNS, *extra], restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_atomically(self.path, text.getvalue().encode())

    def show_pairs(self, picture: np.ndarray) -> None:
        """Writes a picture `[height, width, 3]` in 0-1 for TensorBoard."""
        if not self._writes:
            return
        with self._summaries(0):
            tf.summary.image("augmented_pairs", picture[None])

    @contextlib.contextmanager
    def _summaries(self, step: int):
        """Writes the summaries made inside the block to the disk."""
        with files.disk_errors(self._board):
            with self._writer.as_default(step=step):
                yield
            self._writer.flush()
