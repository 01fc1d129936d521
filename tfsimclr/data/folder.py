"""A folder of image files as a data set: which files are which split and class."""

import collections
import hashlib
import os
from collections.abc import Iterator

import numpy as np

from tfsimclr.data import images, sampling
from tfsimclr.errors import UserError

_SAMPLE = 200
_TRAIN_NAMES = ("train", "training", "seg_train")
# In order of preference, if there are several.
_TEST_NAMES = (
    *("test", "testing", "seg_test"),
    *("val", "valid", "validation", "eval", "evaluation"),
)
_UNLABELED_NAMES = ("unlabeled", "unlabelled")
_SPLIT_NAMES = (*_TRAIN_NAMES, *_TEST_NAMES, *_UNLABELED_NAMES)
_MAX_NAMED = 5
# Up to this share of images may lie beside the class folders without losing labels.
_LOOSE_SHARE = 0.1


class FolderSource:
    """The images of a folder.

    Four layouts are understood; hidden files and empty folders are ignored:

    * images only, at any depth but not in class folders: no labels;
    * one folder per class: labels; a fixed, stratified fifth becomes the test set;
    * `train/` and `test/` (or `val/`) with one folder per class each;
    * the same with `unlabeled/`, whose images (at any depth) are for pretraining.

    The names of splits are recognised in any case and in their usual spellings.

    Attributes:
        class_names: Sorted names of the class folders.
        splits: Split name -> list of (path, label).
        notes: How the folder was interpreted, for the user.
    """

    def __init__(self, folder: str):
        self.folder = os.path.abspath(os.path.expanduser(folder))
        self.class_names: tuple[str, ...] = ()
        self.notes: list[str] = []
        self.splits: dict[str, list[tuple[str, int]]] = {}
        if not folder or not os.path.isdir(self.folder):
            raise UserError(
                f"--dataset=folder needs --data_dir=FOLDER, got {folder!r}, which is "
                "not a folder."
            )
        paths, others = images.find(self.folder)
        if others:
            self.notes.append(_described(others))
        if not paths:
            raise UserError(
                f"no image files below {self.folder!r}. Expected files that end in "
                f"{' '.join(sorted(images.EXTENSIONS))}"
                + (f"; {self.notes[0]}." if others else ".")
            )
        self._arrange(_by_first_folder(self.folder, paths))
        self.splits = {name: files for name, files in self.splits.items() if files}

    def count(self, split: str) -> int:
        return len(self.splits[split])

    def blocks(self, split: str, side: int) -> Iterator[list]:
        """Yields lists of (image or `UnreadableImageError`, label)."""
        rows = ((path, path, label) for path, label in self.splits[split])
        return images.read_all(rows, side)

    def short_side(self) -> int:
        """Returns the median short side in pixels of up to 200 images.

        Raises:
            UserError: If none of them can be read.
        """
        paths = sorted(path for files in self.splits.values() for path, _ in files)
        rng = np.random.default_rng(0)
        sample = rng.choice(len(paths), min(_SAMPLE, len(paths)), replace=False)
        return images.median_short_side((paths[i], paths[i]) for i in sample)

    def fingerprint(self) -> str:
        """Returns a digest of names, labels, sizes and modification times."""
        digest = hashlib.sha256()
        for split, files in self.splits.items():
            for path, label in files:
                try:
                    status = os.stat(path)
                    state = (status.st_size, status.st_mtime_ns)
                except OSError:
                    state = (-1, -1)
                digest.update(repr((split, os.fsencode(path), label, state)).encode())
        return digest.hexdigest()

    def _arrange(self, groups: dict[str, list[str]]) -> None:
        names = set(groups) - {""}
        total = sum(map(len, groups.values()))
        splits = {name for name in names if name.lower() in _SPLIT_NAMES}
        if splits and names == splits and "" not in groups:
            self._arrange_splits(groups)
        elif any(name.lower() in _TRAIN_NAMES for name in splits) and len(splits) > 1:
            others = sorted(names - splits) or ["image files"]
            raise UserError(
                f"{self.folder!r} holds {', '.join(sorted(splits))} beside "
                f"{', '.join(others[:_MAX_NAMED])}: either all are splits (train, "
                "test, unlabeled) or all are classes. Move the others away."
            )
        elif len(names) < 2 or len(groups.get("", ())) > _LOOSE_SHARE * total:
            if names:
                self.notes.append(
                    "the images are not sorted into two or more class folders: "
                    "all are used without labels"
                )
            files = sorted(path for paths in groups.values() for path in paths)
            self.splits["unlabeled"] = [(path, -1) for path in files]
        else:
            loose = groups.pop("", [])
            if loose:
                self.notes.append(
                    f"{len(loose)} images beside the class folders are not used"
                )
            self._refuse_equal_subfolders(groups)
            self._arrange_classes(groups)

    def _refuse_equal_subfolders(self, groups: dict[str, list[str]]) -> None:
        """Refuses folders that all hold the same subfolders: splits under any name."""
        inner = {
            name: frozenset(_by_first_folder(os.path.join(self.folder, name), paths))
            for name, paths in groups.items()
        }
        first = next(iter(inner.values()))
        if "" not in first and len(first) > 1 and set(inner.values()) == {first}:
            raise UserError(
                f"{', '.join(sorted(groups)[:_MAX_NAMED])} in {self.folder!r} all hold "
                f"the folders {', '.join(sorted(first)[:_MAX_NAMED])}, so they look "
                "like splits and not like classes. Rename them to train and test, or "
                "name the one to use with --data_dir."
            )

    def _arrange_classes(self, groups: dict[str, list[str]]) -> None:
        """Takes one folder per class; holds out a fifth of each as the test set."""
        self.class_names = tuple(sorted(groups))
        train, test = [], []
        for label, name in enumerate(self.class_names):
            # By a hash of the name: independent of the other classes and of the order
            # on disk, and a new image moves at most one other between the splits.
            ranked = sorted(groups[name], key=self._rank)
            num_test = sampling.num_held_out(len(ranked))
            test += [(path, label) for path in sorted(ranked[:num_test])]
            train += [(path, label) for path in sorted(ranked[num_test:])]
        self.splits["train"], self.splits["test"] = train, test
        self.notes.append(
            f"no test/ folder: a fixed fifth of every class is the test set "
            f"({len(test)} images), and is not trained on"
            if test
            else "no class has two images or more, so there is no test set"
        )

    def _arrange_splits(self, groups: dict[str, list[str]]) -> None:
        """Takes the folders train, test (or val) and unlabeled."""
        train_name = self._first(_TRAIN_NAMES, groups)
        test_name = self._first(_TEST_NAMES, groups)
        unlabeled = [
            path
            for name, paths in groups.items()
            if name.lower() in _UNLABELED_NAMES
            for path in paths
        ]
        train = self._classes(train_name, groups)
        test = self._classes(test_name, groups)
        if "" in train:
            if test:
                raise UserError(
                    f"{os.path.join(self.folder, train_name)!r} holds images outside "
                    f"of class folders, but there is {test_name}/ too. Sort the images "
                    "into one folder per class, or move them to unlabeled/."
                )
            self.notes.append(
                f"{train_name}/ has no class folders: its images have no labels"
            )
            unlabeled += [path for paths in train.values() for path in paths]
            train = {}
        unknown = sorted(set(test) - set(train))
        if unknown:
            name = unknown[0] or "image files outside of class folders"
            raise UserError(
                f"{os.path.join(self.folder, test_name)!r} holds {name!r}, which "
                f"{train_name}/ does not. Both need the same class folders."
            )
        self.splits["unlabeled"] = [(path, -1) for path in sorted(unlabeled)]
        if train and not test:
            self._arrange_classes(train)
            return
        self.class_names = tuple(sorted(train))
        for split, classes in (("train", train), ("test", test)):
            self.splits[split] = [
                (path, label)
                for label, name in enumerate(self.class_names)
                for path in classes.get(name, ())
            ]

    def _first(self, names: tuple[str, ...], groups: dict) -> str:
        """Returns the folder with the first of the names, or "" if there is none.

        Other folders with one of the names are not used, which is noted.
        """
        present = [g for name in names for g in sorted(groups) if g.lower() == name]
        if len(present) > 1:
            self.notes.append(
                f"{', '.join(present[1:])} not used: {present[0]} is the {names[0]} set"
            )
        return present[0] if present else ""

    def _classes(self, name: str, groups: dict[str, list[str]]) -> dict[str, list[str]]:
        return _by_first_folder(os.path.join(self.folder, name), groups.get(name, []))

    def _rank(self, path: str) -> bytes:
        name = os.path.relpath(path, self.folder).replace(os.sep, "/")
        return hashlib.sha256(os.fsencode(name)).digest()


def _by_first_folder(folder: str, paths: list[str]) -> dict[str, list[str]]:
    """Returns the paths grouped by the first folder below `folder`, "" for none."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        first, _, rest = path[len(folder) :].lstrip(os.sep).partition(os.sep)
        groups.setdefault(first if rest else "", []).append(path)
    return groups


def _described(others: collections.Counter) -> str:
    """Returns a note of the files and machine folders that are not used."""
    named = [f"{count} {name}" for name, count in others.most_common(_MAX_NAMED)]
    rest = len(others) - len(named)
    note = "not used: " + ", ".join(named) + (f" and {rest} kinds more" * bool(rest))
    photos = sorted(images.CONVERTIBLE & set(others))
    if photos:
        note += f". Convert {', '.join(photos)} to JPEG or PNG to use them"
    return note
