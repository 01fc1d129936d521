"""Progress of a training on a stream that is not a terminal, such as a log file."""

import time

import keras

from tfsimclr.distribution.replicas import local_value


class EpochLines(keras.callbacks.Callback):
    """Prints one line at the end of each epoch, with the time left.

    Args:
        epochs: Epochs of the run.
        total_steps: Steps of the run.
    """

    def __init__(self, epochs: int, total_steps: int):
        super().__init__()
        self.epochs = epochs
        self.total_steps = total_steps
        self._start: tuple[float, int] | None = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._start is None:  # of this process: a resumed run starts at a later step
            self._start = time.monotonic(), int(local_value(self.model.step))

    def on_epoch_end(self, epoch, logs=None):
        start, first_step = self._start
        step, now = int(local_value(self.model.step)), time.monotonic()
        left = (now - start) / (step - first_step) * (self.total_steps - step)
        names = ("loss", *self.model.metric_names)
        shown = [*names, *(f"val_{name}" for name in names if f"val_{name}" in logs)]
        values = ", ".join(f"{name} {float(logs[name]):.4g}" for name in shown)
        print(
            f"Epoch {epoch + 1}/{self.epochs}: {values}; {duration(left)} left.",
            flush=True,
        )


def duration(seconds: float) -> str:
    """Returns a duration in its largest units: "42 s", "5 min" or "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
