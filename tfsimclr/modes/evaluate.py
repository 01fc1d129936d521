"""Evaluation of a run: what a linear classifier and neighbours make of each feature."""

import hashlib
import pathlib
import sys
import time

import numpy as np

from tfsimclr import __version__, files
from tfsimclr.data import dataset as datasets
from tfsimclr.data import sampling, store
from tfsimclr.errors import UserError
from tfsimclr.evaluation import knn, linear, metrics, projector
from tfsimclr.networks.names import feature_names
from tfsimclr.runs import loading, results
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints
from tfsimclr.views import random_view

PARTS = ("train", "test")
PIXEL_SIZE = 32


def evaluate(config: Config, dataset: datasets.DataSet, workdir: pathlib.Path) -> dict:
    """Scores every feature of a run; writes and returns result.json.

    Also keeps the reported feature's classifier for the export, and writes
    TensorBoard's projector. A data set without labels gets a result without scores.

    Args:
        config: Resolved.
        dataset: The data; the whole labelled test split is scored.
        workdir: The run folder; features are cached in it.

    Raises:
        UserError: If there is no checkpoint, or no labels and only evaluation was
            asked for.
    """
    model, meta = loading.model(config, workdir)
    if len(meta["rows"]) < config.epochs:
        print(f"Note: {len(meta['rows'])} of {config.epochs} epochs are done.")
    scores = {}
    if dataset.has_labels:
        scores = evaluate_features(config, dataset, model, workdir)
    elif config.mode == "evaluate":
        raise UserError(
            f"The data set {config.dataset} has no labelled train and test images of "
            "two classes or more, so there is nothing to evaluate. The encoder can be "
            "exported: --mode=export."
        )
    else:
        print("No labels, so no classifier: result.json will hold no scores.")
    content = results.content(config, meta, scores)
    results.write(workdir / "result.json", content)
    return content


def evaluate_features(
    config: Config, dataset: datasets.DataSet, model, workdir
) -> dict:
    """Returns `{"pixels": {"top1", "top5", "knn", "dim", ...}, "random_h": ...}`."""
    rows = sampling.labelled_rows(dataset.train, config.num_train_images)
    train = datasets.Split(dataset.train.images[rows], dataset.train.labels[rows])
    rows = sampling.labelled_rows(dataset.test)
    test = datasets.Split(dataset.test.images[rows], dataset.test.labels[rows])
    before = checkpoints.hash_weights(model)
    features = all_features(config, model, train, test, workdir)
    if checkpoints.hash_weights(model) != before:
        raise RuntimeError(
            "Extracting features changed the encoder: this is a bug in tfsimclr."
        )
    scores = {}
    for name, (of_train, of_test) in features.items():
        scores[name], classifier = evaluate_feature(
            config, dataset.num_classes, of_train, train, of_test, test
        )
        if name == config.feature:
            loading.save_classifier(workdir, model, name, classifier)
        print(
            f"  {name:9} top-1 {scores[name]['top1']:6.2%}   top-5 "
            f"{scores[name]['top5']:6.2%}   kNN {scores[name]['knn']:6.2%}",
            flush=True,
        )
    projector.write(
        workdir / "tensorboard", features["h"][1], test, dataset.class_names
    )
    return scores


def evaluate_feature(config: Config, num_classes, of_train, train, of_test, test):
    """Returns the scores of one feature on the whole test set, and its classifier."""
    training: dict = {
        "epochs": config.probe_epochs,
        "batch_size": config.probe_batch_size,
        "optimizer": config.probe_optimizer,
        "seed": config.seed,
    }
    known = (of_train, train.labels, num_classes)
    rate = config.probe_learning_rate or linear.select_learning_rate(*known, **training)
    classifier = linear.linear_classifier(*known, learning_rate=rate, **training)
    logits = linear.predict(classifier, of_test)
    k = knn.default_k(len(of_train), num_classes)
    votes = knn.knn_votes(of_train, train.labels, of_test, num_classes, k)
    return {
        "top1": metrics.top_k_accuracy(logits, test.labels, 1),
        "top5": metrics.top_k_accuracy(logits, test.labels, min(5, num_classes)),
        "knn": metrics.top_k_accuracy(votes, test.labels, 1),
        "dim": int(of_train.shape[1]),
        "learning_rate": rate,
        "neighbours": k,
    }, classifier


def all_features(config: Config, model, train, test, workdir) -> dict:
    """Returns {name: (train, test)} in the order of the report, cached."""
    key = hashlib.sha256(
        f"{checkpoints.hash_weights(model)} {__version__} {config.image_size} "
        f"{files.sha256(train.images)} {files.sha256(test.images)}".encode()
    ).hexdigest()
    names = ("pixels", "random_h", *feature_names(config.proj_layers))
    folder = workdir / "features"
    kept = load_feature_cache(folder, key, names)
    if kept is not None:
        return kept
    start = time.monotonic()
    untrained = loading.untrained(config)
    parts = []
    for split in (train, test):
        features = model.features(split.images)
        features["pixels"] = pixels(split.images, config.image_size)
        features["random_h"] = untrained.features(split.images)["h"]
        parts.append(features)
    made = {name: tuple(part[name] for part in parts) for name in names}
    save_feature_cache(folder, key, made)
    count = len(train.images) + len(test.images)
    print(f"Features of {count} images: {time.monotonic() - start:.0f} s.", flush=True)
    return made


def pixels(images, image_size: int) -> np.ndarray:
    """Returns the images themselves, at most 32 pixels a side, as rows in 0-1."""
    size = min(image_size, PIXEL_SIZE)
    blocks = [
        random_view.plain_view(images[i : i + 1024], size).numpy()
        for i in range(0, len(images), 1024)
    ]
    return np.concatenate(blocks).reshape(len(images), -1)


def save_feature_cache(folder: pathlib.Path, key: str, features: dict) -> None:
    """Writes features, and last of all key.txt: their key and checksums."""
    folder.mkdir(exist_ok=True)
    (folder / "key.txt").unlink(missing_ok=True)
    lines = [key]
    for name, pair in features.items():
        for array, part in zip(pair, PARTS, strict=True):
            path = folder / f"{name}-{part}.npy"
            with files.disk_errors(path):
                np.save(path, array)
            lines.append(f"{_checksum(path)} {path.name}")
    files.write_atomically(folder / "key.txt", "\n".join(lines).encode())


def load_feature_cache(folder: pathlib.Path, key: str, names) -> dict | None:
    """Returns the features of `_keep`, or None if they are others or damaged.

    Damaged ones are named on stderr.
    """
    try:
        first, *lines = (folder / "key.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return None
    if first != key:
        return None
    for name in (f"{name}-{part}.npy" for name in names for part in PARTS):
        try:
            whole = f"{_checksum(folder / name)} {name}" in lines
        except OSError:
            whole = False
        if not whole:
            print(
                f"The features {folder / name} are damaged (their checksum differs); "
                "all are made again.",
                file=sys.stderr,
            )
            return None
    return {
        name: tuple(np.load(folder / f"{name}-{part}.npy") for part in PARTS)
        for name in names
    }


def _checksum(path: pathlib.Path) -> str:
    return files.sha256("".join(store.checksums(path)).encode())
