"""Atomic files and folders on disks that are full, broken or lack an operation."""

import errno
import hashlib
import os
import stat

import numpy as np
import pytest

from tfsimclr import files


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def fsync_refusing_folders(number, real=os.fsync):
    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    return fsync


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_cannot_flush_a_folder_will_do(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", fsync_refusing_folders(number))
    files.write_atomically(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_a_folder_that_cannot_be_flushed_for_another_reason_is_an_error(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fsync", fsync_refusing_folders(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.write_atomically(tmp_path / "a", b"1")


def test_a_disk_without_permissions_will_do(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "chmod", failing(errno.EPERM))
    files.write_atomically(tmp_path / "a", b"1")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "target"
    for content in ("first", "second"):
        with files.atomic_folder(target) as fresh:
            fresh.mkdir()
            (fresh / "file").write_text(content)
        assert (target / "file").read_text() == content
    with pytest.raises(ZeroDivisionError):
        with files.atomic_folder(target) as fresh:
            fresh.mkdir()
            raise ZeroDivisionError
    assert (target / "file").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_a_full_disk_names_the_folder(tmp_path):
    with pytest.raises(OSError, match="No space left") as error:
        with files.atomic_folder(tmp_path / "target"):
            raise OSError(errno.ENOSPC, "")
    assert error.value.filename == str(tmp_path / "target")


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".partial-folder").mkdir()
    (tmp_path / ".partial-folder" / "file").touch()
    (tmp_path / ".partial-file").touch()
    (tmp_path / ".partial").touch()
    files.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".partial"]


def test_checksums_are_sha256(tmp_path, monkeypatch):
    array = np.arange(5, dtype=np.int16)
    expected = hashlib.sha256(b"ab\xc3\xa4" + array.tobytes()).hexdigest()
    assert files.sha256(b"ab", "\u00e4", array) == expected
    monkeypatch.setattr(files, "PIECE_BYTES", 4)
    (tmp_path / "file").write_bytes(b"0123456789")
    pieces = [hashlib.sha256(p).hexdigest() for p in (b"0123", b"4567", b"89")]
    assert files.sha256_of_pieces(tmp_path / "file") == pieces
    assert files.sha256_of_pieces(tmp_path / "file", [2]) == pieces[2:]
