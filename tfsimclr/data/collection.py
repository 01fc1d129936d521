"""Collections: images with a path each, read in order as square arrays."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tfsimclr import files
from tfsimclr.data import dataset as datasets
from tfsimclr.data import depth, images, prepare, sampling, store
from tfsimclr.data import folder as folder_source
from tfsimclr.errors import UserError

_SAMPLE = 200  # images whose short side is looked at
_COMPARED = 512  # images of a split of a data set that tell whether it has changed
_NAMED = 5  # kinds of other files


@dataclasses.dataclass(frozen=True)
class Batch:
    """Consecutive images of a collection, without the unreadable ones.

    Attributes:
        rows: Position of each image in the collection, int64 `[b]`.
        images: Uint8 `[b, side, side, 3]`.
        unreadable: One line for each unreadable image.
        stop: Position after the last image, readable or not.
    """

    rows: np.ndarray
    images: np.ndarray
    unreadable: tuple[str, ...]
    stop: int


@dataclasses.dataclass(frozen=True)
class Collection:
    """Images with a path each.

    Attributes:
        name: Folder, file or data set, as text.
        paths: Path of each image; of a data set `<name>/<split>/<number>`.
        splits: Split of each image, or "".
        labels: Class name of each image, or None.
        side: Side in pixels as which the images are read.
        fingerprint: Changes if the images may have changed.
        notes: How the images were interpreted, for the user.
        ranges: By `depth.kind`, the range of images with more than 8 bits.
        stored: The prepared images, one after the other as arrays `[m, side, side, 3]`;
            empty if they are decoded as they are needed.
        stored_rows: Position in the collection of each prepared image, int64 `[m]`;
            those of unreadable images are missing.
    """

    name: str
    paths: Sequence[str]
    splits: Sequence[str]
    labels: Sequence[str | None]
    side: int
    fingerprint: str
    notes: tuple[str, ...] = ()
    ranges: Mapping[str, depth.Range] = dataclasses.field(default_factory=dict)
    stored: Sequence[np.ndarray] = ()
    stored_rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, size: int, start: int = 0) -> Iterator[Batch]:
        """Yields the images from position `start` on.

        A batch covers `size` positions, so that it does not depend on where a reader
        started, as long as `start` is a multiple of `size`.
        """
        if self.stored:
            yield from self._stored_batches(size, start)
            return
        rows = ((path, path, -1) for path in self.paths[start:])
        pending: list = []
        for block in images.read_all(rows, self.side, ranges=dict(self.ranges)):
            pending += [image for image, _ in block]
            while len(pending) >= size:
                yield self._decoded(pending[:size], start)
                start, pending = start + size, pending[size:]
        if pending:
            yield self._decoded(pending, start)

    def pictures(self, rows: Sequence[int], side: int) -> list[np.ndarray | None]:
        """Returns single images, uint8 `[side, side, 3]`, for display.

        An image that is gone or unreadable is None. Prepared images have their own
        side.
        """
        result: list[np.ndarray | None] = []
        for row in rows:
            if self.stored:
                place = int(np.searchsorted(self.stored_rows, row))
                result.append(self._slice(place, place + 1)[0])
            else:
                result.append(picture(self.paths[row], side, self.ranges))
        return result

    def _decoded(self, results: list, start: int) -> Batch:
        """Returns the batch of decoded images and errors from position `start` on."""
        errors = [r for r in results if isinstance(r, images.UnreadableImageError)]
        readable = [
            row
            for row, image in enumerate(results)
            if not isinstance(image, images.UnreadableImageError)
        ]
        arrays = np.zeros((len(readable), self.side, self.side, 3), np.uint8)
        for i, row in enumerate(readable):
            arrays[i] = results[row]
        return Batch(
            np.array(readable, np.int64) + start,
            arrays,
            tuple(map(str, errors)),
            start + len(results),
        )

    def _stored_batches(self, size: int, start: int) -> Iterator[Batch]:
        missing = set(range(len(self))) - set(self.stored_rows.tolist())
        for first in range(start, len(self), size):
            stop = min(first + size, len(self))
            low, high = np.searchsorted(self.stored_rows, (first, stop))
            yield Batch(
                self.stored_rows[low:high],
                self._slice(low, high),
                tuple(
                    f"{self.paths[row]!r}: unreadable when the images were prepared"
                    for row in range(first, stop)
                    if row in missing
                ),
                stop,
            )

    def _slice(self, low: int, high: int) -> np.ndarray:
        """Returns the prepared images low, ..., high - 1."""
        pieces = []
        for part in self.stored:
            pieces.append(part[max(0, low) : max(0, high)])
            low, high = low - len(part), high - len(part)
        return np.concatenate(pieces)


def picture(
    path: str, side: int, ranges: Mapping[str, depth.Range] | None = None
) -> np.ndarray | None:
    """Returns the image of a file, uint8 `[side, side, 3]`, or None without one."""
    try:
        return images.read(path, side, ranges=dict(ranges or {}))
    except images.UnreadableImageError:
        return None


def open_collection(
    name: str,
    image_size: int,
    *,
    data_dir: str = "",
    cache_dir: str = "",
    label_key: str = "",
    max_value: float | None = None,
) -> Collection:
    """Returns the images of a folder, of a file, or of a data set.

    The images of a folder come from its store where a run has prepared one, and are
    decoded as they are needed otherwise. They are read with the side of a training run:
    a third above `image_size`, at most the median short side.

    Args:
        name: Path of a folder or of an image file; `textures`, or a TFDS image data
            set. A path that exists goes before a data set.
        image_size: Side of the model's input in pixels.
        data_dir: The folder of TFDS.
        cache_dir: Where stores are kept.
        label_key: Feature of a TFDS data set that is the label.
        max_value: Largest value of images with more than 8 bits; None takes the largest
            one of the images.

    Raises:
        UserError: If there are no images, or none can be read.
    """
    path = os.path.abspath(os.path.expanduser(name))
    is_path = "\0" not in name  # which the operating system would refuse
    if is_path and os.path.isdir(path):
        return _folder(path, image_size, cache_dir, max_value)
    if is_path and os.path.exists(path):
        return from_paths([path], image_size, max_value=max_value)
    if not is_path or os.sep in name or os.path.splitext(name)[1]:
        raise UserError(
            f"{name!r} does not exist. Expected a folder of images, an image file, or "
            "the name of a data set."
        )
    options = {"label_key": label_key, "max_value": max_value}
    return _data_set(name, image_size, data_dir, cache_dir, options)


def open_queries(
    name: str, side: int, ranges: Mapping[str, depth.Range] | None = None
) -> Collection:
    """Returns the images of a folder or file, read as those of another collection.

    Args:
        name: Path of a folder or of an image file.
        side: Side in pixels as which they are read.
        ranges: By `depth.kind`, the range of images with more than 8 bits.

    Raises:
        UserError: If there is no image.
    """
    path = os.path.abspath(os.path.expanduser(name))
    if "\0" in name or not os.path.exists(path):
        raise UserError(f"{name!r} does not exist. Expected an image or a folder.")
    paths = _find(path)[0] if os.path.isdir(path) else [path]
    return _of_files(path, paths, side, ranges or {})


def from_paths(
    paths: Sequence[str],
    image_size: int,
    *,
    name: str = "",
    max_value: float | None = None,
) -> Collection:
    """Returns the images of files, without labels; see `open_collection`.

    Raises:
        UserError: If there is no path, or none of the images can be read.
    """
    paths = [os.fspath(path) for path in paths]
    if not paths:
        raise UserError("there are no images to read: the list of paths is empty.")
    rng = np.random.default_rng(0)
    ordered = sorted(paths)
    sample = rng.choice(len(paths), min(_SAMPLE, len(paths)), replace=False)
    short_side = images.median_short_side((ordered[i], ordered[i]) for i in sample)
    side = datasets.store_side(short_side, image_size)
    pairs = [(path, path) for path in paths]
    ranges = prepare.value_ranges(lambda f: images.wide_facts(pairs, f), max_value)
    name = name or (paths[0] if len(paths) == 1 else f"{len(paths)} files")
    return _of_files(name, paths, side, ranges)


def from_array(array: np.ndarray) -> Collection:
    """Returns the images of an array `[n, H, W, 3]` in 0-255; paths are the numbers.

    Raises:
        UserError: If it is of another shape or range, or empty.
    """
    if array.ndim != 4 or array.shape[3] != 3 or not len(array):
        raise UserError(
            "images must be [n, H, W, 3] with n of at least 1, got "
            f"{list(array.shape)}."
        )
    if array.dtype != np.uint8:
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
            raise UserError("the pixels of the images must be finite and in 0-255.")
        array = np.round(array).astype(np.uint8)
    count = len(array)
    return Collection(
        "array",
        [str(row) for row in range(count)],
        [""] * count,
        [None] * count,
        min(array.shape[1:3]),
        files.sha256(repr(array.shape), array),
        stored=[array],
        stored_rows=np.arange(count),
    )


def _find(folder: str) -> tuple[list[str], str]:
    """Returns the image files below a folder, and a text of the other files."""
    found, others = images.find(folder)
    named = ", ".join(f"{count} {kind}" for kind, count in others.most_common(_NAMED))
    if not found:
        raise UserError(
            f"no image files below {folder!r}. Expected files that end in "
            + " ".join(sorted(images.EXTENSIONS))
            + (f"; found {named}." if named else ".")
        )
    return found, named


def _of_files(name, paths: Sequence[str], side: int, ranges) -> Collection:
    return Collection(
        name,
        paths,
        [""] * len(paths),
        [None] * len(paths),
        side,
        _fingerprint(paths),
        ranges=ranges,
    )


def _fingerprint(paths: Sequence[str]) -> str:
    """Returns what changes if the files may have changed."""
    # In parts, so that the texts of a million files are not in memory at once.
    parts = (paths[i : i + 1000] for i in range(0, len(paths), 1000))
    return files.sha256(*(files.sha256(*map(_state, part)) for part in parts))


def _state(path: str) -> str:
    """Returns a file's path, size and modification time as text."""
    try:
        status = os.stat(path)
    except OSError:  # a broken link; it is named when it is read
        return repr((path, -1, -1))
    return repr((path, status.st_size, status.st_mtime_ns))


def _folder(
    path: str, image_size: int, cache_dir: str, max_value: float | None
) -> Collection:
    found, others = _find(path)
    notes = (f"not used: {others}",) if others else ()
    try:
        source = folder_source.FolderSource(path)
    except UserError as error:
        note = f"used without splits and labels: {str(error).rstrip('.')}"
        plain = from_paths(found, image_size, name=path, max_value=max_value)
        return dataclasses.replace(plain, notes=(*notes, note))
    rows: list[tuple[str, str, str | None]] = [
        (image, split, source.class_names[label] if label >= 0 else None)
        for split, members in source.splits.items()
        for image, label in members
    ]
    known = {image for image, _, _ in rows}
    rows += [(image, "", None) for image in found if image not in known]
    paths, splits, labels = (list(column) for column in zip(*rows, strict=True))
    # Read as a run on this folder reads them.
    side = datasets.store_side(source.short_side(), image_size)
    ranges = prepare.value_ranges(source.wide_facts, max_value)
    collection = dataclasses.replace(
        _of_files(path, paths, side, ranges), splits=splits, labels=labels, notes=notes
    )
    if len(known) < len(rows):  # a run leaves some of the images aside
        return collection
    cache = prepare.cache_folder(cache_dir)
    opened = prepare.open_existing(cache, path, source, side, max_value)
    return collection if opened is None else _with_store(collection, opened)


def _with_store(collection: Collection, opened: store.Store) -> Collection:
    """Returns the collection with the prepared images of the same files."""
    positions = {repr(path): row for row, path in enumerate(collection.paths)}
    skipped = set()
    for line in opened.skipped:  # "'<path>': <reason>", where a path may hold colons
        ends = (match.start() for match in re.finditer(": ", line))
        names = (line[:end] for end in ends)
        skipped |= {positions[name] for name in names if name in positions}
    rows = [row for row in range(len(collection)) if row not in skipped]
    if len(rows) != len(opened.images):
        return collection  # decoded again, which is slower and cannot be wrong
    return dataclasses.replace(
        collection, stored=[opened.images], stored_rows=np.array(rows, np.int64)
    )


def _data_set(
    name: str, image_size: int, data_dir: str, cache_dir: str, options: dict
) -> Collection:
    try:
        loaded = datasets.load(
            name,
            data_dir=data_dir,
            image_size=image_size,
            cache_dir=cache_dir,
            **options,
        )
    except UserError as error:
        raise UserError(
            f"{name!r} is no folder or image file, and as a data set: {error}"
        ) from error
    every = {name: getattr(loaded, name) for name in ("unlabeled", "train", "test")}
    parts = {split: part for split, part in every.items() if part is not None}
    pixels = [part.images for part in parts.values()]
    classes = loaded.class_names
    count = sum(map(len, pixels))
    samples = (part[sampling.evenly_spread(len(part), _COMPARED)] for part in pixels)
    return Collection(
        name,
        [f"{name}/{s}/{i}" for s, p in parts.items() for i in range(len(p.images))],
        [split for split, part in parts.items() for _ in range(len(part.images))],
        [
            classes[n] if 0 <= n < len(classes) else None
            for part in parts.values()
            for n in part.labels
        ],
        pixels[0].shape[1],
        files.sha256(repr((name, [part.shape for part in pixels])), *samples),
        stored=pixels,
        stored_rows=np.arange(count),
    )
