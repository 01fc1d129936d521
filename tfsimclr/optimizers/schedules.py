"""Learning rate as a function of the step."""

import math

import keras

from tfsimclr.errors import UserError

DECAYS = ("constant", "cosine")
SCALING_RULES = ("none", "linear", "sqrt")


def scaled_learning_rate(base: float, batch_size: int, rule: str) -> float:
    """Returns the peak learning rate for a batch size.

    Args:
        base: Learning rate before scaling.
        batch_size: Images per step (each yields two views).
        rule: `none` (base), `linear` (base * batch_size / 256) or `sqrt`
            (base * sqrt(batch_size)). For LARS the base of SimCLR is 0.3 with `linear`
            and 0.075 with `sqrt`: both give 4.8 at batch 4096, but 0.15 and 0.85 at
            batch 128.

    Raises:
        UserError: If the rule is unknown.

    Source: Chen et al. 2020 (arXiv:2002.05709), section 2.2 and appendix B.1.
    """
    if rule not in SCALING_RULES:
        raise UserError(f"rule must be one of {SCALING_RULES}, got {rule!r}.")
    if rule == "linear":
        return base * batch_size / 256
    if rule == "sqrt":
        return base * math.sqrt(batch_size)
    return base


@keras.saving.register_keras_serializable("tfsimclr")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then constant or cosine decay, updated every step.

    Args:
        peak: Learning rate at the end of the warm-up.
        total_steps: Number of steps of the run. The cosine reaches 0 at this step,
            which is one after the last update, so no update has rate 0.
        warmup_steps: Steps of linear warm-up: the first step uses `peak /
            warmup_steps`, the last one `peak`.
        decay: `constant` or `cosine`.

    Raises:
        UserError: If an argument is out of range.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5, without restarts.
    """

    def __init__(
        self,
        peak: float,
        total_steps: int,
        warmup_steps: int = 0,
        decay: str = "constant",
    ):
        if decay not in DECAYS:
            raise UserError(f"decay must be one of {DECAYS}, got {decay!r}.")
        if total_steps < 1:
            raise UserError(f"total_steps must be at least 1, got {total_steps}.")
        if not 0 <= warmup_steps < total_steps:
            raise UserError(
                "warmup_steps must be at least 0 and below total_steps, got "
                f"warmup_steps={warmup_steps} and total_steps={total_steps}. "
                "Shorten the warm-up or train longer."
            )
        super().__init__()
        self.peak = peak
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.decay = decay

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rate = keras.ops.convert_to_tensor(self.peak, "float32")
        if self.decay == "cosine":
            length = self.total_steps - self.warmup_steps
            remaining = keras.ops.clip((self.total_steps - step) / length, 0.0, 1.0)
            # Equal to 0.5 (1 + cos), which would round to 0 near the end of a long run.
            rate = rate * keras.ops.square(keras.ops.sin(0.5 * math.pi * remaining))
        if self.warmup_steps:
            warming = self.peak * (step + 1.0) / self.warmup_steps
            rate = keras.ops.where(step < self.warmup_steps, warming, rate)
        return rate

    def get_config(self):
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "decay": self.decay,
        }
