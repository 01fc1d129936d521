"""A TensorFlow Datasets (TFDS) image data set by name, prepared or downloaded."""

import difflib
import hashlib
import itertools
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfsimclr.data import depth, images, sampling
from tfsimclr.errors import UserError

_SAMPLE = 200
_CONNECT_SECONDS = 4
_UNLABELED_NAMES = ("unlabelled", "unlabeled", "unsupervised")
NO_LABELS = "none"
_MAX_VALUES = 1000  # of a label that is a number or text
# name:1.0.0, name:2.*.* or name/config:1.0.0, as TFDS writes versions.
_VERSION = re.compile(r"[\w./-]+:(\d+|\*)\.(\d+|\*)\.(\d+|\*)")
# Files of a prepared data set.
_OWN_FILES = ("dataset_info.json", "features.json")


class TfdsSource:
    """The images of a TFDS data set, as the encoded bytes that TFDS keeps.

    A split `unlabelled` (STL-10) is for pretraining only. The test set is `test`, or
    else `validation`, or else a fixed stratified fifth of `train`.

    Attributes:
        place: Folder of the prepared data set.
        class_names: Names of the classes, in the order of the labels.
        splits: Split name -> TFDS split it is read from.
        found: Empty: the splits tell.
        left_aside: Splits that are not used, with their number of images.
        notes: How splits and labels were chosen, for the user.
    """

    def __init__(self, name: str, data_dir: str = "", label_key: str = ""):
        self.name = name
        self.notes: list[str] = []
        self.found: dict[str, int] = {}
        self._held_out: np.ndarray | None = None  # bool, one per image of train
        self._builder = builder(name, data_dir)
        self.place = os.fspath(self._builder.data_path)
        self._image = _image_key(self._builder)
        self._label = self._choose_label(label_key)
        _prepare(self._builder)
        self._values: dict = {}  # class of every value of a label without classes
        self.class_names: tuple[str, ...] = self._classes()
        available = dict(self._builder.info.splits)
        self.splits = self._choose_splits(available)
        self.left_aside = {
            f"images in split {name}": split.num_examples
            for name, split in available.items()
            if split.num_examples and name not in self.splits.values()
        }

    def count(self, split: str) -> int:
        if self._held_out is not None and split in ("train", "test"):
            return int((self._held_out == (split == "test")).sum())
        return self._builder.info.splits[self.splits[split]].num_examples

    def blocks(
        self,
        split: str,
        side: int,
        ranges: dict[str, depth.Range],
        facts: images.Facts,
    ) -> Iterator[list]:
        """Yields lists of (image or `UnreadableImageError`, label)."""
        return images.read_all(self._rows(split), side, ranges=ranges, facts=facts)

    def wide_facts(self, first: bool) -> images.Facts:
        """Returns the range of the images of more than 8 bits; see `images`."""
        if self._builder.info.features[self._image].np_dtype == np.uint8:
            return images.Facts()
        rows = (
            (content, name)
            for split in dict.fromkeys(self.splits)
            for content, name, _ in self._rows(split)
        )
        return images.wide_facts(rows, first)

    def files(self) -> tuple[list[str], list[str]]:
        """Returns the names and paths of the prepared files."""
        names = sorted(os.listdir(self.place))
        prefix = f"{self.splits} {self._label}"
        paths = [os.path.join(self.place, name) for name in names]
        return [f"{prefix} {name}" for name in names], paths

    def _rows(self, split: str) -> Iterator[tuple[bytes, str, int]]:
        """Yields (encoded image, name for messages, label)."""
        origin = self.splits[split]
        for index, example in enumerate(self._examples(origin)):
            if self._held_out is not None and split in ("train", "test"):
                if self._held_out[index] != (split == "test"):
                    continue
            label = self._class_of(example) if split != "unlabeled" else -1
            yield example[self._image], f"{self.name} {origin} {index}", label

    def short_side(self) -> int:
        """Returns the short side in pixels: of the data set, or the median of 200."""
        fixed = static_side(self._builder)
        if fixed:
            return fixed
        first = itertools.islice(self._rows(next(iter(self.splits))), _SAMPLE)
        return images.median_short_side((source, name) for source, name, _ in first)

    def fingerprint(self) -> str:
        """Returns the digest that stores of versions before 0.3 hold.

        Of the prepared files: their names, sizes and times.
        """
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
            return {"unlabeled": "train"}
        chosen["train"] = "train"
        for name in ("test", "validation"):
            # Some test sets (ImageNet) come without labels.
            if name in available and self._is_labelled(name):
                chosen["test"] = name
                if name != "test":
                    self.notes.append(f"no labelled test split: {name} is the test set")
                return chosen
        labels = np.array([self._class_of(e) for e in self._examples("train")])
        self._held_out = sampling.held_out_fifth(labels)
        self.notes.append(
            "no test split: a fixed fifth of every class is the test set "
            f"({self._held_out.sum()} images), and is not trained on"
        )
        return {**chosen, "test": "train"}

    def _is_labelled(self, split: str) -> bool:
        return self._class_of(next(self._examples(split))) >= 0

    def _class_of(self, example: dict[str, Any]) -> int:
        value = example[self._label]
        return self._values.get(value, -1) if self._values else int(value)

    def _choose_label(self, label_key: str) -> str | None:
        """Returns the feature that is the label, or None.

        Raises:
            UserError: If there is no such feature, or several and none is chosen.
        """
        import tensorflow_datasets as tfds

        features = self._builder.info.features
        classes = [
            key
            for key, feature in features.items()
            if isinstance(feature, tfds.features.ClassLabel)
        ]
        others = [k for k in features if k not in classes and _is_value(features[k])]
        choices = [f"{key} ({features[key].num_classes} classes)" for key in classes]
        choices += [f"{key} ({_type_name(features[key])})" for key in others]
        listed = ", ".join(choices) or "none"
        if label_key == NO_LABELS:
            self.notes.append(f"no labels are used; there are: {listed}")
            return None
        if label_key:
            if label_key not in (*classes, *others):
                raise UserError(
                    f"--label_key={label_key} is no label of {self.name}. Its labels "
                    f"are: {listed}. --label_key={NO_LABELS} uses none."
                )
            return label_key
        if "label" in classes or len(classes) == 1:
            return "label" if "label" in classes else classes[0]
        if classes:
            raise UserError(
                f"{self.name} has several labels: {listed}. Choose one with "
                f"--label_key={classes[0]}, or none with --label_key={NO_LABELS}."
            )
        self.notes.append(
            f"{self.name} has no class labels: nothing to evaluate"
            + (
                f". --label_key={others[0]} makes classes of the values of a feature; "
                f"there are: {listed}"
                if others
                else ""
            )
        )
        return None

    def _classes(self) -> tuple[str, ...]:
        """Returns the names of the classes; sets `_values` if they are values.

        Raises:
            UserError: If a label has more different values than a class can have.
        """
        if not self._label:
            return ()
        feature = self._builder.info.features[self._label]
        if hasattr(feature, "names"):
            return tuple(feature.names)
        values = set()
        for split in self._builder.info.splits:
            for example in self._examples(split):
                values.add(example[self._label])
                if len(values) > _MAX_VALUES:
                    raise UserError(
                        f"--label_key={self._label} has more than {_MAX_VALUES} "
                        "different values, so it is no class label."
                    )
        if _type_name(feature) != "text":  # negative numbers mean "no label"
            values = {value for value in values if value >= 0}
        ordered = sorted(values)
        self._values = {value: index for index, value in enumerate(ordered)}
        return tuple(
            v.decode(errors="replace") if isinstance(v, bytes) else str(v)
            for v in ordered
        )


def builder(name: str, data_dir: str = ""):
    """Returns the TFDS builder of `name`; nothing is downloaded.

    Raises:
        UserError: If there is no such data set.
    """
    import tensorflow_datasets as tfds  # takes seconds to import

    if name.startswith((os.sep, "~", ".")) or os.path.isdir(name):
        raise UserError(
            f"--dataset={name} is a path. For a folder of images use --dataset=folder "
            f"--data_dir={name}."
        )
    if ":" in name and not _VERSION.fullmatch(name):
        raise UserError(
            f"--dataset={name}: names with a namespace are not supported, and a "
            "version has the form name:1.0.0."
        )
    _check_data_dir(name, data_dir)
    data_dir = os.path.expanduser(data_dir) or None
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise UserError(f"--dataset={name}: {_one_line(error)}") from error
    choices = {"textures", "folder", *known}
    plain = re.split("[:/]", name)[0]
    close = difflib.get_close_matches(plain, sorted(choices), n=5, cutoff=0.5)
    raise UserError(
        f"--dataset must be textures, folder or a TFDS image data set, got {name!r}."
        + (f" Did you mean {', '.join(close)}?" if close else "")
    )


def static_side(data_builder) -> int | None:
    """Returns the short side of the images in pixels if all are of one size."""
    key = _image_key(data_builder)
    height, width, _ = data_builder.info.features[key].shape
    return min(height, width) if height and width else None


def _check_data_dir(name: str, data_dir: str) -> None:
    """Raises UserError if the folder is one inside that of TFDS."""
    folder = os.path.abspath(os.path.expanduser(data_dir))
    plain = re.split("[:/]", name)[0]
    inside = any(os.path.exists(os.path.join(folder, file)) for file in _OWN_FILES)
    parts = folder.split(os.sep)
    if not data_dir or not (inside or parts[-1] == plain):
        return
    if os.path.isdir(os.path.join(folder, plain)):
        return
    last = len(parts) - 1 - parts[::-1].index(plain) if plain in parts else None
    parent = os.sep.join(parts[:last]) if last else os.path.dirname(folder)
    raise UserError(
        f"--data_dir={data_dir} is the folder of the data set itself. Name the folder "
        f"that holds {plain}/: --data_dir={parent or os.sep}"
        + (
            ""
            if plain in parts
            else f". The data set there is called {_owner(folder)}, not {plain}"
        )
        + "."
    )


def _owner(folder: str) -> str:
    """Returns the name of the data set of which `folder` is a version."""
    path = os.path.join(folder, _OWN_FILES[0])
    try:
        with open(path, encoding="utf-8") as file:
            return str(json.load(file).get("name", "otherwise"))
    except (OSError, ValueError, AttributeError):
        return "otherwise"


def _is_value(feature) -> bool:
    """Returns whether a feature is one integer, truth value or text per example."""
    kind = getattr(feature, "np_dtype", None)
    if isinstance(kind, dict) or kind is None or getattr(feature, "shape", None) != ():
        return False
    return np.dtype(kind).kind in "iubSUO"


def _type_name(feature) -> str:
    kind = np.dtype(feature.np_dtype)
    return kind.name if kind.kind in "iub" else "text"


def _image_key(data_builder) -> str:
    """Returns the key of the image."""
    import tensorflow_datasets as tfds

    features = data_builder.info.features or {}
    pictures = [k for k, f in features.items() if type(f) is tfds.features.Image]
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
    return image


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
