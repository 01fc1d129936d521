"""The training loop shared by pretraining, fine-tuning and distillation.

It resumes exactly from the newest checkpoint.
"""

import contextlib
import pathlib
import signal
import sys
import threading

import numpy as np
import tensorflow as tf

from tfsimclr import __version__
from tfsimclr.data import batches
from tfsimclr.data import dataset as datasets
from tfsimclr.distribution import strategies, workers
from tfsimclr.errors import UserError
from tfsimclr.training import progress, recorder, safeguards

HEALTH_IMAGES = 256


def fit(
    model,
    optimizer,
    schedule,
    images: np.ndarray,
    folder: pathlib.Path,
    *,
    validation: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    batch_size: int,
    seed: int,
    epochs: int,
    passes: int = 1,
    jit_compile: bool = False,
    keep_checkpoints: int = 2,
    checkpoint_minutes: float = 15.0,
    steps_per_check: int = 1,
    meta: dict | None = None,
    remedy: str = safeguards.REMEDY,
    z_is_logits: bool = False,
) -> None:
    """Trains to the last epoch, from the newest checkpoint of the folder if any.

    Args:
        model: A `Method`, not compiled; if it was made in the scope of a strategy, it
            trains on the devices of that strategy.
        optimizer: The optimizer, not built, made in the same scope.
        schedule: The optimizer's learning rate: step -> rate.
        images: uint8 `[n, s, s, 3]`.
        folder: Gets `checkpoints/`, `tensorboard/` and `history.csv`.
        validation: uint8 `[m, s, s, 3]`, images that are not trained on. The loss on
            them is recorded after every epoch, in columns whose names begin with
            `val_`.
        labels: int64 `[n]`, for a model that learns from labels, or that needs the
            index of every image.
        batch_size: Images per step.
        seed: Seed of the order of the images.
        epochs: Epochs; each ends with a row in history.csv and a checkpoint.
        passes: How often an epoch goes over the images.
        jit_compile: Whether XLA compiles the step, on one device. As in Keras's own
            default, a step of several devices is not compiled.
        keep_checkpoints: How many checkpoints to keep.
        checkpoint_minutes: Longest time between two checkpoints, in minutes.
        steps_per_check: Steps after which the host reads the numbers of these steps and
            checks that they are finite. It changes no result.
        meta: Further content of a checkpoint's meta.
        remedy: Advice at the end of the message about numbers that are not finite.
        z_is_logits: Whether the last output is the logits of a classifier, which may
            start at zero without having collapsed.

    Raises:
        UserError: If the newest checkpoint is of other images or another model.
        FloatingPointError: If loss or gradient stop being finite.
        KeyboardInterrupt: After SIGINT or SIGTERM; the state is saved by then.
    """
    steps_per_epoch = passes * batches.steps_per_epoch(len(images), batch_size)
    strategy = strategies.of_model(model)
    if strategy is not None:
        count = strategy.num_replicas_in_sync
        print(f"Training on {count} devices, {batch_size // count} images on each.")
        if jit_compile:
            print("Note: a step of several devices is not compiled by XLA.")
            jit_compile = False
    with strategies.scope(strategy):
        model.compile(optimizer=optimizer, jit_compile=jit_compile)
        # The optimizer of the compiled model wraps ours in float16; the loss scale is
        # a variable of the wrapper, and must exist before a checkpoint is restored.
        model.optimizer.build(model.learned_variables)
    safeguard = safeguards.TerminateOnNonFinite(
        folder / recorder.CHECKPOINTS, schedule, remedy, steps_per_check
    )
    saver = recorder.Recorder(
        folder,
        sample=np.asarray(images[: min(HEALTH_IMAGES, len(images))]),
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        schedule=schedule,
        keep=keep_checkpoints,
        minutes=checkpoint_minutes,
        meta={
            "version": __version__,
            "images": datasets.checksum(images),
            **(meta or {}),
        },
        check=safeguard.check,
        steps_per_check=steps_per_check,
    )
    done = saver.restore(model)
    total = epochs * steps_per_epoch
    if done:
        print(f"Going on at step {done} of {total}.")
    callbacks = [
        safeguard,
        saver,
        safeguards.CollapseWarning(check_z=not z_is_logits),
    ]
    val_batches = None
    if validation is not None and len(validation):
        print(f"Training on {len(images)} images; {len(validation)} are held out.")
        val_batches = on_all_replicas(
            strategy, batches.validation_batches(validation, batch_size)
        )
    is_terminal = sys.stdout.isatty()
    if not is_terminal:
        callbacks.append(progress.EpochLines(epochs, total))
    with _saving_on_signals(saver):
        for first, last in fit_segments(done, total, steps_per_epoch):
            steps, last_epoch = (
                min(steps_per_epoch, last - first),
                -(-last // steps_per_epoch),
            )
            model.fit(
                training_batches(
                    strategy, images, batch_size, seed, first, last, labels
                ),
                initial_epoch=first // steps_per_epoch,
                epochs=last_epoch,
                steps_per_epoch=steps,
                validation_data=val_batches,
                callbacks=safeguards.StepCallbacks(
                    callbacks,
                    steps_per_check,
                    model=model,
                    add_progbar=is_terminal,
                    verbose=1,
                    epochs=last_epoch,
                    steps=steps,
                ),
                shuffle=False,  # the batches come in their order
                verbose=1 if is_terminal else 0,
            )
    if val_batches is not None:
        print(describe_validation(saver.history.rows), flush=True)


def training_batches(
    strategy, images, batch_size: int, seed: int, first: int, last: int, labels=None
):
    """Returns the batches of `batches.training_batches`, in parts for the replicas.

    Each machine reads only the parts of its own devices.

    Args:
        strategy: None, or the strategy of the model.
        images: As `batches.training_batches`; so are the other arguments.
        batch_size: Images of all devices in a step.
        seed: As above.
        first: First step.
        last: Step after the last one.
        labels: As above.
    """
    arguments = images, batch_size, seed, first, last, labels
    if strategy is None:
        return batches.training_batches(*arguments)
    count = strategy.num_replicas_in_sync
    if batch_size % count:
        raise UserError(
            f"The batch of {batch_size} images must be a multiple of the {count} "
            "devices."
        )

    def of_machine(context):
        here = count // context.num_input_pipelines
        start = context.input_pipeline_id * here
        parts = batches.training_batches(
            *arguments, parts=range(start, start + here), num_parts=count
        )
        return for_workers(parts)

    return strategy.distribute_datasets_from_function(of_machine)


def for_workers(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a data set with images in float16 if there are several workers.

    Keras sums the first batch over the workers to learn its shape, and TensorFlow
    cannot sum uint8. Float16 holds 0-255 exactly.
    """
    if workers.watchdog() is None:
        return dataset

    def cast(*batch):
        parts = [tf.cast(x, tf.float16) if x.dtype == tf.uint8 else x for x in batch]
        return parts[0] if len(parts) == 1 else tuple(parts)

    return dataset.map(cast)


def on_all_replicas(strategy, dataset: tf.data.Dataset):
    """Returns a data set that gives every replica the same, whole batches."""
    if strategy is None:
        return dataset

    def of_machine(context):
        here = strategy.num_replicas_in_sync // context.num_input_pipelines
        repeated = dataset.flat_map(
            lambda *batch: tf.data.Dataset.from_tensors(
                batch if len(batch) > 1 else batch[0]
            ).repeat(here)
        )
        return for_workers(repeated).prefetch(here)

    return strategy.distribute_datasets_from_function(of_machine)


def describe_validation(rows: list[dict]) -> str:
    """Returns a line that says at which epochs the held-out images scored best.

    Args:
        rows: Of history.csv, with columns `val_loss` and others of `val_`, of which
            more is better; `val_loss_above_chance` has its best epoch with `val_loss`.
    """
    lowest = min(rows, key=lambda row: row["val_loss"])
    parts = [f"val_loss was lowest after epoch {lowest['epoch']}"]
    skipped = ("val_loss", "val_loss_above_chance")
    for name in sorted(rows[0]):
        if name.startswith("val_") and name not in skipped:
            highest = max(rows, key=lambda row: row[name])
            parts.append(f"{name} highest after epoch {highest['epoch']}")
    return f"{', '.join(parts)}, of {len(rows)}."


def fit_segments(done: int, total: int, steps_per_epoch: int):
    """Yields (first, last) step of each call of Keras `fit`.

    `fit` knows only whole epochs, so the rest of a half-done epoch is a call of its
    own, and all further epochs are another.
    """
    epoch_end = -(-done // steps_per_epoch) * steps_per_epoch
    if done < epoch_end:
        yield done, epoch_end
    if epoch_end < total:
        yield epoch_end, total


@contextlib.contextmanager
def _saving_on_signals(saver: recorder.Recorder):
    """Makes SIGINT and SIGTERM save and stop the run after the current step."""
    if threading.current_thread() is not threading.main_thread():
        print(
            "Note: the training runs outside of the main thread, where signals cannot "
            "be handled. If the process is stopped, what was trained since the last "
            "checkpoint is lost."
        )
        yield
        return

    def handle(number, frame):
        if saver.interrupted:  # a second Ctrl-C stops at once
            raise KeyboardInterrupt
        saver.interrupted = True
        print(f"\n{signal.Signals(number).name}: saving after this step.", flush=True)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
