"""Turns a source of images into a store under the cache folder, or finds it there.

A source (textures, a folder, a TFDS data set) has `splits` and `class_names`,
`count(split)`, `fingerprint()`, and `blocks(split, side)`: lists of (image or
`images.Unreadable`, label).
"""

import hashlib
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Iterator

import numpy as np

from tfsimclr.data import images, store, store_writer
from tfsimclr.errors import UserError

MAX_UNREADABLE = 0.01


def cache_folder(cache_dir: str) -> pathlib.Path:
    """Returns the cache folder, made; raises a ValueError if it cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = pathlib.Path(cache_dir or os.path.join(base, "tfsimclr")).expanduser()
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
    cache: pathlib.Path, name: str, data_dir: str, source, side: int, verbose: bool
) -> store.Store:
    """Returns the store of a source; made if it is missing, damaged or out of date.

    Raises:
        UserError: If too many images cannot be read, or the store not be written.
    """
    path = cache / _store_name(name, data_dir, side)
    fingerprint = f"{source.fingerprint()} {side}"
    try:
        opened = store.open(path, fingerprint)
        if opened.skipped and verbose:
            print(
                f"{len(opened.skipped)} unreadable images were left out of {path}.",
                file=sys.stderr,
            )
        return opened
    except FileNotFoundError:
        pass
    except store.InvalidStoreError as reason:
        print(f"The store {path} {reason}; it is made again.", file=sys.stderr)
    total = sum(source.count(split) for split in source.splits)
    needed, free = total * side * side * 3, shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"the store of {total} images of {side} x {side} pixels needs "
            f"{needed / 1e9:.1f} GB, but {str(cache)!r} has {free / 1e9:.1f} GB. "
            "Make room, name another --cache_dir or use a smaller --image_size."
        )
    skipped: list[str] = []
    try:
        return store_writer.create(
            path,
            _chunks(source, side, total, skipped, verbose),
            side,
            class_names=source.class_names,
            fingerprint=fingerprint,
            skipped=skipped,
        )
    except OSError as error:
        raise UserError(
            f"the store {str(path)!r} cannot be made: {error.strerror or error}. "
            "Make room or name another --cache_dir."
        ) from error


def _store_name(name: str, data_dir: str, side: int) -> str:
    place = os.path.realpath(os.path.expanduser(data_dir)) if data_dir else ""
    place = "" if name == "textures" else place
    digest = hashlib.sha256(os.fsencode(f"{name}\n{place}")).hexdigest()[:8]
    readable = re.sub(r"\W+", "_", name)
    return f"{readable}-{side}px-{digest}"


def _chunks(
    source, side: int, total: int, skipped: list[str], verbose: bool
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (split, images, labels); names and counts what cannot be read."""
    done, start, shown = 0, time.time(), 0.0
    for split in source.splits:
        for block in source.blocks(split, side):
            good = [
                row
                for row in block
                if not isinstance(row[0], images.UnreadableImageError)
            ]
            for error, _ in block:
                if isinstance(error, images.UnreadableImageError):
                    skipped.append(str(error))
                    print(f"unreadable, left out: {error}", file=sys.stderr)
            if len(skipped) > MAX_UNREADABLE * total:
                raise UserError(
                    f"more than {MAX_UNREADABLE:.0%} of the {total} images are "
                    f"unreadable ({len(skipped)} of the first {done + len(block)}), "
                    f"the last one {skipped[-1]}. Repair or remove them."
                )
            done += len(block)
            if verbose and (time.time() - shown > 0.5 or done == total):
                shown = time.time()
                _show_progress(done, total, shown - start)
            if good:
                pictures, labels = zip(*good, strict=True)
                yield split, np.stack(pictures), np.array(labels, np.int64)


def _show_progress(done: int, total: int, seconds: float) -> None:
    """Prints one line that overwrites itself; into a file only the last one."""
    if done == total or sys.stderr.isatty():
        rate = max(done, 1) / max(seconds, 1e-9)
        line = f"\rpreparing images: {done}/{total}, {rate:.0f} images/s"
        rest = "\n" if done == total else f", {(total - done) / rate:.0f} s left   "
        print(line, end=rest, file=sys.stderr, flush=True)
