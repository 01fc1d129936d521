"""The fit of a run: stopped anywhere, it goes on from there."""

import contextlib
import pathlib
import signal

import numpy as np

from tfsimclr import __version__, files
from tfsimclr.data import batches
from tfsimclr.settings.config import Config
from tfsimclr.training import recorder, safeguards

HEALTH_IMAGES = 256


def fit(
    config: Config,
    model,
    optimizer,
    schedule,
    images: np.ndarray,
    folder: pathlib.Path,
    *,
    labels: np.ndarray | None = None,
    batch_size: int,
    seed: int,
    epochs: int,
    passes: int = 1,
    meta: dict | None = None,
    remedy: str = safeguards.REMEDY,
) -> None:
    """Trains to the last epoch, from the newest checkpoint of the folder if any.

    Args:
        config: Resolved.
        model: A `Method`.
        optimizer: Of it; not yet built.
        schedule: The optimizer's learning rate.
        images: uint8 `[n, s, s, 3]`.
        folder: Gets `checkpoints/`, `tensorboard/` and `history.csv`.
        labels: int64 `[n]`, where the model learns from them.
        batch_size: Images per step.
        seed: Of the order of the images.
        epochs: Rows of history.csv, each with a checkpoint.
        passes: Over the images, in every such epoch.
        meta: More for the meta of a checkpoint.
        remedy: What to try if the numbers stop being finite.

    Raises:
        FloatingPointError: If the numbers stop being finite.
        KeyboardInterrupt: After SIGINT or SIGTERM; the state is saved by then.
    """
    steps_per_epoch = passes * batches.steps_per_epoch(len(images), batch_size)
    variables = model.learned_variables
    model.compile(optimizer=optimizer, jit_compile=config.jit_compile == "true")
    # Of the compiled one: float16's loss scale is a variable of its wrapper, and must
    # exist before a checkpoint is restored.
    model.optimizer.build(variables)
    journal = recorder.Recorder(
        folder,
        sample=np.asarray(images[: min(HEALTH_IMAGES, len(images))]),
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        schedule=schedule,
        keep=config.keep_checkpoints,
        minutes=config.checkpoint_minutes,
        meta={
            "config": config.pretraining(),
            "version": __version__,
            "images": _identity(images),
            **(meta or {}),
        },
    )
    done = journal.restore(model)
    total = epochs * steps_per_epoch
    if done:
        print(f"Going on at step {done} of {total}.")
    watch = [
        safeguards.TerminateOnNonFinite(journal.checkpoint_folder, schedule, remedy),
        journal,
        safeguards.CollapseWarning(),
    ]
    with _saving_on_signals(journal):
        for first, last in fit_segments(done, total, steps_per_epoch):
            model.fit(
                batches.training_batches(images, batch_size, seed, first, last, labels),
                initial_epoch=first // steps_per_epoch,
                epochs=-(-last // steps_per_epoch),
                steps_per_epoch=min(steps_per_epoch, last - first),
                callbacks=watch,
                shuffle=False,  # the batches come in their order
            )


def _identity(images: np.ndarray, count: int = 512) -> str:
    """Returns a checksum of how many images there are and of some, evenly spread."""
    rows = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
    return files.sha256(np.array(images.shape), images[rows])


def fit_segments(done: int, total: int, steps_per_epoch: int):
    """Yields (first, last) step: the rest of a half-done epoch, then the others."""
    whole = -(-done // steps_per_epoch) * steps_per_epoch
    if done < whole:
        yield done, whole
    if whole < total:
        yield whole, total


@contextlib.contextmanager
def _saving_on_signals(journal: recorder.Recorder):
    """Lets SIGINT and SIGTERM end the run after the running step, with its state."""

    def handle(number, frame):
        if journal.interrupted:  # a second Ctrl-C: the owner means now
            raise KeyboardInterrupt
        journal.interrupted = True
        print(f"\n{signal.Signals(number).name}: saving after this step.", flush=True)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
