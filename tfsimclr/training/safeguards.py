"""Callbacks that stop a training at numbers not finite and warn of a collapse."""

import math
import pathlib
import sys

import keras
import tensorflow as tf

# Float16's loss scale starts at 2^15 and is halved at every skipped step, so a run of
# up to about 20 skips is normal.
MAX_CONSECUTIVE_SKIPS = 50
REMEDY = (
    "Try a lower --learning_rate, a longer --warmup_epochs or --precision=float32 in a "
    "new --workdir."
)
# An untrained ResNet has a standard deviation of about 0.4 and an effective rank of
# tens; collapsed features have 0 and 1.
MIN_FEATURE_STD = 0.05
MIN_EFFECTIVE_RANK = 1.5


class TerminateOnNonFinite(keras.callbacks.Callback):
    """Stops the run at the first step whose loss or gradient is not finite.

    Under mixed_float16 the optimizer skips such steps to find its loss scale, so only
    more than `MAX_CONSECUTIVE_SKIPS` skipped steps in a row stop the run.

    Args:
        folder: Folder of the checkpoints; the message names the newest one.
        schedule: Step of the optimizer -> learning rate, for the message.
        remedy: Advice at the end of the message.

    Raises:
        FloatingPointError: From `fit`, with the step, the learning rate, the loss scale
            and the gradient norm.
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
            # Not zero in a resumed epoch: the recorder restores the metrics at its
            # beginning.
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
    A loss without negatives collapses z first, while h still looks normal. The rank of
    z is not checked: a narrow z has a small rank anyway.

    Args:
        check_z: Whether to check z too. Logits of a classifier may start at zero.
    """

    def __init__(self, check_z: bool = True):
        super().__init__()
        self.check_z = check_z
        self.warned = False

    def on_epoch_end(self, epoch, logs=None):
        if self.warned:
            return
        std, rank, z_std = (
            logs[name] for name in ("feature_std", "effective_rank", "z_std")
        )
        # Written as `not (x > limit)` so that NaN also triggers the warning.
        if not (std > MIN_FEATURE_STD and rank > MIN_EFFECTIVE_RANK):
            layer, cause = "h", f"standard deviation {std:.3g} of 1, rank {rank:.3g}"
        elif self.check_z and not z_std > MIN_FEATURE_STD:
            layer, cause = "z", f"standard deviation {z_std:.3g} of 1"
        else:
            return
        self.warned = True
        print(
            f"\nWarning: the features {layer} have collapsed after epoch {epoch + 1} "
            f"({cause}): they are nearly the same for all images. Try a lower "
            "--learning_rate, another --temperature or, for byol, a predictor "
            "(--pred_layers=2) and an --ema_decay nearer to 1.",
            file=sys.stderr,
        )


def learning_rate(model, schedule) -> float:
    """Returns the learning rate of the last update that was applied."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return float(schedule(max(int(optimizer.iterations) - 1, 0)))


def loss_scale(model) -> float:
    """Returns the loss scale of float16; 1 in other precisions."""
    return float(model.optimizer.scale_loss(tf.ones([])))
