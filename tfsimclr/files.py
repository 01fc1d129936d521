"""Files that are written whole or not at all, checksums, and the errors of a disk."""

import contextlib
import errno
import hashlib
import os
import pathlib
import tempfile

import numpy as np

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
)


@contextlib.contextmanager
def disk_errors(path: pathlib.Path):
    """Raises an OSError that names `path` where its block cannot write there.

    TensorFlow has one error for a full disk and for exhausted memory; only the words
    of the operating system in its message tell them apart. NumPy says no reason.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("tensorflow."):
            words = {os.strerror(number): number for number in _DISK_ERRORS}
            number = next((words[text] for text in words if text in str(error)), None)
        elif isinstance(error, OSError) and error.filename is None:
            # np.save says "1000 requested and 616 written", and no number.
            number = error.errno or errno.ENOSPC
        else:
            number = None
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that is complete under its name or does not have it.

    Raises:
        OSError: If it cannot be written; nothing is left behind then.
    """
    handle, partial = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
    try:
        with disk_errors(path), os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp's 0600 would hide it from the group
        os.replace(partial, path)
    except BaseException:
        pathlib.Path(partial).unlink(missing_ok=True)
        raise
    # The rename itself must survive a power cut.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256(*arrays) -> str:
    """Returns a checksum of arrays or bytes."""
    checksum = hashlib.sha256()
    for array in arrays:
        if not isinstance(array, bytes):
            array = np.ascontiguousarray(array)
        checksum.update(array)
    return checksum.hexdigest()


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what a process killed in `write_atomically` has left in a folder."""
    for leftover in folder.glob(".partial-*"):
        leftover.unlink()
