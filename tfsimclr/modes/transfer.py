"""Scores of a run's encoder on other labelled data (`--eval_dataset`)."""

import os
import pathlib
import re

from tfsimclr import files
from tfsimclr.data import dataset as datasets
from tfsimclr.data import depth
from tfsimclr.errors import UserError
from tfsimclr.modes import evaluate as evaluation
from tfsimclr.runs import features as run_features
from tfsimclr.runs import initial, loading, results
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints

FOLDER = "evaluations"


def evaluate(config: Config, workdir: pathlib.Path) -> dict:
    """Scores every feature of a run on `--eval_dataset`; writes it to result.json.

    The entry is `evaluations` and in it the name of the data; the run's own scores, its
    classifier and its other files stay. The confusion matrix is
    `evaluations/<name>/confusion.csv`. The images are resized to the run's views.

    Args:
        config: Resolved.
        workdir: The run folder.

    Returns:
        The entry: the data, the epochs and the weights' checksum of the encoder, and
        the scores, as at the top of result.json.

    Raises:
        UserError: If there is no checkpoint, or the data have no labels.
    """
    model, meta = loading.model(config, workdir)
    dataset = datasets.load(
        config.other_dataset,
        data_dir=config.eval_data_dir,
        image_size=config.image_size,
        cache_dir=config.cache_dir,
        label_key=config.eval_label_key,
        ranges=value_ranges(config, workdir),
    )
    if not dataset.has_labels:
        raise UserError(
            f"--eval_dataset={config.other_dataset} has no labelled train and test "
            "images of two classes or more, so the encoder cannot be scored on it."
        )
    train, test = evaluation.labelled_splits(config, dataset)
    name = data_name(config)
    print(
        f"Scores on {name}: {len(train.images)} training and {len(test.images)} test "
        f"images of {dataset.num_classes} classes.",
        flush=True,
    )
    weights = initial.load(config, workdir)
    parts = run_features.extract(
        config, model, train.images, test.images, weights=weights
    )
    features = {name: tuple(part[name] for part in parts) for name in parts[0]}
    scored = evaluation.score(config, dataset.num_classes, features, train, test)
    folder = workdir / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    results.write_confusion(
        folder / "confusion.csv", scored.confusion, dataset.class_names
    )
    entry = {
        "dataset": config.other_dataset,
        "data_dir": config.eval_data_dir,
        "epochs": len(meta["rows"]),
        "weights": checkpoints.hash_weights(model),
        **evaluation.describe_data(dataset),
        "features": scored.scores,
        "differences": scored.differences,
        "feature": config.feature,
        "top1": scored.scores[config.feature]["top1"],
    }
    path = workdir / "result.json"
    # Of a run that was only pretrained so far there is none.
    result = results.read(path) or results.content(config, meta, {})
    others = evaluation.other_evaluations(workdir, model)
    results.write(path, {**result, "evaluations": {**others, name: entry}})
    return entry


def value_ranges(config: Config, workdir: pathlib.Path) -> dict[str, list[float]]:
    """Returns the range of images of more than 8 bits that the run learned from.

    It comes from the run's result.json, or else from `--max_value`; empty if the run
    had no such images, or is not scored yet.
    """
    try:
        wide = results.read(workdir / "result.json")["data"]["wide"]
        return {kind: entry["range"] for kind, entry in wide.items()}
    except (KeyError, TypeError, AttributeError):
        if config.max_value is None:
            return {}
        return {kind: [0, config.max_value] for kind in (depth.INTEGER, depth.FLOAT)}


def data_name(config: Config) -> str:
    """Returns a short name for the data: that of the data set, or of its folder."""
    if config.other_dataset != "folder":
        return re.sub(r"\W+", "_", config.other_dataset)
    path = os.path.realpath(config.eval_data_dir)
    readable = re.sub(r"\W+", "_", os.path.basename(path), flags=re.ASCII)
    return f"{readable}-{files.sha256(os.fsencode(path))[:8]}"
