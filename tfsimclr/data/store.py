"""A folder that holds a data set as one memory-mapped uint8 array, and its batches."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np

FORMAT = 1
_PIECE_BYTES = 1 << 24
_MAX_PIECES = 512


class InvalidStoreError(Exception):
    """A store that exists but is damaged or out of date; the message says how."""


@dataclasses.dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        images: Uint8 `[n, size, size, 3]`, memory-mapped, read-only.
        labels: Int64 `[n]`; -1 means no label.
        splits: Number of images of each split; the splits lie one after the other.
        class_names: Names of the classes 0, 1, ...
        skipped: One line for every image that was left out.
    """

    images: np.ndarray
    labels: np.ndarray
    splits: dict[str, int]
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]

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
        fingerprint: What `create` was given.
        verify: Whether to compare the checksums, of at most 8 GB: a second or two per
            2 GB.

    Raises:
        FileNotFoundError: If there is no store.
        Unusable: If the store is damaged, of another format, or made of something else.
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
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidStoreError(
            f"is damaged: {type(error).__name__}: {error}"
        ) from error


def digest(meta: dict) -> str:
    """Returns the checksum of a store's description."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def checksums(path: pathlib.Path, pieces: Iterable[int] | None = None) -> list[str]:
    """Returns the SHA-256 of the 16 MB pieces of a file: of all, or of those asked for.

    In pieces, so that all cores share the work, which is done whenever a store is
    opened.
    """

    def checksum(piece: int) -> str:
        with path.open("rb") as file:
            file.seek(piece * _PIECE_BYTES)
            return hashlib.sha256(file.read(_PIECE_BYTES)).hexdigest()

    if pieces is None:
        pieces = range(-(-path.stat().st_size // _PIECE_BYTES))
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(checksum, pieces))


def _is_whole(path: pathlib.Path, expected: list[str]) -> bool:
    """Compares up to 8 GB of a file, spread evenly, with its checksums."""
    count = len(expected)
    checked = min(count, _MAX_PIECES)
    pieces = [index * (count - 1) // max(1, checked - 1) for index in range(checked)]
    return checksums(path, pieces) == [expected[piece] for piece in pieces]
