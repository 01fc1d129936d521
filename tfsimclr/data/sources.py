"""Sources of images: the textures, a folder, or a data set of TensorFlow Datasets."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from tfsimclr.data import folder, textures, tfds
from tfsimclr.data.images import UnreadableImageError

TEXTURES_SIZE = 32


class Source(Protocol):
    """Images with labels, from which a store is prepared.

    Attributes:
        class_names: Names of the classes 0, 1, ...
        splits: The splits by name: `unlabeled`, `train`, `test`, or some of them.
        notes: How the source was interpreted, one sentence each, for the user.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def splits(self) -> Mapping: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def short_side(self) -> int:
        """Returns the (median) shorter side of the images in pixels."""

    def count(self, split: str) -> int:
        """Returns the number of images of a split, unreadable ones included."""

    def blocks(
        self, split: str, side: int
    ) -> Iterator[list[tuple[np.ndarray | UnreadableImageError, int]]]:
        """Yields lists of (uint8 image `[side, side, 3]` or error, label)."""

    def fingerprint(self) -> str:
        """Returns a text that changes if the images may have changed."""


class TexturesSource:
    """The embedded textures."""

    class_names = textures.CLASS_NAMES
    notes = ()

    @property
    def splits(self) -> Mapping:
        return textures.SPLITS

    def short_side(self) -> int:
        return TEXTURES_SIZE

    def count(self, split: str) -> int:
        return self.splits[split]

    def blocks(self, split: str, side: int) -> Iterator[list]:
        yield list(zip(*textures.make(split, side), strict=True))

    def fingerprint(self) -> str:
        return textures.VERSION


def source(name: str, data_dir: str) -> Source:
    """Returns the source of a data set.

    Args:
        name: `textures`, `folder`, or the name of a TFDS image data set.
        data_dir: The image folder, or the data folder of TFDS.

    Raises:
        UserError: If there is no such data set or folder.
    """
    if name == "textures":
        return TexturesSource()
    if name == "folder":
        return folder.FolderSource(data_dir)
    return tfds.TfdsSource(name, data_dir)
