"""Distillation of a fine-tuned network into a student, on images without labels."""

import functools
import pathlib

from tfsimclr import build
from tfsimclr.data import dataset as datasets
from tfsimclr.distribution import strategies, workers
from tfsimclr.errors import UserError
from tfsimclr.methods import classifier
from tfsimclr.runs import classifiers
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints, fit


def distill(
    config: Config, dataset: datasets.DataSet, workdir: pathlib.Path
) -> pathlib.Path:
    """Trains a student network on the logits of a teacher; returns its run folder.

    The student is an untrained encoder with a classifier on h. Epochs, batch size,
    optimizer, schedule and temperature are those of the pretraining flags, as in the
    paper. The views are random crops with flips, and no label is used. A finished
    student is not trained again, an interrupted one is resumed.

    Args:
        config: Resolved, with `teacher_dir`.
        dataset: The student is trained on its `pretrain` images and scored on its test
            labels, if there are any.
        workdir: The run folder of the student.

    Raises:
        UserError: If there is no such teacher, it does not fit the data, or the folder
            holds another network.
        FloatingPointError: If the loss or the weights are not finite.
        KeyboardInterrupt: On SIGINT or SIGTERM, after the state is saved.

    Source: Chen et al. 2020 (arXiv:2006.10029), sections 2 and 3.1.
    """
    folder = classifiers.teacher_folder(config)
    strategy = strategies.make(config.strategy)
    with strategies.scope(strategy):
        teacher, meta = classifiers.load(folder, config.precision)
    _check_fit(config, dataset, folder, meta)
    training = meta.get("distill") or meta["finetune"]
    names = ("backbone", "width", "selective_kernel")
    settings = {
        "teacher": checkpoints.hash_weights(teacher),
        "encoder_of_teacher": {name: meta["settings"][name] for name in names},
        "labels": training["labels"],
        "from": training["from"],
        "seed": training["seed"],
        "generation": training.get("generation", 0) + 1,
        "temperature": config.temperature,
    }
    if classifiers.is_finished(workdir, "distill", settings, config.epochs):
        return workdir
    images, validation = build.pretraining_images(config, dataset)
    student = functools.partial(
        classifier.Student,
        seed=config.seed,
        # A function, since Keras would train and save a model that is an attribute.
        teacher=lambda view: teacher(view, training=False)[-1],
        temperature=config.temperature,
    )
    schedule = build.schedule(config, len(images) // config.batch_size)
    with strategies.scope(strategy):
        model = classifiers.network(config, "h", len(meta["class_names"]), student)
        optimizer = build.optimizer(config, schedule, model.learned_variables)
    print(f"Distilling {folder}.", flush=True)
    fit.fit(
        model,
        optimizer,
        schedule,
        images,
        workdir,
        validation=validation,
        batch_size=config.batch_size,
        seed=config.seed,
        epochs=config.epochs,
        z_is_logits=True,
        **build.fit_options(config),
        meta=classifiers.description(
            config, "h", meta["class_names"], distill=settings
        ),
    )
    if not workers.is_chief():
        return workdir
    classifiers.finish(workdir, "distill", settings, dataset)
    return workdir


def _check_fit(config: Config, dataset: datasets.DataSet, folder, meta: dict) -> None:
    """Raises UserError if the teacher has another image size or other classes."""
    teacher = classifiers.settings(meta)
    if teacher.image_size != config.image_size:
        raise UserError(
            f"The teacher {folder} has views of {teacher.image_size} pixels, this "
            f"run {config.image_size}. Use --image_size={teacher.image_size}."
        )
    names = list(dataset.class_names)
    if dataset.has_labels and names != meta["class_names"]:
        raise UserError(
            f"The teacher {folder} knows the classes {meta['class_names']}, the data "
            f"set {config.dataset} has {names}. Use the data set of the teacher."
        )
