"""Fine-tuning of a pretrained network on a share of the labels."""

import pathlib

import numpy as np
import tensorflow as tf

from tfsimclr import (
    checkpoints,
    data,
    fitting,
    lars,
    schedules,
    store,
    trained,
    tuned,
)
from tfsimclr.config import Config

# SimCLRv2's epochs are some thousand steps on ImageNet; on a hundred images they would
# be thirty, after which nothing has moved.
LEAST_STEPS = 500
REMEDY = (
    "Try a lower --finetune_learning_rate or --precision=float32, after removing the "
    "folder of this fine-tuning."
)


def finetune(
    config: Config, dataset: data.DataSet, workdir: pathlib.Path
) -> pathlib.Path:
    """Fine-tunes the pretrained network of a run; returns the folder of the result.

    The encoder, the head up to `--finetune_from` and a new classifier on that layer are
    trained together; the whole test set is scored after the last epoch. The folder is
    `finetuned/labels-<share>-<layer>-seed<seed>`, so others stay beside it. A finished
    one is left as it is, one that was stopped goes on.

    Args:
        config: Resolved.
        dataset: The data.
        workdir: The run folder.

    Raises:
        ValueError: If there is no checkpoint or no label, or the folder holds a
            fine-tuning of other settings.
        FloatingPointError: If the numbers stop being finite.
        KeyboardInterrupt: After SIGINT or SIGTERM; the state is saved by then.

    Source: Chen et al. 2020 (arXiv:2006.10029), sections 2 and 3.1.
    """
    if not dataset.has_labels:
        raise ValueError(
            f"--mode=finetune needs labels, and the data set {config.dataset} has no "
            "labelled train and test images of two classes or more."
        )
    pretrained, meta = trained.model(config, workdir)
    if len(meta["rows"]) < config.epochs:
        print(f"Note: {len(meta['rows'])} of {config.epochs} epochs are done.")
    split = dataset.train
    rows = data.labelled(split, config.num_train_images)
    rows = rows[subset(split.labels[rows], config.labels, config.finetune_seed)]
    config = resolved(config, len(rows))
    about = {
        "labels": config.labels,
        "images": len(rows),
        "from": config.finetune_from,
        "seed": config.finetune_seed,
        "epochs": config.finetune_epochs,
        "batch_size": min(config.finetune_batch_size, len(rows)),
        "learning_rate": config.finetune_learning_rate,
        "pretrained": checkpoints.fingerprint(pretrained),
    }
    name = tuned.name(config.labels, config.finetune_from, config.finetune_seed)
    folder = workdir / tuned.FOLDER / name
    if tuned.is_finished(folder, "finetune", about):
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
    tuned.finish(folder, "finetune", about, dataset)
    return folder


def subset(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns the rows that keep their label: the same share of every class.

    At least one of every class, and all of it if the share is 1. With the same seed a
    larger share holds a smaller one.

    Args:
        labels: `[n]` integers.
        share: Above 0, at most 1.
        seed: Integer.
    """
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = np.random.default_rng((seed, int(label))).permutation(rows)
        chosen.append(order[: max(1, round(share * len(rows)))])
    return np.sort(np.concatenate(chosen))


def resolved(config: Config, num_images: int) -> Config:
    """Returns the config with SimCLRv2's settings for those left open.

    Args:
        config: Resolved but for the fine-tuning.
        num_images: Images with a label.
    """
    batch_size = min(config.finetune_batch_size, num_images)
    steps = store.steps_per_epoch(num_images, batch_size)
    epochs = 60 if config.labels < 0.1 else 30
    wide = config.width > 1 or config.selective_kernel
    on_h = config.labels == 1 or config.proj_layers == 1
    return config.replace_none(
        finetune_from="h" if on_h else "head_1",
        finetune_epochs=max(epochs, -(-LEAST_STEPS // steps)),
        finetune_learning_rate=0.002 if wide else 0.005,
    )


def _train(config, dataset, pretrained, rows, folder, about) -> None:
    """Trains to the last epoch, from the pretrained network or where it was stopped."""
    model = tuned.network(config, about["from"], dataset.num_classes)
    model.seed = about["seed"]
    model.encoder.set_weights(pretrained.encoder.get_weights())
    model.head.take_hidden_layers(pretrained.head)
    classifying = model.head.last
    classifying.kernel.assign(tf.zeros_like(classifying.kernel))
    steps = store.steps_per_epoch(len(rows), about["batch_size"])
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
    fitting.fit(
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
        meta=tuned.description(
            config, about["from"], dataset.class_names, finetune=about
        ),
        remedy=REMEDY,
    )


def _passes(epochs: int, steps: int, least_steps: int = 50) -> int:
    """Returns the fewest epochs, a divisor of all, that are worth a checkpoint."""
    divisors = [k for k in range(1, epochs + 1) if epochs % k == 0]
    return next((k for k in divisors if k * steps >= least_steps), epochs)
