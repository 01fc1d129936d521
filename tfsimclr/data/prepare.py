"""Finds the store of a source in the cache folder, or prepares it there."""

import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator

import numpy as np
import platformdirs
import tqdm

from tfsimclr import files
from tfsimclr.data import images, store, store_writer
from tfsimclr.errors import UserError

MAX_UNREADABLE = 0.01


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
    cache: pathlib.Path, name: str, data_dir: str, source, side: int, verbose: bool
) -> store.Store:
    """Returns the store of a source; prepares a missing, damaged or outdated one.

    Raises:
        UserError: If too many images are unreadable, or the store cannot be written.
    """
    path = cache / _store_name(name, data_dir, side)
    fingerprint = f"{source.fingerprint()} {side}"
    try:
        opened = store.open(path, fingerprint)
        if opened.skipped and verbose:
            print(
                f"{len(opened.skipped)} unreadable images are not in {path}.",
                file=sys.stderr,
            )
        return opened
    except FileNotFoundError:
        pass
    except store.InvalidStoreError as reason:
        print(f"The store {path} {reason}; it is prepared again.", file=sys.stderr)
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
            f"the store {str(path)!r} cannot be written: {error.strerror or error}. "
            "Make room or name another --cache_dir."
        ) from error


def _store_name(name: str, data_dir: str, side: int) -> str:
    path = os.path.realpath(os.path.expanduser(data_dir)) if data_dir else ""
    path = "" if name == "textures" else path
    digest = files.sha256(f"{name}\n{path}")[:8]
    readable = re.sub(r"\W+", "_", name)
    return f"{readable}-{side}px-{digest}"


def _chunks(
    source, side: int, total: int, skipped: list[str], verbose: bool
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (split, images, labels); names the unreadable images on stderr."""
    done = 0
    progress = tqdm.tqdm(
        total=total,
        desc="preparing images",
        unit=" images",
        disable=not (verbose and sys.stderr.isatty()),
    )
    with progress:
        for split in source.splits:
            for block in source.blocks(split, side):
                readable = []
                for image, label in block:
                    if isinstance(image, images.UnreadableImageError):
                        skipped.append(str(image))
                        tqdm.tqdm.write(
                            f"unreadable, skipped: {image}", file=sys.stderr
                        )
                    else:
                        readable.append((image, label))
                progress.update(len(block))
                done += len(block)
                if len(skipped) > MAX_UNREADABLE * total:
                    raise UserError(
                        f"more than {MAX_UNREADABLE:.0%} of the {total} images are "
                        f"unreadable ({len(skipped)} of the first {done}), the "
                        f"last one {skipped[-1]}. Repair or remove them."
                    )
                if readable:
                    pictures, labels = zip(*readable, strict=True)
                    yield split, np.stack(pictures), np.array(labels, np.int64)
    if verbose and not sys.stderr.isatty():
        print(f"preparing images: {done}/{total}", file=sys.stderr, flush=True)
