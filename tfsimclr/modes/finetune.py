"""Fine-tuning of a pretrained network on a share of the labels."""

import pathlib

import numpy as np
import tensorflow as tf

from tfsimclr import build, resolve
from tfsimclr.data import batches, sampling
from tfsimclr.data import dataset as datasets
from tfsimclr.distribution import strategies, workers
from tfsimclr.errors import UserError
from tfsimclr.optimizers import lars, schedules
from tfsimclr.runs import classifiers, loading
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints, fit

REMEDY = (
    "Try a lower --finetune_learning_rate or --precision=float32, after removing the "
    "folder of this fine-tuning."
)


def finetune(
    config: Config, dataset: datasets.DataSet, workdir: pathlib.Path
) -> pathlib.Path:
    """Fine-tunes the pretrained network of a run; returns the folder of the result.

    The encoder, the head up to `--finetune_layer` and a new classifier on that layer
    are trained together; the whole test set is scored after the last epoch. The folder
    is `finetuned/labels-<share>-<layer>-seed<seed>` in the run folder, so fine-tunings
    with other settings have folders of their own. A finished fine-tuning is not
    repeated, an interrupted one is resumed.

    Args:
        config: Resolved.
        dataset: The data.
        workdir: The run folder.

    Raises:
        UserError: If there is no checkpoint or no label, or the folder holds a
            fine-tuning with other settings.
        FloatingPointError: If the loss or the weights are not finite.
        KeyboardInterrupt: On SIGINT or SIGTERM, after the state is saved.

    Source: Chen et al. 2020 (arXiv:2006.10029), sections 2 and 3.1.
    """
    if not dataset.has_labels:
        raise UserError(
            f"--mode=finetune needs labels, and the data set {config.dataset} has no "
            "labelled train and test images of two classes or more."
        )
    pretrained, meta = loading.model(config, workdir)
    if len(meta["rows"]) < config.epochs:
        print(f"Note: {len(meta['rows'])} of {config.epochs} epochs are done.")
    split = dataset.train
    rows = sampling.labelled_rows(split, config.num_train_images)
    rows = rows[
        sampling.label_fraction(
            split.labels[rows], config.label_fraction, config.finetune_seed
        )
    ]
    config = resolve.resolve_finetune(config, len(rows))
    settings = {
        "labels": config.label_fraction,
        "images": len(rows),
        "from": config.finetune_layer,
        "seed": config.finetune_seed,
        "epochs": config.finetune_epochs,
        "batch_size": min(config.finetune_batch_size, len(rows)),
        "learning_rate": config.finetune_learning_rate,
        "pretrained": checkpoints.hash_weights(pretrained),
    }
    name = classifiers.name(
        config.label_fraction, config.finetune_layer, config.finetune_seed
    )
    folder = workdir / classifiers.FOLDER / name
    if classifiers.is_finished(folder, "finetune", settings):
        return folder
    counts = np.unique(split.labels[rows], return_counts=True)[1]
    print(
        f"Fine-tuning from {settings['from']} on {len(rows)} labelled images, "
        f"{counts.min()} to {counts.max()} of each of {len(counts)} classes: "
        f"{settings['epochs']} epochs at batch {settings['batch_size']}, learning rate "
        f"{settings['learning_rate']:g} * sqrt(batch).",
        flush=True,
    )
    _train(config, dataset, pretrained, rows, folder, settings)
    if not workers.is_chief():
        return folder
    classifiers.finish(folder, "finetune", settings, dataset)
    return folder


def _train(config, dataset, pretrained, rows, folder, settings) -> None:
    """Trains to the last epoch, from the newest checkpoint if there is one.

    Args:
        config: Resolved, also for fine-tuning.
        dataset: The data.
        pretrained: The pretrained model.
        rows: Rows of the train split whose labels are used.
        folder: Folder of the result.
        settings: The entry "finetune" of result.json.
    """
    steps = batches.steps_per_epoch(len(rows), settings["batch_size"])
    schedule = schedules.Schedule(
        schedules.scaled_learning_rate(
            settings["learning_rate"], settings["batch_size"], "sqrt"
        ),
        total_steps=settings["epochs"] * steps,
        decay="cosine",
    )
    with strategies.scope(strategies.make(config.strategy)):
        model = classifiers.network(config, settings["from"], dataset.num_classes)
        model.seed = settings["seed"]
        model.encoder.set_weights(pretrained.encoder.get_weights())
        model.head.take_hidden_layers(pretrained.head)
        last = model.head.last
        last.kernel.assign(tf.zeros_like(last.kernel))
        optimizer = lars.LARS(schedule, momentum=0.9, l2=0.0)
        optimizer.leave_plain([last.kernel])
    passes = _epochs_per_checkpoint(settings["epochs"], steps)
    split = dataset.train
    all_rows = len(rows) == len(split.images)
    folder.mkdir(parents=True, exist_ok=True)
    fit.fit(
        model,
        optimizer,
        schedule,
        # Without a copy: all images may not fit into memory.
        split.images if all_rows else split.images[rows],
        folder,
        labels=split.labels[rows],
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        epochs=settings["epochs"] // passes,
        passes=passes,
        z_is_logits=True,
        **build.fit_options(config),
        meta=classifiers.description(
            config, settings["from"], dataset.class_names, finetune=settings
        ),
        remedy=REMEDY,
    )


def _epochs_per_checkpoint(epochs: int, steps: int, min_steps: int = 50) -> int:
    """Returns how many epochs of the data are one epoch of the training loop.

    The loop records and saves a checkpoint after each of its epochs, which would take
    longer than the training itself with few labelled images.

    Args:
        epochs: Epochs of the fine-tuning.
        steps: Steps of an epoch.
        min_steps: Smallest number of steps between checkpoints.

    Returns:
        The smallest divisor of `epochs` with at least `min_steps` steps, or `epochs`.
    """
    divisors = [k for k in range(1, epochs + 1) if epochs % k == 0]
    return next((k for k in divisors if k * steps >= min_steps), epochs)
