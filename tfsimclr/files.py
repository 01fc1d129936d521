"""Atomic files and folders, checksums, and the errors of a full or broken disk.

Everything the package writes goes through this module, so that a process killed at any
moment leaves each file either complete under its name or absent.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO, TextIO

import numpy as np

PIECE_BYTES = 1 << 24

# An unfinished file or folder; the second pattern is that of version 0.1's exports.
_LEFTOVERS = (".partial-*", ".saved_model-*")
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
)
# What a file system answers to an operation that it does not have. Samba, FUSE and
# some network disks cannot flush a folder, and FAT has no permissions to set.
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def disk_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns every error of writing to `path` inside the block into a clear OSError.

    The OSError has the number of the cause and the path. TensorFlow raises the same
    exception for a full disk and for exhausted memory, so the cause is read from the
    operating system's message inside its text. NumPy gives no cause at all.

    Raises:
        OSError: If the block failed because of the disk. Other exceptions pass through.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("tensorflow."):
            messages = {os.strerror(number): number for number in _DISK_ERRORS}
            number = next(
                (messages[text] for text in messages if text in str(error)), None
            )
        elif isinstance(error, OSError) and error.filename is None:
            # np.save raises "1000 requested and 616 written" without a number.
            number = error.errno or errno.ENOSPC
        else:
            number = None
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes a file so that it is either complete under its name or not there.

    Args:
        path: The file; an existing one is replaced.
        content: All of its bytes.

    Raises:
        OSError: If it cannot be written; the old file is unchanged then, and no
            temporary file is left.
    """
    with atomic_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_file(
    path: pathlib.Path, folder: pathlib.Path | None = None
) -> Iterator[BinaryIO]:
    """Yields an open file that becomes `path` after the block.

    Args:
        path: The file; an existing one is replaced.
        folder: Where the file lies until then, on the disk of `path`; by default beside
            it.

    Raises:
        OSError: If it cannot be written; the old file is unchanged then, and no
            temporary file is left.
    """
    handle, partial = tempfile.mkstemp(prefix=".partial-", dir=folder or path.parent)
    try:
        with disk_errors(path), os.fdopen(handle, "wb") as file:
            yield file
            flush(file)
        _make_readable(partial)
        os.replace(partial, path)
    except BaseException:
        pathlib.Path(partial).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path of a temporary folder that becomes `path` after the block.

    The block makes the folder. If the block raises, an existing folder `path` stays as
    it is. A process killed between the two renames at the end leaves no `path`.

    Args:
        path: The folder; an existing one is replaced.

    Raises:
        OSError: If the folder cannot be written, with the cause and `path`.
    """
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as partial:
        fresh = pathlib.Path(partial) / "new"
        with disk_errors(path):
            yield fresh
        if path.exists():
            os.replace(path, pathlib.Path(partial) / "old")
        os.replace(fresh, path)
        flush_folder(path.parent)


def flush(file: BinaryIO | TextIO) -> None:
    """Writes everything that an open file buffers to the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: pathlib.Path) -> None:
    """Writes the names in a folder to the disk, so that a rename survives a power cut.

    Does nothing on a file system that cannot flush folders.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def sha256(*parts: np.ndarray | bytes | str) -> str:
    """Returns the SHA-256 of arrays, bytes and text, one after the other, as hex."""
    checksum = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            # Paths may hold bytes that are no UTF-8.
            checksum.update(part.encode(errors="surrogateescape"))
        elif isinstance(part, bytes):
            checksum.update(part)
        else:
            checksum.update(np.ascontiguousarray(part).data)
    return checksum.hexdigest()


def sha256_of_file(path: str | pathlib.Path) -> str:
    """Returns the SHA-256 of a file as hex; "" if it cannot be read."""
    checksum = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                checksum.update(piece)
    except OSError:
        return ""
    return checksum.hexdigest()


def sha256_of_pieces(
    path: pathlib.Path, pieces: Iterable[int] | None = None
) -> list[str]:
    """Returns the SHA-256 of pieces of a file, each of `PIECE_BYTES` (16 MB).

    The pieces are read by several threads: a store is checked whenever it is opened.

    Args:
        path: The file.
        pieces: Indices of the pieces, or None for all.
    """

    def checksum(piece: int) -> str:
        with path.open("rb") as file:
            file.seek(piece * PIECE_BYTES)
            return hashlib.sha256(file.read(PIECE_BYTES)).hexdigest()

    if pieces is None:
        pieces = range(-(-path.stat().st_size // PIECE_BYTES))
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(checksum, pieces))


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes the temporary files and folders of processes that were killed.

    Only a process that has the folder to itself may call this.
    """
    for pattern in _LEFTOVERS:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _make_readable(path: str) -> None:
    """Gives a file the usual permissions; `mkstemp` makes it readable to its owner."""
    try:
        os.chmod(path, 0o644)
    except OSError as error:
        if error.errno not in (errno.EPERM, *_UNSUPPORTED):
            raise
