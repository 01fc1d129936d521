"""Evaluation of a run: a linear classifier and k-NN on every frozen feature."""

import concurrent.futures
import dataclasses
import itertools
import pathlib
import sys
import time
from typing import Any, NamedTuple

import numpy as np

from tfsimclr import __version__, files
from tfsimclr.data import dataset as datasets
from tfsimclr.data import sampling, summary
from tfsimclr.errors import UserError
from tfsimclr.evaluation import intervals, knn, linear, metrics, projector
from tfsimclr.modes import label_free
from tfsimclr.networks.initial_weights import InitialWeights
from tfsimclr.networks.names import feature_names
from tfsimclr.runs import features as run_features
from tfsimclr.runs import initial, loading, results
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints

PARTS = ("train", "test")
FEATURES_AT_ONCE = 2  # each holds a copy of its features and k-NN similarities


def evaluate(config: Config, dataset: datasets.DataSet, workdir: pathlib.Path) -> dict:
    """Scores every feature of a run; writes and returns result.json.

    With labels it also writes confusion.csv, the classifier of the reported feature
    (for the export) and the files of TensorBoard's projector. Without labels
    result.json has no scores.

    Args:
        config: Resolved.
        dataset: The data; the whole labelled test split is scored.
        workdir: The run folder; features are cached in it.

    Raises:
        UserError: If there is no checkpoint, or no labels and the mode is `evaluate`.
    """
    model, meta = loading.model(config, workdir)
    weights = initial.load(config, workdir)
    if len(meta["rows"]) < config.epochs:
        print(f"Note: {len(meta['rows'])} of {config.epochs} epochs are done.")
    scores: dict = {}
    differences: list[dict] = []
    if dataset.has_labels:
        scores, differences = evaluate_features(
            config, dataset, model, workdir, weights
        )
    without_labels = label_free.evaluate(config, dataset, model, weights)
    if not dataset.has_labels and without_labels is None:
        if config.mode == "evaluate":
            raise UserError(
                f"The data set {config.dataset} has no labelled train and test images "
                "of two classes or more, and this run held out no images, so there is "
                "nothing to evaluate. The encoder can be exported: --mode=export."
            )
        print("No labels and no held-out images: result.json will hold no scores.")
    content = {
        **results.content(config, meta, scores),
        "differences": differences,
        **describe_data(dataset),
        "label_free": without_labels,
        "evaluations": other_evaluations(workdir, model),
    }
    if weights is not None:
        content["init"] = {
            "source": config.init,
            "checksum": weights.checksum,
            **dataclasses.asdict(weights.report(model.encoder)),
        }
    results.write(workdir / "result.json", content)
    return content


def other_evaluations(workdir: pathlib.Path, model) -> dict:
    """Returns the scores on other data in result.json that are of this very model."""
    weights = checkpoints.hash_weights(model)
    others = results.read(workdir / "result.json").get("evaluations", {})
    return {
        name: other for name, other in others.items() if other["weights"] == weights
    }


def describe_data(dataset: datasets.DataSet) -> dict:
    """Returns the entries of result.json about the data: classes, images per split."""
    splits = {name: getattr(dataset, name) for name in ("unlabeled", "train", "test")}
    return {
        "class_names": summary.as_text(list(dataset.class_names)),
        "num_images": {
            name: len(split.images) for name, split in splits.items() if split
        },
        "data": dataset.description,
    }


def evaluate_features(
    config: Config,
    dataset: datasets.DataSet,
    model,
    workdir: pathlib.Path,
    weights: InitialWeights | None = None,
) -> tuple[dict, list[dict]]:
    """Scores all features; writes the files that belong to the reported one.

    Args:
        config: Resolved.
        dataset: The data, with labels.
        model: The trained model.
        workdir: The run folder.
        weights: Weights that the encoder started from, or None if they were random.

    Returns:
        `{"pixels": scores, "random_h": scores, "h": scores, ...}`, with "init_h" if
        there are `weights`, see `evaluate_feature`; and the differences of the top-1 of
        every pair, see `differences_of`.
    """
    train, test = labelled_splits(config, dataset)
    before = checkpoints.hash_weights(model)
    features = all_features(config, model, train, test, workdir, weights)
    if checkpoints.hash_weights(model) != before:
        raise RuntimeError(
            "Extracting features changed the encoder: this is a bug in tfsimclr."
        )
    scored = score(config, dataset.num_classes, features, train, test)
    loading.save_classifier(
        workdir, model, config.feature, scored.classifier, dataset.class_names
    )
    results.write_confusion(
        workdir / "confusion.csv", scored.confusion, dataset.class_names
    )
    board = workdir / "tensorboard"
    with files.disk_errors(board):
        projector.write(board, features["h"][1], test, dataset.class_names)
    return scored.scores, scored.differences


def labelled_splits(config: Config, dataset: datasets.DataSet):
    """Returns the images with a label to train a classifier on, and to test it on."""
    rows = sampling.labelled_rows(dataset.train, config.num_train_images)
    train = datasets.Split(dataset.train.images[rows], dataset.train.labels[rows])
    rows = sampling.labelled_rows(dataset.test)
    test = datasets.Split(dataset.test.images[rows], dataset.test.labels[rows])
    return train, test


class Scored(NamedTuple):
    """The scores of all features of a set of images.

    Attributes:
        scores: `{feature: scores}`, see `evaluate_feature`.
        differences: See `differences_of`.
        classifier: The linear classifier of the reported feature.
        confusion: Its confusion matrix on the test images, `[classes, classes]`.
    """

    scores: dict[str, dict]
    differences: list[dict]
    classifier: Any
    confusion: np.ndarray


def score(config: Config, num_classes: int, features: dict, train, test) -> Scored:
    """Scores all features; prints a line for each.

    Args:
        config: Resolved.
        num_classes: Number of classes.
        features: `{name: (train [m, d], test [n, d])}`.
        train: The training split; only its labels are used.
        test: The test split; only its labels are used.
    """
    majority = metrics.majority_share(test.labels)
    print(f"The most frequent class has {majority:.2%} of the test images.", flush=True)

    def evaluate_pair(pair):
        of_train, of_test = pair
        return evaluate_feature(config, num_classes, of_train, train, of_test, test)

    scores, correct = {}, {}
    # The operations of a classifier's step are too small to use several cores.
    with concurrent.futures.ThreadPoolExecutor(FEATURES_AT_ONCE) as pool:
        evaluated = pool.map(evaluate_pair, features.values())
        for name, evaluation in zip(features, evaluated, strict=True):
            scores[name], classifier, logits = evaluation
            print(score_line(name, scores[name]), flush=True)
            if name == config.feature:
                reported = classifier
                confusion = metrics.confusion_matrix(logits, test.labels)
            correct[name] = metrics.is_top1(logits, test.labels)
    differences = differences_of(correct)
    print("\n".join(difference_lines(differences, config.feature)), flush=True)
    return Scored(scores, differences, reported, confusion)


def differences_of(correct: dict[str, np.ndarray]) -> list[dict]:
    """Returns the difference of the top-1 of every pair of features.

    Args:
        correct: `{feature: bool [n]}`, whether its classifier is right on an image.

    Returns:
        A list of `{"feature", "baseline", "top1_difference", "low", "high"}`, where the
        difference is that of the feature minus that of the baseline, in 0-1, and low
        and high are the ends of its 95 % interval over test images.
    """
    rows = []
    for baseline, feature in itertools.combinations(correct, 2):
        difference = intervals.paired_difference(correct[feature], correct[baseline])
        rows.append(
            {
                "feature": feature,
                "baseline": baseline,
                "top1_difference": difference.value,
                "low": difference.low,
                "high": difference.high,
            }
        )
    return rows


def difference_lines(differences: list[dict], feature: str) -> list[str]:
    """Returns the comparison of a feature with the baselines as lines of text."""
    lines = [f"Top-1 of {feature} minus that of a baseline, in points (95 % interval):"]
    names = {
        "pixels": "the images themselves",
        "random_h": "the untrained encoder",
        "init_h": "the weights of --init before the training",
    }
    for row in differences:
        if row["feature"] != feature or row["baseline"] not in names:
            continue
        low, high = 100 * row["low"], 100 * row["high"]
        verdict = "better than" if low > 0 else "worse than"
        if low <= 0 <= high:
            verdict = "no clear difference from"
        lines.append(
            f"  {row['baseline']:9} {100 * row['top1_difference']:+6.2f} "
            f"({low:+.2f} to {high:+.2f}): {verdict} {names[row['baseline']]}"
        )
    return lines


def score_line(name: str, scores: dict) -> str:
    """Returns the scores of a feature as a line of text."""
    top5 = "" if scores["top5"] is None else f"   top-5 {scores['top5']:6.2%}"
    return (
        f"  {name:9} top-1 {scores['top1']:6.2%}{top5}   kNN {scores['knn']:6.2%}   "
        f"mean per class {scores['mean_class_accuracy']:6.2%}"
    )


def evaluate_feature(config: Config, num_classes, of_train, train, of_test, test):
    """Scores one feature on the whole test set.

    Args:
        config: Resolved.
        num_classes: Number of classes.
        of_train: Features of the training images, `[m, d]`.
        train: The training split; only its labels are used.
        of_test: Features of the test images, `[n, d]`.
        test: The test split; only its labels are used.

    Returns:
        The scores, the linear classifier, and its logits of the test images, `[n,
        classes]`. The scores are `top1`, `top5` (None with
        five classes or fewer, where it is always 1), `mean_class_accuracy`, all of the
        linear classifier; `majority_share` (the top-1 of always answering the most
        frequent test class); `knn` (top-1 of the k-NN vote); `dim`; `learning_rate` of
        the classifier; and `neighbours`, the k of k-NN.
    """
    training: dict = {
        "epochs": config.probe_epochs,
        "batch_size": config.probe_batch_size,
        "optimizer": config.probe_optimizer,
        "seed": config.seed,
    }
    labelled = (of_train, train.labels, num_classes)
    rate = config.probe_learning_rate or linear.select_learning_rate(
        *labelled, **training
    )
    classifier = linear.linear_classifier(*labelled, learning_rate=rate, **training)
    logits = linear.predict(classifier, of_test)
    k = knn.default_k(len(of_train), num_classes)
    votes = knn.knn_votes(of_train, train.labels, of_test, num_classes, k)
    top5 = metrics.top_k_accuracy(logits, test.labels, 5) if num_classes > 5 else None
    scores = {
        "top1": metrics.top_k_accuracy(logits, test.labels, 1),
        "top5": top5,
        "mean_class_accuracy": metrics.mean_class_accuracy(logits, test.labels),
        "majority_share": metrics.majority_share(test.labels),
        "knn": metrics.top_k_accuracy(votes, test.labels, 1),
        "dim": int(of_train.shape[1]),
        "learning_rate": rate,
        "neighbours": k,
    }
    return scores, classifier, logits


def all_features(
    config: Config,
    model,
    train,
    test,
    workdir: pathlib.Path,
    weights: InitialWeights | None = None,
) -> dict:
    """Returns the features of the train and test images, from the cache if possible.

    With `weights`, those of `--init`, the features "init_h" of an encoder with these
    weights, before any training step, are among them.

    Returns:
        `{name: (train [m, d], test [n, d])}` in the order of the report.
    """
    settings = f"{__version__} {config.image_size} shape, dtype and bytes hashed"
    if weights is not None:
        settings += f" {weights.checksum}"
    key = files.sha256(
        f"{checkpoints.hash_weights(model)} {settings} ".encode(),
        f"{files.sha256(train.images)} {files.sha256(test.images)}".encode(),
    )
    initial_names = ("random_h",) if weights is None else ("random_h", "init_h")
    names = ("pixels", *initial_names, *feature_names(config.proj_layers))
    folder = workdir / "features"
    cached = load_feature_cache(folder, key, names)
    if cached is not None:
        return cached
    start = time.monotonic()
    parts = run_features.extract(
        config, model, train.images, test.images, weights=weights
    )
    features = {name: tuple(part[name] for part in parts) for name in names}
    save_feature_cache(folder, key, features)
    count = len(train.images) + len(test.images)
    print(f"Features of {count} images: {time.monotonic() - start:.0f} s.", flush=True)
    return features


def save_feature_cache(folder: pathlib.Path, key: str, features: dict) -> None:
    """Writes features and then key.txt, which holds their key and checksums."""
    folder.mkdir(exist_ok=True)
    (folder / "key.txt").unlink(missing_ok=True)
    lines = [key]
    for name, pair in features.items():
        for array, part in zip(pair, PARTS, strict=True):
            path = folder / f"{name}-{part}.npy"
            # Not written atomically: without key.txt the cache is not used.
            with files.disk_errors(path):
                np.save(path, array)
            lines.append(f"{_checksum(array)} {path.name}")
    files.write_atomically(folder / "key.txt", "\n".join(lines).encode())


def load_feature_cache(folder: pathlib.Path, key: str, names) -> dict | None:
    """Returns the features of `save_feature_cache`, or None if they cannot be used.

    They cannot if the key differs or a file is damaged; a damaged file is named on
    stderr.
    """
    try:
        first, *lines = (folder / "key.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return None
    if first != key:
        return None
    arrays = {}
    for name in (f"{name}-{part}.npy" for name in names for part in PARTS):
        try:
            arrays[name] = np.load(folder / name)
            is_whole = f"{_checksum(arrays[name])} {name}" in lines
        except Exception:  # a damaged header can raise a dozen kinds
            is_whole = False
        if not is_whole:
            print(
                f"The features {folder / name} are damaged (their checksum differs); "
                "all features are computed again.",
                file=sys.stderr,
            )
            return None
    return {
        name: tuple(arrays[f"{name}-{part}.npy"] for part in PARTS) for name in names
    }


def _checksum(array: np.ndarray) -> str:
    return files.sha256(f"{array.dtype} {array.shape}".encode(), array)
