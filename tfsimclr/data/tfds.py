"""A TensorFlow Datasets (TFDS) image data set by name, prepared or downloaded."""

import difflib
import hashlib
import itertools
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfsimclr.data import images, sampling
from tfsimclr.errors import UserError

_SAMPLE = 200
_CONNECT_SECONDS = 4
_UNLABELED_NAMES = ("unlabelled", "unlabeled", "unsupervised")


class TfdsSource:
    """The images of a TFDS data set, as the encoded bytes that TFDS keeps.

    A split `unlabelled` (STL-10) is for pretraining only. The test set is `test`, or
    else `validation`, or else a fixed stratified fifth of `train`.

    Attributes:
        class_names: Names of the classes, in the order of the labels.
        splits: Split name -> TFDS split it is read from.
        notes: How the splits were chosen, for the user.
    """

    def __init__(self, name: str, data_dir: str = ""):
        self.name = name
        self.notes: list[str] = []
        self._held_out: np.ndarray | None = None  # bool, one per image of train
        self._builder = builder(name, data_dir)
        self._image, self._label = _features(self._builder)
        _prepare(self._builder)
        names = self._label and self._builder.info.features[self._label].names
        self.class_names: tuple[str, ...] = tuple(names or ())
        self.splits = self._choose_splits(dict(self._builder.info.splits))

    def count(self, split: str) -> int:
        if self._held_out is not None and split in ("train", "test"):
            return int((self._held_out == (split == "test")).sum())
        return self._builder.info.splits[self.splits[split]].num_examples

    def blocks(self, split: str, side: int) -> Iterator[list]:
        """Yields lists of (image or `UnreadableImageError`, label)."""
        return images.read_all(self._rows(split), side)

    def _rows(self, split: str) -> Iterator[tuple[bytes, str, int]]:
        """Yields (encoded image, name for messages, label)."""
        origin = self.splits[split]
        for index, example in enumerate(self._examples(origin)):
            if self._held_out is not None and split in ("train", "test"):
                if self._held_out[index] != (split == "test"):
                    continue
            label = int(example[self._label]) if split != "unlabeled" else -1
            yield example[self._image], f"{self.name} {origin} {index}", label

    def short_side(self) -> int:
        """Returns the short side in pixels: of the data set, or the median of 200."""
        fixed = static_side(self._builder)
        if fixed:
            return fixed
        first = itertools.islice(self._rows(next(iter(self.splits))), _SAMPLE)
        return images.median_short_side((source, name) for source, name, _ in first)

    def fingerprint(self) -> str:
        """Returns a digest of the prepared files: their names, sizes and times."""
        digest = hashlib.sha256(repr(self.splits).encode())
        folder = os.fspath(self._builder.data_path)
        for name in sorted(os.listdir(folder)):
            status = os.stat(os.path.join(folder, name))
            digest.update(repr((name, status.st_size, status.st_mtime_ns)).encode())
        return digest.hexdigest()

    def _examples(self, split: str) -> Iterator[dict[str, Any]]:
        import tensorflow_datasets as tfds

        examples = self._builder.as_dataset(
            split=split,
            shuffle_files=False,
            read_config=tfds.ReadConfig(try_autocache=False),
            decoders={self._image: tfds.decode.SkipDecoding()},
        )
        return iter(tfds.as_numpy(examples))

    def _choose_splits(self, available: dict) -> dict[str, str]:
        available = {name: s for name, s in available.items() if s.num_examples}
        unlabeled = next((n for n in _UNLABELED_NAMES if n in available), None)
        chosen = {"unlabeled": unlabeled} if unlabeled else {}
        if "train" not in available:
            if unlabeled:
                return chosen
            raise UserError(
                f"{self.name} has no split to train on, expected train, "
                f"got {', '.join(sorted(available)) or 'none'}."
            )
        if not self._label:
            self.notes.append(f"{self.name} has no class labels: nothing to evaluate")
            return {"unlabeled": "train"}
        chosen["train"] = "train"
        for name in ("test", "validation"):
            # Some test sets (ImageNet) come without labels.
            if name in available and self._is_labelled(name):
                chosen["test"] = name
                if name != "test":
                    self.notes.append(f"no labelled test split: {name} is the test set")
                return chosen
        labels = np.array([int(e[self._label]) for e in self._examples("train")])
        self._held_out = sampling.held_out_fifth(labels)
        self.notes.append(
            "no test split: a fixed fifth of every class is the test set "
            f"({self._held_out.sum()} images), and is not trained on"
        )
        return {**chosen, "test": "train"}

    def _is_labelled(self, split: str) -> bool:
        return int(next(self._examples(split))[self._label]) >= 0


def builder(name: str, data_dir: str = ""):
    """Returns the TFDS builder of `name`; nothing is downloaded.

    Raises:
        UserError: If there is no such data set.
    """
    import tensorflow_datasets as tfds  # takes seconds to import

    if os.sep in name:
        raise UserError(
            f"--dataset={name} is a path. For a folder of images use --dataset=folder "
            f"--data_dir={name}."
        )
    if ":" in name:
        raise UserError(f"--dataset={name}: names with a namespace are not supported.")
    data_dir = os.path.expanduser(data_dir) or None
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise UserError(f"--dataset={name}: {_one_line(error)}") from error
    choices = {"textures", "folder", *known}
    close = difflib.get_close_matches(name, sorted(choices), n=5, cutoff=0.5)
    raise UserError(
        f"--dataset must be textures, folder or a TFDS image data set, got {name!r}."
        + (f" Did you mean {', '.join(close)}?" if close else "")
    )


def static_side(data_builder) -> int | None:
    """Returns the short side of the images in pixels if all are of one size."""
    key, _ = _features(data_builder)
    height, width, _ = data_builder.info.features[key].shape
    return min(height, width) if height and width else None


def _features(data_builder) -> tuple[str, str | None]:
    """Returns the keys of the image and of the class label (None: no labels)."""
    import tensorflow_datasets as tfds

    features = data_builder.info.features or {}
    pictures = [k for k, f in features.items() if type(f) is tfds.features.Image]
    classes = [
        k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)
    ]
    if "image" not in pictures and len(pictures) != 1:
        raise UserError(
            f"{data_builder.name} is no data set of images with one image per example: "
            f"its features are {', '.join(features) or 'unknown'}."
        )
    image = "image" if "image" in pictures else pictures[0]
    if features[image].np_dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{data_builder.name} has images of type {features[image].np_dtype}, "
            "expected uint8 or uint16."
        )
    label = "label" if "label" in classes or len(classes) != 1 else classes[0]
    return image, label if label in classes else None


def _prepare(data_builder) -> None:
    """Downloads and prepares the data set if that is not done yet.

    Raises:
        UserError: If it cannot be done; without a network within ten seconds.
    """
    import tensorflow_datasets as tfds

    if data_builder.info.splits:
        return
    name, folder = data_builder.name, data_builder.data_path
    remedy = (
        f"Download it where there is a network (tfds build {name}), copy the folder "
        f"{name} and name the folder that holds it with --data_dir, or use "
        "--dataset=textures, which needs no download."
    )
    for url in list(data_builder.url_infos or {})[:1]:
        problem = unreachable(url)
        if problem:
            raise UserError(
                f"{name} is not prepared at {folder} and cannot be downloaded: "
                f"{problem}. {remedy}"
            )
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        data_builder.download_and_prepare(download_config=config)
    except Exception as error:  # of any kind: network, disk, manual steps, checksums
        raise UserError(
            f"{name} could not be prepared at {folder}: {_one_line(error)} {remedy}"
        ) from error


def unreachable(url: str) -> str:
    """Returns why the host of `url` gives no answer, or an empty string if it does."""
    result = ["no answer in time"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
            result[0] = ""
        except urllib.error.HTTPError:
            result[0] = ""  # the host answered
        except Exception as error:  # no address, refused, timed out, odd protocol
            result[0] = _one_line(getattr(error, "reason", error))

    # In a thread: looking up a host name has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * _CONNECT_SECONDS)
    return result[0]


def _one_line(error: object) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) < 400 else text[:400] + " ..."
