"""Brakes and alarms of the training."""

import math
import pathlib
import sys

import keras
import tensorflow as tf

# Float16's loss scale starts at 2^15: that many halvings are no cause for alarm.
MAX_CONSECUTIVE_SKIPS = 50
REMEDY = (
    "Try a lower --learning_rate, a longer --warmup_epochs or --precision=float32 in a "
    "new --workdir."
)
# An untrained ResNet has about 0.4 and tens of directions; a collapsed one, nothing.
MIN_FEATURE_STD = 0.05
MIN_EFFECTIVE_RANK = 1.5


class TerminateOnNonFinite(keras.callbacks.Callback):
    """Stops the run at the first step whose numbers cannot be trained on.

    Under mixed_float16 single skipped steps belong to the search for the loss scale;
    only an endless row of them stops the run.

    Args:
        folder: Of the checkpoints, named in the message.
        schedule: Learning rate of an update, named in the message.
        remedy: The end of the message.
    """

    def __init__(self, folder: pathlib.Path, schedule, remedy: str = REMEDY):
        super().__init__()
        self.remedy = remedy
        self.folder = folder
        self.schedule = schedule
        self.total_skips: float | None = None
        self.skips_in_a_row = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.total_skips = None

    def on_train_batch_begin(self, batch, logs=None):
        if self.total_skips is None:
            # Not zero where an epoch is resumed: the journal brings its accumulators
            # back as the epoch begins.
            self.total_skips = float(
                self.model.metric_trackers["skipped_steps"].result()
            )

    def on_train_batch_end(self, batch, logs=None):
        skipped = logs["skipped_steps"] > self.total_skips
        self.total_skips = logs["skipped_steps"]
        self.skips_in_a_row = self.skips_in_a_row + 1 if skipped else 0
        float16 = self.model.dtype_policy.name == "mixed_float16"
        if not math.isfinite(logs["loss"]):
            self._stop("loss")
        if skipped and not float16:
            self._stop("gradient")
        if self.skips_in_a_row > MAX_CONSECUTIVE_SKIPS:
            self._stop(f"gradient of {self.skips_in_a_row} steps in a row")

    def _stop(self, what: str):
        saved = sorted(self.folder.glob("step-*.npz"))
        raise FloatingPointError(
            f"The {what} is not finite at step {int(self.model.step)} (learning rate "
            f"{learning_rate(self.model, self.schedule):.3g}, loss scale "
            f"{loss_scale(self.model):g}, mean gradient norm before "
            f"{float(self.model.metric_trackers['gradient_norm'].result()):.3g}). "
            f"Last good checkpoint: {saved[-1] if saved else 'none yet'}. {self.remedy}"
        )


class CollapseWarning(keras.callbacks.Callback):
    """Warns once if the features of all images have become (nearly) the same.

    Reads `feature_std` and `effective_rank` of h and `z_std` from the logs of an epoch.
    A loss without negatives collapses z first: h may look well long after. The rank of
    z is no sign, since a narrow z has few directions anyway.
    """

    def __init__(self):
        super().__init__()
        self.warned = False

    def on_epoch_end(self, epoch, logs=None):
        if self.warned:
            return
        spread, rank, of_z = (
            logs[name] for name in ("feature_std", "effective_rank", "z_std")
        )
        # Not "<": what is not a number is no health either.
        if not (spread > MIN_FEATURE_STD and rank > MIN_EFFECTIVE_RANK):
            sick, cause = "h", f"standard deviation {spread:.3g} of 1, rank {rank:.3g}"
        elif not of_z > MIN_FEATURE_STD:
            sick, cause = "z", f"standard deviation {of_z:.3g} of 1"
        else:
            return
        self.warned = True
        print(
            f"\nWarning: the features {sick} have collapsed after epoch {epoch + 1} "
            f"({cause}): all images look alike to the network. Try a lower "
            "--learning_rate, another --temperature or, for byol, a predictor "
            "(--pred_layers=2) and an --ema_decay nearer to 1.",
            file=sys.stderr,
        )


def learning_rate(model, schedule) -> float:
    """Returns the schedule's rate of the last update applied, not of the next."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return float(schedule(max(int(optimizer.iterations) - 1, 0)))


def loss_scale(model) -> float:
    """Returns float16's loss scale; 1 in other precisions."""
    return float(model.optimizer.scale_loss(tf.ones([])))
