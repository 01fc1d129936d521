"""Distillation of a fine-tuned network into a student, on images without labels."""

import functools
import pathlib

from tfsimclr import build
from tfsimclr.data import dataset as datasets
from tfsimclr.data import sampling
from tfsimclr.errors import UserError
from tfsimclr.methods import classifier
from tfsimclr.runs import classifiers
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints, fit


def distill(
    config: Config, dataset: datasets.DataSet, workdir: pathlib.Path
) -> pathlib.Path:
    """Trains the student that the settings describe; returns its run folder.

    It starts untrained and ends in a classifier on h. Epochs, batch, optimizer and
    schedule are those of the flags of the pretraining, as in the paper, and so is the
    temperature. The views are random crops, mirrored; no label is used. A finished
    student is left as it is, one that was stopped goes on.

    Args:
        config: Resolved; `teacher` is given.
        dataset: Whose `pretrain` images are used; its test labels, if any, score.
        workdir: The run folder of the student.

    Raises:
        UserError: If there is no such teacher, it does not fit the data, or the folder
            holds another network.
        FloatingPointError: If the numbers stop being finite.
        KeyboardInterrupt: After SIGINT or SIGTERM; the state is saved by then.

    Source: Chen et al. 2020 (arXiv:2006.10029), sections 2 and 3.1.
    """
    folder = classifiers.teacher_folder(config)
    taught, meta = classifiers.load(folder, config.precision)
    _check_fit(config, dataset, folder, meta)
    before = meta.get("distill") or meta["finetune"]
    names = ("backbone", "width", "selective_kernel")
    about = {
        "teacher": checkpoints.hash_weights(taught),
        "encoder_of_teacher": {name: meta["settings"][name] for name in names},
        "labels": before["labels"],
        "from": before["from"],
        "seed": before["seed"],
        "generation": before.get("generation", 0) + 1,
        "temperature": config.temperature,
    }
    if classifiers.is_finished(workdir, "distill", about):
        return workdir
    images = sampling.random_subset(dataset.pretrain.images, config.num_pretrain_images)
    student = functools.partial(
        classifier.Student,
        seed=config.seed,
        # A function: a model as an attribute would be trained and saved with this one.
        teacher=lambda view: taught(view, training=False)[-1],
        temperature=config.temperature,
    )
    model = classifiers.network(config, "h", len(meta["class_names"]), student)
    schedule = build.schedule(config, len(images) // config.batch_size)
    print(f"Distilling {folder}.", flush=True)
    fit.fit(
        config,
        model,
        build.optimizer(config, schedule, model.learned_variables),
        schedule,
        images,
        workdir,
        batch_size=config.batch_size,
        seed=config.seed,
        epochs=config.epochs,
        meta=classifiers.description(config, "h", meta["class_names"], distill=about),
    )
    classifiers.finish(workdir, "distill", about, dataset)
    return workdir


def _check_fit(config: Config, dataset: datasets.DataSet, folder, meta: dict) -> None:
    of_teacher = classifiers.settings(meta)
    if of_teacher.image_size != config.image_size:
        raise UserError(
            f"the teacher {folder} has views of {of_teacher.image_size} pixels, this "
            f"run {config.image_size}. Use --image_size={of_teacher.image_size}."
        )
    names = list(dataset.class_names)
    if dataset.has_labels and names != meta["class_names"]:
        raise UserError(
            f"the teacher {folder} knows the classes {meta['class_names']}, the data "
            f"set {config.dataset} has {names}. Use the data set of the teacher."
        )
