"""Fine-tuned and distilled networks: building, saving, scoring and finding them."""

import dataclasses
import json
import pathlib
import shutil

from tfsimclr import build
from tfsimclr.data import dataset as datasets
from tfsimclr.data import sampling, summary
from tfsimclr.errors import UserError
from tfsimclr.evaluation import metrics
from tfsimclr.methods import classifier
from tfsimclr.networks import heads
from tfsimclr.networks.names import feature_names
from tfsimclr.runs import results
from tfsimclr.settings import config as configs
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints
from tfsimclr.views import random_view

FOLDER = "finetuned"


def name(labels: float, layer: str, seed: int) -> str:
    """Returns the name of the folder of a fine-tuning."""
    return f"labels-{labels:g}-{layer}-seed{seed}"


def network(
    config: Config, layer: str, num_classes: int, model_class=classifier.Classifier
):
    """Returns an untrained network that ends in a classifier on a layer of the head.

    Args:
        config: Resolved settings; precision and seed are used too.
        layer: Layer of the head that the classifier is on, one of `feature_names`
            other than z.
        num_classes: Number of classes.
        model_class: `Classifier` or `Student`, or a function of the same arguments.
    """
    build.start(config)
    encoder = build.encoder(config)
    head = heads.ProjectionHead(
        num_layers=feature_names(config.proj_layers).index(layer) + 1,
        dim=num_classes,
        hidden_dim=config.proj_hidden or None,
        activation=config.proj_activation,
        batch_norm=False if config.proj_batch_norm == "false" else "hidden",
        bias=True,
        norm=config.norm,
    )
    views = random_view.Views(
        image_size=config.image_size,
        crop_min_area=config.crop_min_area,
        jitter_strength=0.0,
        flip=config.flip,
        grayscale=0.0,
    )
    return model_class(encoder, head, views, sync_batch_norm=config.sync_batch_norm)


def description(config: Config, layer: str, class_names, **about) -> dict:
    """Returns the meta that `load` and `is_finished` read from a checkpoint."""
    return {
        "config": config.pretraining(),
        "settings": dataclasses.asdict(config),
        "layer": layer,
        "class_names": list(class_names),
        **about,
    }


def is_finished(folder: pathlib.Path, part: str, about: dict, epochs: int = 0) -> bool:
    """Returns whether a folder holds a network that is trained and scored.

    Args:
        folder: Need not exist.
        part: "finetune" or "distill".
        about: Settings of the network, as JSON values.
        epochs: Epochs of the training loop, if they may have become more.

    Raises:
        UserError: If the folder holds a network of other settings.
    """
    checkpoint = checkpoints.load_latest(folder / "checkpoints")
    if checkpoint is None:
        return False
    before = checkpoint[1].get(part, {})
    differences = [
        f"{key} {before.get(key)} there, {about[key]} here"
        for key in about
        if before.get(key) != about[key]
    ]
    if differences:
        raise UserError(
            f"{folder} holds another network: {'; '.join(differences)}. Give the same "
            "flags, or remove that folder to train it again."
        )
    result = _result(folder)
    if part not in result or len(checkpoint[1]["rows"]) < epochs:
        return False
    print(f"Finished before: {folder}, top-1 {_percent(result['top1'])}.")
    return True


def finish(
    folder: pathlib.Path, part: str, about: dict, dataset: datasets.DataSet
) -> dict:
    """Scores a trained network on the whole test set; writes and returns result.json.

    The scores are None if the data set has no labels or other classes.

    Args:
        folder: Folder of the network.
        part: "finetune" or "distill", the key of `about` in the result.
        about: Settings of the network, as JSON values.
        dataset: The data, whose test images are scored.
    """
    model, meta = load(folder)
    scores = dict.fromkeys(("top1", "top5", "mean_class_accuracy", "majority_share"))
    if dataset.has_labels and list(dataset.class_names) == meta["class_names"]:
        rows = sampling.labelled_rows(dataset.test)
        labels = dataset.test.labels[rows]
        logits = [*model.features(dataset.test.images[rows]).values()][-1]
        scores["top1"] = metrics.top_k_accuracy(logits, labels, 1)
        if dataset.num_classes > 5:
            scores["top5"] = metrics.top_k_accuracy(logits, labels, 5)
        scores["mean_class_accuracy"] = metrics.mean_class_accuracy(logits, labels)
        scores["majority_share"] = metrics.majority_share(labels)
        matrix = metrics.confusion_matrix(logits, labels)
        results.write_confusion(folder / "confusion.csv", matrix, dataset.class_names)
    encoder_parameters = model.encoder.count_params()
    about = {**about, "encoder_parameters": encoder_parameters, **scores}
    config = settings(meta)
    result = results.content(config, meta, {})
    result["training"] = result.pop("pretrain")
    del result["features"], result["feature"]
    result = {
        **result,
        part: about,
        "class_names": summary.as_text(list(meta["class_names"])),
        "top1": scores["top1"],
    }
    # An older export, if the network was trained again after a damaged checkpoint.
    shutil.rmtree(folder / "saved_model", ignore_errors=True)
    results.write(folder / "result.json", result)
    print(f"{folder}: {_score_text(scores)}.", flush=True)
    return result


def _score_text(scores: dict) -> str:
    text = f"top-1 {_percent(scores['top1'])}"
    if scores["top5"] is not None:
        text += f", top-5 {_percent(scores['top5'])}"
    if scores["top1"] is not None:
        text += f", mean per class {_percent(scores['mean_class_accuracy'])}"
        text += f" (largest class {_percent(scores['majority_share'])} of the images)"
    return text


def settings(meta: dict, **changes) -> Config:
    """Returns the settings with which the network of a checkpoint was trained."""
    return configs.from_saved(meta["settings"], **changes)


def load(folder: pathlib.Path, precision: str = "float32"):
    """Returns the network of a folder and the meta of its checkpoint.

    Called on images in 0-1 it returns one output for each of `layers`, then the logits.

    Raises:
        UserError: If the folder has no undamaged checkpoint.
    """
    checkpoint = checkpoints.load_latest(folder / "checkpoints")
    if checkpoint is None:
        raise UserError(
            f"{folder} has no checkpoint of a network with a classifier. Train it "
            "again with the same command."
        )
    arrays, meta = checkpoint
    config = settings(meta, precision=precision)
    model = network(config, meta["layer"], len(meta["class_names"]))
    checkpoints.restore(model, arrays)
    return model, meta


def layers(meta: dict) -> tuple[str, ...]:
    """Returns the names of the outputs of a network before its logits."""
    names = feature_names(settings(meta).proj_layers)
    return names[: names.index(meta["layer"]) + 1]


def teacher_folder(config: Config) -> pathlib.Path:
    """Returns the folder of the teacher's network.

    If `--teacher_dir` is the run folder of a student, it is that folder. Otherwise it
    is the fine-tuning in it that `--label_fraction`, `--finetune_seed` and, if given,
    `--finetune_layer` select.

    Raises:
        UserError: If no network or more than one is selected.
    """
    run = pathlib.Path(config.teacher_dir)
    if "distill" in _result(run):
        return run
    networks = sorted(path for path in run.glob(f"{FOLDER}/*") if _result(path))
    if not networks:
        raise UserError(
            f"--teacher_dir={run} has no fine-tuned network. Train one: "
            f"--mode=finetune --flagfile={run}/flags.txt "
            f"--label_fraction={config.label_fraction:g}."
        )
    pattern = name(
        config.label_fraction, config.finetune_layer or "*", config.finetune_seed
    )
    selected = [path for path in networks if path.match(pattern)]
    if len(selected) != 1:
        raise UserError(
            f"--teacher_dir={run} has {len(selected) or 'no'} fine-tuned networks "
            f"{pattern}, expected one. Choose by --label_fraction, --finetune_layer "
            f"and --finetune_seed among: {', '.join(path.name for path in networks)}."
        )
    return selected[0]


def _result(folder: pathlib.Path) -> dict:
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _percent(share: float | None) -> str:
    return "unknown (no labels)" if share is None else f"{share:.2%}"
