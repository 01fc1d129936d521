"""Finds the store of a source in the cache folder, or prepares it there."""

import contextlib
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import platformdirs
import tqdm

from tfsimclr import files
from tfsimclr.data import depth, identity, images, store, store_writer, summary
from tfsimclr.errors import UserError

MAX_UNREADABLE = 0.01
MAX_NAMED = 5
_PLACES = "places.txt"  # stamps of the folders where a store's images were found


def cache_folder(cache_dir: str) -> pathlib.Path:
    """Returns the cache folder; creates it if need be.

    Raises:
        UserError: If it cannot be written.
    """
    default = platformdirs.user_cache_dir("tfsimclr")
    folder = pathlib.Path(cache_dir or default).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("not writable")
    except OSError as error:
        raise UserError(
            f"the cache folder {str(folder)!r} cannot be used: "
            f"{error.strerror or error}. Name another with --cache_dir."
        ) from error
    return folder


def open_or_make(
    cache: pathlib.Path,
    name: str,
    data_dir: str,
    source,
    side: int,
    verbose: bool,
    max_value: float | None = None,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> store.Store:
    """Returns the store of a source; prepares a missing, damaged or outdated one.

    A store in the cache folder is used wherever the images lie now, if it was made of
    the same ones.

    Args:
        cache: The cache folder.
        name: Name of the data set.
        data_dir: As the user named it.
        source: The `sources.Source`.
        side: Side of the stored images in pixels.
        verbose: Whether to print progress.
        max_value: Largest value of images with more than 8 bits; None takes the largest
            one of the data set.
        ranges: By `depth.kind`, the smallest and the largest value of other images,
            which are used in place of those of this data set.

    Raises:
        UserError: If too many images are unreadable, the store cannot be written, or
            `max_value` is given and all images have 8 bits.
    """
    scale = _scale(max_value, ranges)
    path = cache / _store_name(name, data_dir, side, scale)
    mark = _identity(name, source, side, max_value, scale if ranges else "")
    opened = _open(path, source, side, mark)
    others = cache.glob(f"{_readable(name)}-{side}px-*") if mark else ()
    for other in sorted(others):
        if opened is None and other != path and other.is_dir():
            with contextlib.suppress(store.InvalidStoreError):
                opened = _open_same(other, mark)
    if opened is not None:
        return opened
    return _make(path, source, side, verbose, mark, max_value, ranges or {})


def _make(
    path: pathlib.Path,
    source,
    side: int,
    verbose: bool,
    mark: identity.Identity | None,
    max_value: float | None,
    fixed: Mapping[str, Sequence[float]],
) -> store.Store:
    """Prepares the store at `path`; see `open_or_make`."""
    cache = path.parent
    total = sum(source.count(split) for split in source.splits)
    needed, free = total * side * side * 3, shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"the store of {total} images of {side} x {side} pixels needs "
            f"{needed / 1e9:.1f} GB, but {str(cache)!r} has {free / 1e9:.1f} GB. "
            "Make room, name another --cache_dir or use a smaller --image_size."
        )
    ranges = value_ranges(source.wide_facts, max_value)
    ranges.update({kind: depth.Range(*limits) for kind, limits in fixed.items()})
    facts, statistics = images.Facts(), summary.Statistics()
    skipped: list[str] = []
    extra: dict = {}

    def chunks():
        report = path.with_name(f"{path.name}-unreadable.txt")
        report.unlink(missing_ok=True)
        blocks = _chunks(
            source, side, total, skipped, verbose, ranges=ranges, facts=facts
        )
        for split, block, labels in blocks:
            if len(skipped) <= MAX_UNREADABLE * total:
                statistics.add(split, block)
                yield split, block, labels
        if len(skipped) > MAX_UNREADABLE * total:
            raise UserError(_too_many(skipped, total, report))
        extra["summary"] = {
            **statistics.result(),
            "wide": summary.wide_result(facts.wide, ranges),
            "several_frames": facts.several_frames,
        }
        if mark:
            extra["identity"] = mark.description(facts.checksums)

    try:
        opened = store_writer.create(
            path,
            chunks(),
            side,
            class_names=source.class_names,
            fingerprint=mark.stamp if mark else f"{source.fingerprint()} {side}",
            skipped=skipped,
            extra=extra,
        )
        _name_unreadable(opened.skipped, path / "unreadable.txt")
        return opened
    except OSError as error:
        raise UserError(
            f"the store {str(path)!r} cannot be written: {error.strerror or error}. "
            "Make room or name another --cache_dir."
        ) from error


def _open(path: pathlib.Path, source, side: int, mark) -> store.Store | None:
    """Returns the store at `path` if it is valid and of these images."""
    try:
        if not mark:
            return store.open(path, f"{source.fingerprint()} {side}")
        if path.exists() and "identity" not in store.read_meta(path):
            opened = store.open(path, f"{source.fingerprint()} {side}")
            if source.wide_facts(first=True).wide:
                raise store.InvalidStoreError(
                    "is of a version before 0.3, which scaled images of more than 8 "
                    "bits by the range of the file format"
                )
            return opened
        opened = _open_same(path, mark)
        if opened is None and path.exists():
            raise store.InvalidStoreError("was made of other data")
        return opened
    except FileNotFoundError:
        pass
    except store.InvalidStoreError as reason:
        print(f"The store {path} {reason}; it is prepared again.", file=sys.stderr)
    return None


def _open_same(path: pathlib.Path, mark: identity.Identity) -> store.Store | None:
    """Returns the store at `path`, or None if it is not of these files.

    Raises:
        InvalidStoreError: If it is damaged.
    """
    meta, places = store.read_meta(path), path / _PLACES
    kept = meta.get("identity")
    if not kept:
        return None
    try:
        stamps = places.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        stamps = []
    if not mark.may_match(kept):
        return None
    if not mark.surely_matches(kept, stamps):
        print(f"Comparing the checksums of the images with {path}.", file=sys.stderr)
        if mark.content() != kept["content"]:
            return None
    opened = store.open(path, meta["fingerprint"])
    if mark.stamp not in (kept["stamp"], *stamps):
        with contextlib.suppress(OSError):  # a cache that may only be read
            text = "".join(f"{stamp}\n" for stamp in (*stamps, mark.stamp))
            files.write_atomically(places, text.encode())
    return opened


def open_existing(
    cache: pathlib.Path,
    data_dir: str,
    source,
    side: int,
    max_value: float | None = None,
) -> store.Store | None:
    """Returns the store of a folder of images, or None if there is no valid one.

    Arguments are those of `open_or_make`. Nothing is prepared.
    """
    name = "folder"
    mark = _identity(name, source, side, max_value)
    path = cache / _store_name(name, data_dir, side, _scale(max_value))
    try:
        return _open_same(path, mark) if mark and path.is_dir() else None
    except store.InvalidStoreError:
        return None


def value_ranges(
    wide_facts: Callable[[bool], images.Facts], max_value: float | None
) -> dict[str, depth.Range]:
    """Returns the range of images with more than 8 bits, by `depth.kind`.

    Args:
        wide_facts: `wide_facts` of a source.
        max_value: The largest value, or None for that of the images.

    Raises:
        UserError: If `max_value` is given and all images have 8 bits.
    """
    wide = wide_facts(max_value is not None).wide
    if max_value is not None:
        if not wide:
            raise UserError(
                f"--max_value={max_value:g} means nothing to these images, which all "
                "have 8 bits. Leave it out."
            )
        return {k: depth.Range(0, max_value) for k in (depth.INTEGER, depth.FLOAT)}
    return {
        kind: depth.Range(min(0, low), high) for kind, (_, low, high) in wide.items()
    }


def _identity(
    name: str, source, side: int, max_value: float | None, ranges: str = ""
) -> identity.Identity | None:
    """Returns what tells the store of a source; None if its images are in no files.

    Arguments are those of `open_or_make`; `ranges` is the text of its ranges.
    """
    names, paths = source.files()
    if not paths:
        return None
    settings = repr((name, side, max_value, source.class_names)) + ranges
    return identity.Identity(names, paths, source.place, settings)


def _scale(
    max_value: float | None, ranges: Mapping[str, Sequence[float]] | None = None
) -> str:
    """Returns what a store's name has of the scale, if that is not the images' own."""
    scale = "" if max_value is None else f"\nmax_value={max_value}"
    return scale + (f"\nranges={sorted(ranges.items())}" if ranges else "")


def _store_name(name: str, data_dir: str, side: int, scale: str) -> str:
    path = os.path.realpath(os.path.expanduser(data_dir)) if data_dir else ""
    path = "" if name == "textures" else path
    digest = files.sha256(f"{name}\n{path}{scale}")[:8]
    return f"{_readable(name)}-{side}px-{digest}"


def _readable(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def _too_many(skipped: list[str], total: int, report: pathlib.Path) -> str:
    """Writes all unreadable images into `report`; returns the message of the error."""
    _list_unreadable(skipped, report)
    # A line is the repr of the path, a colon and the reason.
    reasons = [re.split("['\"]: ", line, maxsplit=1)[-1] for line in skipped]
    kinds = summary.unreadable_kinds(reasons)
    return (
        f"more than {MAX_UNREADABLE:.0%} of the {total} images are unreadable: "
        f"{len(skipped)} ({kinds}). The first are "
        f"{'; '.join(skipped[:MAX_NAMED])}. "
        + (f"All are listed in {str(report)!r}. " if report.exists() else "")
        + "Repair or remove them."
    )


def _name_unreadable(skipped: Sequence[str], report: pathlib.Path) -> None:
    """Prints the first unreadable images, and where all are listed."""
    for line in skipped[:MAX_NAMED]:
        print(f"unreadable, skipped: {line}", file=sys.stderr)
    _list_unreadable(skipped, report)
    if report.exists():
        print(f"All {len(skipped)} of them: {report}", file=sys.stderr)


def _list_unreadable(skipped: Sequence[str], path: pathlib.Path) -> None:
    """Writes a file with all unreadable images, if they are too many to be named."""
    if len(skipped) <= MAX_NAMED:
        return
    text = "".join(f"{line}\n" for line in skipped)
    with contextlib.suppress(OSError):
        files.write_atomically(path, text.encode(errors="backslashreplace"))


def _chunks(
    source, side: int, total: int, skipped: list[str], verbose: bool, **options
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (split, images, labels); the unreadable images go into `skipped`."""
    done = 0
    progress = tqdm.tqdm(
        total=total,
        desc="preparing images",
        unit=" images",
        disable=not (verbose and sys.stderr.isatty()),
    )
    with progress:
        for split in source.splits:
            for block in source.blocks(split, side, **options):
                readable = []
                for image, label in block:
                    if isinstance(image, images.UnreadableImageError):
                        skipped.append(str(image))
                    else:
                        readable.append((image, label))
                progress.update(len(block))
                done += len(block)
                if readable:
                    pictures, labels = zip(*readable, strict=True)
                    yield split, np.stack(pictures), np.array(labels, np.int64)
    if verbose and not sys.stderr.isatty():
        print(f"preparing images: {done}/{total}", file=sys.stderr, flush=True)
