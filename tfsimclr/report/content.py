"""What a page shows of a run: its files, and pictures with their features."""

import csv
import dataclasses
import json
import pathlib

import numpy as np

from tfsimclr.data import dataset as datasets
from tfsimclr.errors import UserError
from tfsimclr.evaluation import neighbors
from tfsimclr.runs import features as run_features
from tfsimclr.runs import initial, loading
from tfsimclr.settings.config import Config
from tfsimclr.training import recorder

NUM_PAIRS = 8
COMPARED = ("pixels", "random_h", "init_h", "h")


@dataclasses.dataclass(frozen=True)
class Record:
    """The files of a run.

    Attributes:
        folder: The run folder.
        result: result.json.
        history: Rows of history.csv; numbers where a cell is one, else None.
        confusion: Counts `[classes, classes]` of confusion.csv, or None.
    """

    folder: pathlib.Path
    result: dict
    history: list[dict]
    confusion: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images that the page shows.

    Attributes:
        images: uint8 `[n, s, s, 3]`.
        labels: int `[n]`, below 0 where unknown.
        origin: Where they are from, such as `test split`.
        held_out: Whether the run was not trained on them.
        features: `[n, d]` of `pixels`, `random_h`, `h`, ..., rows normalised.
        pairs: Some training images above their two views, `[3 s, m s, 3]` in 0-1.
    """

    images: np.ndarray
    labels: np.ndarray
    origin: str
    held_out: bool
    features: dict[str, np.ndarray]
    pairs: np.ndarray


def read(folder: pathlib.Path) -> Record:
    """Returns the files of a run.

    Raises:
        UserError: If the folder has no result.json, or a file cannot be read.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no result.json, so there is nothing to report. Name a run "
            "folder that --mode=all or --mode=evaluate has finished."
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        rows = _read_csv(folder / "history.csv")
        history = [{key: _number(cell) for key, cell in row.items()} for row in rows]
        confusion = None
        if result.get("features"):  # an older file would be of other labels
            confusion = _read_confusion(folder / "confusion.csv")
        result["config"], result["versions"]  # noqa: B018
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"a file of the run folder {folder} cannot be read ({error!r}). Write it "
            "again by --mode=evaluate, or name another run folder."
        ) from error
    return Record(folder, result, history, confusion)


def pictures(
    config: Config, dataset: datasets.DataSet, folder: pathlib.Path
) -> Pictures:
    """Returns the images of the page: held-out ones, or else those trained on.

    Args:
        config: Resolved.
        dataset: The data of the run.
        folder: The run folder, whose newest checkpoint is used.
    """
    model, _ = loading.model(config, folder)
    split, origin = run_features.held_out(config, dataset)
    held_out = split is not None
    if split is None:
        split = run_features.subset(dataset.pretrain)
        origin = "images that were trained on"
    weights = initial.load(config, folder)
    (extracted,) = run_features.extract(config, model, split.images, weights=weights)
    return Pictures(
        images=split.images,
        labels=split.labels,
        origin=origin,
        held_out=held_out,
        features={
            name: neighbors.normalize(extracted[name])
            for name in COMPARED
            if name in extracted
        },
        pairs=recorder.pairs_grid(
            model, np.asarray(dataset.pretrain.images[:NUM_PAIRS])
        ),
    )


def _read_csv(path: pathlib.Path) -> list[dict]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _read_confusion(path: pathlib.Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    # The first cell is the label's name.
    return np.array([[int(cell) for cell in row[1:]] for row in rows])


def _number(cell: str | None) -> float | None:
    try:
        return float(cell or "")
    except ValueError:
        return None
