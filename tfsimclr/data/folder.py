"""A folder of image files as a data set: which files are which split and class."""

import collections
import hashlib
import os
from collections.abc import Iterator

import numpy as np

from tfsimclr.data import depth, images, sampling
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
        place: The folder.
        class_names: Sorted names of the class folders.
        splits: Split name -> list of (path, label).
        found: Number of image files by extension.
        left_aside: Number of other files by extension, and of folders and images that
            are not used by name.
        notes: How the folder was interpreted, for the user.
    """

    def __init__(self, folder: str):
        self.folder = os.path.abspath(os.path.expanduser(folder))
        self.place = self.folder
        self.class_names: tuple[str, ...] = ()
        self.notes: list[str] = []
        self.splits: dict[str, list[tuple[str, int]]] = {}
        if not folder or not os.path.isdir(self.folder):
            raise UserError(
                f"--dataset=folder needs --data_dir=FOLDER, got {folder!r}, which is "
                "not a folder."
            )
        paths, self.left_aside = images.find(self.folder)
        self.found = collections.Counter(
            os.path.splitext(path)[1].lower() for path in paths
        )
        if not paths:
            others = ", ".join(f"{n} {name}" for name, n in self.left_aside.items())
            raise UserError(
                f"no image files below {self.folder!r}. Expected files that end in "
                f"{' '.join(sorted(images.EXTENSIONS))}"
                + (f"; it holds {others}." if others else ".")
            )
        self._arrange(_by_first_folder(self.folder, paths))
        self.splits = {name: files for name, files in self.splits.items() if files}
        if not self.splits:
            raise UserError(
                f"{self.folder!r} holds only a test set without labels. Name that "
                "folder itself with --data_dir to use its images."
            )

    def count(self, split: str) -> int:
        return len(self.splits[split])

    def blocks(
        self,
        split: str,
        side: int,
        ranges: dict[str, depth.Range],
        facts: images.Facts,
    ) -> Iterator[list]:
        """Yields lists of (image or `UnreadableImageError`, label)."""
        rows = ((path, path, label) for path, label in self.splits[split])
        return images.read_all(rows, side, ranges=ranges, facts=facts)

    def wide_facts(self, first: bool) -> images.Facts:
        """Returns the range of the images of more than 8 bits; see `images`."""
        paths = (path for files in self.splits.values() for path, _ in files)
        return images.wide_facts(((path, path) for path in paths), first)

    def files(self) -> tuple[list[str], list[str]]:
        """Returns names that tell split, label and place in the folder; and paths."""
        rows = [
            (split, label, path)
            for split, files in self.splits.items()
            for path, label in files
        ]
        names = [
            f"{split} {label} {os.path.relpath(path, self.folder)}"
            for split, label, path in rows
        ]
        return names, [path for _, _, path in rows]

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
        """Returns the digest that stores of versions before 0.3 hold.

        Of absolute names, labels, sizes and modification times.
        """
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
            others = names - splits
            train_name = self._first(_TRAIN_NAMES, groups)
            if set(self._classes(train_name, groups)) == {""}:
                beside = ", ".join(sorted(others)[:_MAX_NAMED]) or "image files"
                raise UserError(
                    f"{self.folder!r} holds {', '.join(sorted(splits))} without class "
                    f"folders beside {beside}: either all are splits (train, test, "
                    "unlabeled) or all are classes. Name a folder of one kind with "
                    "--data_dir."
                )
            for name in sorted(others):
                self._leave_aside(f"images in {name}/", groups.pop(name))
            self._leave_aside("images outside of folders", groups.pop("", []))
            self._arrange_splits(groups)
        elif len(names) < 2 or len(groups.get("", ())) > _LOOSE_SHARE * total:
            if names:
                self.notes.append(
                    "the images are not sorted into two or more class folders: "
                    "all are used without labels"
                )
            files = sorted(path for paths in groups.values() for path in paths)
            self.splits["unlabeled"] = [(path, -1) for path in files]
        else:
            self._leave_aside("images outside of class folders", groups.pop("", []))
            self._refuse_equal_subfolders(groups)
            self._arrange_classes(groups)

    def _leave_aside(self, name: str, paths: list[str]) -> None:
        if paths:
            self.left_aside[name] += len(paths)

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
            f"no labelled test/ folder: a fixed fifth of every class is the test set "
            f"({len(test)} images), and is not trained on"
            if test
            else "no class has two images or more, so there is no test set"
        )

    def _arrange_splits(self, groups: dict[str, list[str]]) -> None:
        """Takes the folders train, test (or val) and unlabeled."""
        train_name = self._first(_TRAIN_NAMES, groups, note=True)
        unlabeled = [
            path
            for name, paths in groups.items()
            if name.lower() in _UNLABELED_NAMES
            for path in paths
        ]
        train = self._without_loose(train_name, self._classes(train_name, groups))
        test_name, test = self._test_set(groups, train)
        if "" in train:
            if test:
                raise UserError(
                    f"{os.path.join(self.folder, train_name)!r} holds images outside "
                    f"of class folders, but there is {test_name}/ too. Sort the images "
                    "into one folder per class, or name them unlabeled/."
                )
            self.notes.append(
                f"{train_name}/ has no class folders: its images have no labels"
            )
            unlabeled += [path for paths in train.values() for path in paths]
            train = {}
        unknown = sorted(set(test) - set(train))
        strange = sum(len(test[name]) for name in unknown)
        if strange > _LOOSE_SHARE * sum(map(len, test.values())):
            raise UserError(
                f"{os.path.join(self.folder, test_name)!r} holds {unknown[0]!r}, which "
                f"{train_name}/ does not. Both need the same class folders."
            )
        for name in unknown:
            self._leave_aside(f"images in {test_name}/{name}/", test.pop(name))
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

    def _test_set(self, groups: dict, train: dict) -> tuple[str, dict[str, list[str]]]:
        """Returns the name and the classes of the test set.

        The first folder with class folders; others are not used, which is noted. A
        folder without class folders is an unlabelled test set, as in competitions.
        """
        names = [
            group
            for name in _TEST_NAMES
            for group in sorted(groups)
            if group.lower() == name
        ]
        chosen: tuple[str, dict[str, list[str]]] = ("", {})
        for name in names:
            classes = self._without_loose(name, self._classes(name, groups))
            only = next(iter(classes))
            # Some tools need one folder inside: test/unknown/.
            is_flat = len(classes) == 1 and only not in train and len(train) > 1
            if is_flat or ("" in classes and not chosen[0] and "" not in train):
                where = f"{name}/{only}/" if only else f"{name}/"
                self.notes.append(f"{where} has no class folders, so no labels")
                self._leave_aside(f"images in {where}", groups[name])
            elif chosen[0]:
                self.notes.append(f"{name} not used: {chosen[0]} is the test set")
                self._leave_aside(f"images in {name}/", groups[name])
            else:
                chosen = name, classes
        return chosen

    def _without_loose(self, name: str, classes: dict) -> dict[str, list[str]]:
        """Leaves a few images beside class folders aside."""
        loose, total = classes.get("", []), sum(map(len, classes.values()))
        if len(classes) > 1 and 0 < len(loose) <= _LOOSE_SHARE * total:
            self._leave_aside(f"images outside of class folders in {name}/", loose)
            return {key: paths for key, paths in classes.items() if key}
        return classes

    def _first(self, names: tuple[str, ...], groups: dict, note: bool = False) -> str:
        """Returns the folder with the first of the names, or "" if there is none.

        Args:
            names: Names in lower case, in order of preference.
            groups: By folder name.
            note: Whether to note that other folders with such a name are not used.
        """
        present = [g for name in names for g in sorted(groups) if g.lower() == name]
        if len(present) > 1 and note:
            self.notes.append(
                f"{', '.join(present[1:])} not used: {present[0]} is the {names[0]} set"
            )
            for name in present[1:]:
                self._leave_aside(f"images in {name}/", groups[name])
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
