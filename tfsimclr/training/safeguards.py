"""Callbacks that stop a training at numbers not finite and warn of a collapse."""

import math
import pathlib
import sys
import typing

import keras
import tensorflow as tf

from tfsimclr.distribution.replicas import local_value

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


class StepCallbacks(keras.callbacks.CallbackList):
    """The callbacks of a `fit` whose host does not wait for every step.

    Keras's list turns the logs of each step into Python numbers, for which the host
    has to wait until a GPU has finished the step. This one passes the tensors on.

    Args:
        callbacks: Their `on_train_batch_end` gets tensors in place of numbers.
        steps_per_check: A progress bar is updated after this many steps.
        **kwargs: Arguments of `keras.callbacks.CallbackList`.
    """

    def __init__(self, callbacks, steps_per_check: int, **kwargs):
        super().__init__(callbacks, add_history=True, **kwargs)  # `fit` returns it
        self.steps_per_check = steps_per_check

    def on_train_batch_end(self, batch, logs=None):
        for callback in self.callbacks:
            if not isinstance(callback, keras.callbacks.ProgbarLogger):
                callback.on_train_batch_end(batch, logs)
            elif (batch + 1) % self.steps_per_check == 0:
                numbers = {name: float(value) for name, value in logs.items()}
                callback.on_train_batch_end(batch, numbers)


class _Step(typing.NamedTuple):
    """What a finished step has left on the device: scalars that are not read yet."""

    loss: typing.Any
    total_skips: typing.Any
    gradient_norm: typing.Any
    iterations: typing.Any
    loss_scale: typing.Any


class TerminateOnNonFinite(keras.callbacks.Callback):
    """Stops the run if the loss or the gradient of a step is not finite.

    The numbers of a step stay on the device until `steps_per_check` steps are done or
    `check` is called. Steps that follow the first bad one are computed in vain, but
    nothing is saved after it if `check` is called before every checkpoint.

    Under mixed_float16 the optimizer skips bad steps to find its loss scale, so only
    more than `MAX_CONSECUTIVE_SKIPS` skipped steps in a row stop the run.

    Args:
        folder: Folder of the checkpoints; the message names the newest one.
        schedule: Step of the optimizer -> learning rate, for the message.
        remedy: Advice at the end of the message.
        steps_per_check: Steps between two checks.

    Raises:
        FloatingPointError: From `fit`, with the first bad step, its learning rate and
            loss scale and the gradient norm.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        schedule,
        remedy: str = REMEDY,
        steps_per_check: int = 1,
    ):
        super().__init__()
        self.remedy = remedy
        self.folder = folder
        self.schedule = schedule
        self.steps_per_check = steps_per_check
        self.total_skips: float | None = None
        self.skips_in_a_row = 0
        self._unread: list[_Step] = []

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
        step = _Step(
            logs["loss"],
            logs["skipped_steps"],
            logs["gradient_norm"],
            tf.convert_to_tensor(_iterations(self.model)),
            self.model.optimizer.scale_loss(tf.ones([])),
        )
        self._unread.append(step)
        if len(self._unread) >= self.steps_per_check:
            self.check()

    def on_epoch_end(self, epoch, logs=None):
        self.check()

    def check(self) -> None:
        """Reads the numbers of all steps since the last check, in their order."""
        steps, self._unread = self._unread, []
        if not steps:
            return
        float16 = self.model.dtype_policy.name == "mixed_float16"
        newest = int(local_value(self.model.step))
        for number, step in enumerate(steps, newest - len(steps) + 1):
            total_skips = float(step.total_skips)
            skipped = total_skips > self.total_skips
            self.total_skips = total_skips
            self.skips_in_a_row = self.skips_in_a_row + 1 if skipped else 0
            if not math.isfinite(float(step.loss)):
                self._stop("loss", number, step)
            if skipped and not float16:
                self._stop("gradient", number, step)
            if self.skips_in_a_row > MAX_CONSECUTIVE_SKIPS:
                bad = f"gradient of {self.skips_in_a_row} steps in a row"
                self._stop(bad, number, step)

    def _stop(self, what: str, number: int, step: _Step):
        saved = sorted(self.folder.glob("step-*.npz"))
        rate = float(self.schedule(max(int(step.iterations) - 1, 0)))
        raise FloatingPointError(
            f"The {what} is not finite at step {number} (learning rate {rate:.3g}, "
            f"loss scale {float(step.loss_scale):g}, mean gradient norm before "
            f"{float(step.gradient_norm):.3g}). Last good checkpoint: "
            f"{saved[-1] if saved else 'none yet'}. {self.remedy}"
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
    return float(schedule(max(int(local_value(_iterations(model))) - 1, 0)))


def loss_scale(model) -> float:
    """Returns the loss scale of float16; 1 in other precisions."""
    return float(model.optimizer.scale_loss(tf.ones([])))


def _iterations(model):
    """Returns the variable that counts the updates; float16 skips some steps."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return optimizer.iterations
