"""A folder of image files as a data set: which files are which split and class."""

import hashlib
import os
from collections.abc import Iterator

import numpy as np

from tfsimclr.data import images
from tfsimclr.errors import UserError

TEST_SHARE = 0.2
_SAMPLE = 200
_TEST_NAMES = ("test", "val", "valid", "validation")
_UNLABELED_NAMES = ("unlabeled", "unlabelled")
_SPLIT_NAMES = ("train", *_TEST_NAMES, *_UNLABELED_NAMES)


class FolderSource:
    """The images of a folder.

    Four layouts are understood, hidden files and empty folders left aside:

    * images only, at any depth but in no folder of classes: all without labels;
    * one folder per class: labelled; a fixed, stratified fifth becomes the test set;
    * `train/` and `test/` (or `val/`) with one folder per class each;
    * the same with `unlabeled/`, whose images (any depth) are what is pretrained on.

    Attributes:
        class_names: Sorted names of the class folders.
        splits: Split name -> list of (path, label).
        notes: What the reader of the run should know about how the folder was read.
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
        found = images.find(self.folder)
        if not found:
            raise UserError(
                f"no image files below {self.folder!r}. Expected files that end in "
                f"{' '.join(sorted(images.EXTENSIONS))}."
            )
        self._arrange(_by_first_folder(self.folder, found))
        self.splits = {name: files for name, files in self.splits.items() if files}

    def count(self, split: str) -> int:
        return len(self.splits[split])

    def blocks(self, split: str, side: int) -> Iterator[list]:
        """Yields lists of (image or `images.Unreadable`, label)."""
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
        reserved = names & set(_SPLIT_NAMES)
        if reserved and names == reserved and "" not in groups:
            self._arrange_splits(groups)
        elif "train" in names and reserved - {"train"}:
            others = sorted(names - reserved) or ["image files"]
            raise UserError(
                f"{self.folder!r} holds {', '.join(sorted(reserved))} beside "
                f"{', '.join(others[:5])}: either all are splits (train, test, "
                "unlabeled) or all are classes. Move the others away."
            )
        elif "" in groups or len(names) == 1:
            if names:
                self.notes.append(
                    "the images are not sorted into two or more class folders: "
                    "all are taken as unlabelled"
                )
            files = sorted(path for paths in groups.values() for path in paths)
            self.splits["unlabeled"] = [(path, -1) for path in files]
        else:
            self._arrange_classes(groups)

    def _arrange_classes(self, groups: dict[str, list[str]]) -> None:
        """Takes one folder per class; holds out a fifth of each as the test set."""
        self.class_names = tuple(sorted(groups))
        train, test = [], []
        for label, name in enumerate(self.class_names):
            # Ranked by a hash of the name: neither the other classes nor the order on
            # disk matter, and a new image moves at most one other across the border.
            ranked = sorted(groups[name], key=self._rank)
            held_out = round(TEST_SHARE * len(ranked)) or int(len(ranked) > 1)
            test += [(path, label) for path in sorted(ranked[:held_out])]
            train += [(path, label) for path in sorted(ranked[held_out:])]
        self.splits["train"], self.splits["test"] = train, test
        self.notes.append(
            f"no test/ folder: a fixed fifth of every class is the test set "
            f"({len(test)} images), and is not trained on"
        )

    def _arrange_splits(self, groups: dict[str, list[str]]) -> None:
        """Takes the folders train, test (or val) and unlabeled."""
        test_name = next((name for name in _TEST_NAMES if name in groups), "")
        unused = [n for n in _TEST_NAMES if n in groups and n != test_name]
        if unused:
            self.notes.append(f"{', '.join(unused)} not used: {test_name} is the test")
        unlabeled = [p for n in _UNLABELED_NAMES for p in groups.get(n, ())]
        train = self._classes("train", groups)
        test = self._classes(test_name, groups)
        if "" in train:
            if test:
                raise UserError(
                    f"{os.path.join(self.folder, 'train')!r} holds images outside of "
                    f"class folders, but there is {test_name}/ too. Sort the images "
                    "into one folder per class, or move them to unlabeled/."
                )
            self.notes.append("train/ has no class folders: taken as unlabelled")
            unlabeled += [path for paths in train.values() for path in paths]
            train = {}
        unknown = sorted(set(test) - set(train))
        if unknown:
            name = unknown[0] or "image files outside of class folders"
            raise UserError(
                f"{os.path.join(self.folder, test_name)!r} holds {name!r}, which "
                "train/ does not. Both need the same class folders."
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
