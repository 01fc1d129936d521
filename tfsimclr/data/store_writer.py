"""Writes a store, so that a killed process leaves it complete or absent."""

import io
import json
import os
import pathlib
import shutil
import socket
import uuid
from collections.abc import Iterable, Mapping

import numpy as np

from tfsimclr import files
from tfsimclr.data import store
from tfsimclr.errors import UserError

_HEADER_BYTES = 128


def create(
    path: str | pathlib.Path,
    chunks: Iterable[tuple[str, np.ndarray, np.ndarray]],
    size: int,
    *,
    class_names: Iterable[str] = (),
    fingerprint: str = "",
    skipped: Iterable[str] = (),
    extra: Mapping | None = None,
) -> store.Store:
    """Writes the store at `path` and opens it; replaces an invalid one.

    Everything is written into a folder beside `path`, which is renamed at the end. A
    killed process therefore leaves a complete store or none. If another process has
    written the same store meanwhile, that one is used and this one deleted.

    Args:
        path: Folder of the store. Parent folders are created.
        chunks: Triples (split, uint8 images `[k, size, size, 3]`, int labels `[k]`);
            the chunks of a split follow each other.
        size: Side of the images in pixels.
        class_names: Names of the classes 0, 1, ...
        fingerprint: Identifies the source's images; `open` compares it.
        skipped: One line for every unreadable image; read after the last chunk.
        extra: More entries of meta.json; read after the last chunk.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    work = _beside(target)
    work.mkdir()
    try:
        splits, labels = _write_images(work / "images.npy", chunks, size)
        with (work / "labels.npy").open("wb") as file:
            np.save(file, labels)
            files.flush(file)
        meta = {
            "format": store.FORMAT,
            "count": len(labels),
            "size": size,
            "splits": splits,
            "class_names": list(class_names),
            "fingerprint": fingerprint,
            "skipped": list(skipped),
            "checksums": {
                name: files.sha256_of_pieces(work / name)
                for name in ("images.npy", "labels.npy")
            },
            **(extra or {}),
        }
        with (work / "meta.json").open("w", encoding="utf-8") as file:
            json.dump({**meta, "digest": store.digest(meta)}, file, indent=1)
            files.flush(file)
        # Opened before the rename: mapped files stay readable under any name.
        opened = store.open(work, fingerprint, verify=False)
        files.flush_folder(work)
        published = _publish(work, target, fingerprint)
        return opened if published else store.open(target, fingerprint)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_images(
    path: pathlib.Path, chunks: Iterable[tuple[str, np.ndarray, np.ndarray]], size: int
) -> tuple[dict[str, int], np.ndarray]:
    """Writes images.npy; returns the number of images per split, and all labels."""
    splits: dict[str, int] = {}
    labels: list[np.ndarray] = [np.zeros(0, np.int64)]
    with path.open("wb") as file:
        file.write(bytes(_HEADER_BYTES))  # the count is known at the end
        for split, images, chunk_labels in chunks:
            expected = (len(chunk_labels), size, size, 3)
            if images.shape != expected or images.dtype != np.uint8:
                raise UserError(
                    f"expected uint8 images of shape {expected}, "
                    f"got {images.dtype} of shape {images.shape}."
                )
            if split in splits and split != list(splits)[-1]:
                raise UserError(f"the chunks of split {split!r} must be adjacent.")
            splits[split] = splits.get(split, 0) + len(images)
            labels.append(np.asarray(chunk_labels, np.int64))
            file.write(np.ascontiguousarray(images).data)
        file.seek(0)
        file.write(_header((sum(splits.values()), size, size, 3)))
        files.flush(file)
    return splits, np.concatenate(labels)


def _header(shape: tuple[int, ...]) -> bytes:
    """Returns the header of a uint8 .npy file of format 1.0, always 128 bytes long."""
    header = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    content = header.getvalue()
    if len(content) != _HEADER_BYTES:
        raise RuntimeError(f"the .npy header of shape {shape} has {len(content)} bytes")
    return content


def _beside(target: pathlib.Path) -> pathlib.Path:
    """Returns an unused path beside `target`, with this process in its name."""
    owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return target.with_name(f".{target.name}.{owner}")


def _publish(work: pathlib.Path, target: pathlib.Path, fingerprint: str) -> bool:
    """Renames `work` to `target`; returns False if there is a valid store."""
    while True:
        try:
            work.rename(target)  # fails where `target` is a folder that is not empty
            files.flush_folder(target.parent)
            return True
        except OSError:
            if not target.exists():
                raise
        try:
            store.open(target, fingerprint)
            return False
        except (FileNotFoundError, store.InvalidStoreError):
            _move_away(target)


def _move_away(target: pathlib.Path) -> None:
    old = _beside(target)
    try:
        target.rename(old)
    except FileNotFoundError:
        return  # another process was faster
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink()


def _remove_leftovers(target: pathlib.Path) -> None:
    """Removes temporary folders of this machine's dead processes beside `target`."""
    prefix = f".{target.name}.{socket.gethostname()}-"
    for path in target.parent.iterdir():
        process = path.name.removeprefix(prefix).split("-")[0]
        temporary = path.name.startswith(prefix) and process.isdigit()
        if temporary and not _alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and belongs to another user
        return True
    return True
