"""Fine-tuning of a pretrained network on a share of the labels."""

import pathlib

import numpy as np
import tensorflow as tf

from tfsimclr import resolve
from tfsimclr.data import batches, sampling
from tfsimclr.data import dataset as datasets
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

    The encoder, the head up to `--finetune_layer` and a new classifier on that layer are
    trained together; the whole test set is scored after the last epoch. The folder is
    `finetuned/labels-<share>-<layer>-seed<seed>`, so others stay beside it. A finished
    one is left as it is, one that was stopped goes on.

    Args:
        config: Resolved.
        dataset: The data.
        workdir: The run folder.

    Raises:
        UserError: If there is no checkpoint or no label, or the folder holds a
            fine-tuning of other settings.
        FloatingPointError: If the numbers stop being finite.
        KeyboardInterrupt: After SIGINT or SIGTERM; the state is saved by then.

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
    about = {
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
    if classifiers.is_finished(folder, "finetune", about):
        return folder
    counts = np.unique(split.labels[rows], return_counts=True)[1]
    print(
        f"Fine-tuning from {about['from']} on {len(rows)} labelled images, "
        f"{counts.min()} to {counts.max()} of each of {len(counts)} classes: "
        f"{about['epochs']} epochs at batch {about['batch_size']}, learning rate "
        f"{about['learning_rate']:g} * sqrt(batch).",
        flush=True,
    )
    _train(config, dataset, pretrained, rows, folder, about)
    classifiers.finish(folder, "finetune", about, dataset)
    return folder


def _train(config, dataset, pretrained, rows, folder, about) -> None:
    """Trains to the last epoch, from the pretrained network or where it was stopped."""
    model = classifiers.network(config, about["from"], dataset.num_classes)
    model.seed = about["seed"]
    model.encoder.set_weights(pretrained.encoder.get_weights())
    model.head.take_hidden_layers(pretrained.head)
    classifying = model.head.last
    classifying.kernel.assign(tf.zeros_like(classifying.kernel))
    steps = batches.steps_per_epoch(len(rows), about["batch_size"])
    schedule = schedules.Schedule(
        schedules.scaled_learning_rate(
            about["learning_rate"], about["batch_size"], "sqrt"
        ),
        total_steps=about["epochs"] * steps,
        decay="cosine",
    )
    optimizer = lars.LARS(schedule, momentum=0.9, l2=0.0)
    optimizer.leave_plain([classifying.kernel])
    passes = _passes(about["epochs"], steps)
    split = dataset.train
    whole = len(rows) == len(split.images)
    folder.mkdir(parents=True, exist_ok=True)
    fit.fit(
        config,
        model,
        optimizer,
        schedule,
        # All of them may be more than fits into memory.
        split.images if whole else split.images[rows],
        folder,
        labels=split.labels[rows],
        batch_size=about["batch_size"],
        seed=about["seed"],
        epochs=about["epochs"] // passes,
        passes=passes,
        meta=classifiers.description(
            config, about["from"], dataset.class_names, finetune=about
        ),
        remedy=REMEDY,
    )


def _passes(epochs: int, steps: int, least_steps: int = 50) -> int:
    """Returns the fewest epochs, a divisor of all, that are worth a checkpoint."""
    divisors = [k for k in range(1, epochs + 1) if epochs % k == 0]
    return next((k for k in divisors if k * steps >= least_steps), epochs)
