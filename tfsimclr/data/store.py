"""The store: a folder that holds a data set as one memory-mapped uint8 array."""

import dataclasses
import json
import pathlib

import numpy as np

from tfsimclr import files

FORMAT = 1
_MAX_PIECES = 512


class InvalidStoreError(Exception):
    """The store is damaged or out of date; the message says which."""


@dataclasses.dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        images: Uint8 `[n, size, size, 3]`, memory-mapped, read-only.
        labels: Int64 `[n]`; -1 means no label.
        splits: Number of images of each split; the splits lie one after the other.
        class_names: Names of the classes 0, 1, ...
        skipped: One line for every unreadable image.
        summary: What was noticed about the images; empty in stores of versions before
            0.3.
    """

    images: np.ndarray
    labels: np.ndarray
    splits: dict[str, int]
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]
    summary: dict = dataclasses.field(default_factory=dict)

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the images and labels of one split, or None if there is none."""
        if not self.splits.get(name):
            return None
        names = list(self.splits)
        start = sum(self.splits[other] for other in names[: names.index(name)])
        rows = slice(start, start + self.splits[name])
        return self.images[rows], self.labels[rows]


def open(path: str | pathlib.Path, fingerprint: str = "", verify: bool = True) -> Store:
    """Opens the store at `path` and checks it.

    Args:
        path: Folder of the store.
        fingerprint: As given to `store_writer.create`.
        verify: Whether to compare the checksums, of at most 8 GB: a second or two per
            2 GB.

    Raises:
        FileNotFoundError: If there is no store.
        InvalidStoreError: If the store is damaged, or of another format or other data.
    """
    folder = pathlib.Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"no store at {folder}")
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise InvalidStoreError(f"has format {meta['format']}, expected {FORMAT}")
        if meta["fingerprint"] != fingerprint:
            raise InvalidStoreError("was made of other data or with other settings")
        if meta.pop("digest") != digest(meta):
            raise InvalidStoreError("is damaged: meta.json does not match its checksum")
        for name, expected in meta["checksums"].items() if verify else ():
            if not _is_whole(folder / name, expected):
                raise InvalidStoreError(
                    f"is damaged: {name} does not match its checksums"
                )
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
        shape = (meta["count"], meta["size"], meta["size"], 3)
        if images.shape != shape or images.dtype != np.uint8:
            raise InvalidStoreError(
                f"is damaged: images are {images.shape}, expected {shape}"
            )
        if labels.shape != shape[:1] or labels.dtype != np.int64:
            raise InvalidStoreError(f"is damaged: labels are {labels.shape}")
        return Store(
            images=images,
            labels=labels,
            splits=meta["splits"],
            class_names=tuple(meta["class_names"]),
            skipped=tuple(meta["skipped"]),
            summary=meta.get("summary", {}),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidStoreError(
            f"is damaged: {type(error).__name__}: {error}"
        ) from error


def read_meta(path: str | pathlib.Path) -> dict:
    """Returns the description of the store at `path`; empty if it is damaged."""
    try:
        text = (pathlib.Path(path) / "meta.json").read_text(encoding="utf-8")
        meta = json.loads(text)
        checksum = meta.pop("digest")
        return meta if checksum == digest(meta) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def digest(meta: dict) -> str:
    """Returns the checksum of the content of meta.json."""
    return files.sha256(json.dumps(meta, sort_keys=True))


def _is_whole(path: pathlib.Path, expected: list[str]) -> bool:
    """Compares up to 8 GB of a file, spread evenly, with its checksums."""
    count = len(expected)
    checked = min(count, _MAX_PIECES)
    pieces = [index * (count - 1) // max(1, checked - 1) for index in range(checked)]
    return files.sha256_of_pieces(path, pieces) == [expected[piece] for piece in pieces]
