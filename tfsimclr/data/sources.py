"""Sources of images: the textures, a folder, or a data set of TensorFlow Datasets."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from tfsimclr.data import depth, folder, textures, tfds
from tfsimclr.data.images import Facts, UnreadableImageError

TEXTURES_SIZE = 32


class Source(Protocol):
    """Images with labels, from which a store is prepared.

    Attributes:
        place: Folder of the images, or "".
        class_names: Names of the classes 0, 1, ...
        splits: The splits by name: `unlabeled`, `train`, `test`, or some of them.
        found: Number of images of each kind, or empty if the splits tell.
        left_aside: Number of files and images that are not used, by kind or name.
        notes: How the source was interpreted, one sentence each, for the user.
    """

    @property
    def place(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def splits(self) -> Mapping: ...

    @property
    def found(self) -> Mapping[str, int]: ...

    @property
    def left_aside(self) -> Mapping[str, int]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def short_side(self) -> int:
        """Returns the (median) shorter side of the images in pixels."""

    def count(self, split: str) -> int:
        """Returns the number of images of a split, unreadable ones included."""

    def blocks(
        self, split: str, side: int, ranges: dict[str, depth.Range], facts: Facts
    ) -> Iterator[list[tuple[np.ndarray | UnreadableImageError, int]]]:
        """Yields lists of (uint8 image `[side, side, 3]` or error, label).

        Args:
            split: Name of the split.
            side: In pixels.
            ranges: Range of images with more than 8 bits.
            facts: What is noticed about the images is added here.
        """

    def wide_facts(self, first: bool) -> Facts:
        """Returns the number and range of the images of more than 8 bits.

        Args:
            first: Whether to stop at the first one.
        """

    def files(self) -> tuple[list[str], list[str]]:
        """Returns a name and the path of every file; empty if there are no files."""

    def fingerprint(self) -> str:
        """Returns a text that changes if the images may have changed.

        For sources with files it is the text that stores of older versions hold.
        """


class TexturesSource:
    """The embedded textures."""

    place = ""
    class_names = textures.CLASS_NAMES
    found: Mapping[str, int] = {}
    left_aside: Mapping[str, int] = {}
    notes = ()

    @property
    def splits(self) -> Mapping:
        return textures.SPLITS

    def short_side(self) -> int:
        return TEXTURES_SIZE

    def count(self, split: str) -> int:
        return self.splits[split]

    def blocks(self, split: str, side: int, ranges: dict, facts: Facts) -> Iterator:
        yield list(zip(*textures.make(split, side), strict=True))

    def wide_facts(self, first: bool) -> Facts:
        return Facts()

    def files(self) -> tuple[list[str], list[str]]:
        return [], []

    def fingerprint(self) -> str:
        return textures.VERSION


def source(name: str, data_dir: str, label_key: str = "") -> Source:
    """Returns the source of a data set.

    Args:
        name: `textures`, `folder`, or the name of a TFDS image data set.
        data_dir: The image folder, or the data folder of TFDS.
        label_key: Feature of a TFDS data set that is the label; "" for its only one,
            "none" for none.

    Raises:
        UserError: If there is no such data set or folder.
    """
    if name == "textures":
        return TexturesSource()
    if name == "folder":
        return folder.FolderSource(data_dir)
    return tfds.TfdsSource(name, data_dir, label_key)
