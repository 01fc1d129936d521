"""A store belongs to its images, wherever they and the store lie."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tfsimclr.data import dataset as datasets
from tfsimclr.data import images, prepare

pytestmark = pytest.mark.quick

SECOND = 10**9


@pytest.fixture
def decoded(monkeypatch):
    """Returns the list of all images that are decoded from now on."""
    calls = []
    read = images.read

    def counted(source, *arguments):
        calls.append(source)
        return read(source, *arguments)

    monkeypatch.setattr(images, "read", counted)
    return calls


def write(folder, seed=0, modified=None):
    """Writes four BMP files, all of one size; sets their times if given, in ns."""
    random = np.random.default_rng(seed)
    for name in ("a/1.bmp", "a/2.bmp", "b/1.bmp", "b/2.bmp"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
        if modified is not None:
            os.utime(path, ns=(modified, modified))
    return folder


def load(folder, cache, **options):
    return datasets.load(
        "folder", data_dir=str(folder), cache_dir=str(cache), verbose=False, **options
    )


def pixels(dataset):
    return np.concatenate([dataset.train.images, dataset.test.images])


@pytest.mark.promise("store")
@pytest.mark.parametrize("way", ["move", "copy", "copy without times", "link"])
@pytest.mark.parametrize("times", ["fine", "archive"])
def test_images_that_moved_are_found_in_the_cache(
    tmp_path, decoded, capsys, way, times
):
    """F4: a store was bound to the absolute path of its images.

    Siblings looked for, and what they did: a relative path and `~` (always the same
    store); a path through a link (the same); a copy with new times (prepared again);
    times of whole seconds, all equal, as unpacked archives have (two data sets of equal
    names and sizes would be confused if times were trusted, so contents are compared);
    a file edited in place whose old time is restored (used the old store: the digest
    was of size and time); a store copied to another machine (prepared again, the path
    differs); a TFDS folder that moved (prepared again); a cache that may only be read
    (works, but contents are compared every time).
    """
    modified = 1_700_000_000 * SECOND if times == "archive" else None
    before = pixels(load(write(tmp_path / "in", modified=modified), tmp_path / "cache"))
    place = tmp_path / "far" / "away"
    place.parent.mkdir()
    if way == "move":
        shutil.move(tmp_path / "in", place)
    elif way == "link":
        place.symlink_to(tmp_path / "in")
    else:
        copy = shutil.copy if way == "copy without times" else shutil.copy2
        shutil.copytree(tmp_path / "in", place, copy_function=copy)
    decoded.clear()
    for first in (True, False):
        np.testing.assert_array_equal(pixels(load(place, tmp_path / "cache")), before)
        assert not decoded
        compared = "Comparing the checksums" in capsys.readouterr().err
        by_content = way == "copy without times" or (times, way) in (
            *(("archive", "move"), ("archive", "copy")),
        )
        assert compared == (first and by_content)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.promise("store")
@pytest.mark.parametrize("times", ["fine", "archive"])
def test_other_images_of_the_same_names_and_sizes_are_never_taken(
    tmp_path, decoded, times
):
    modified = 1_700_000_000 * SECOND if times == "archive" else None
    one = load(write(tmp_path / "one", 1, modified), tmp_path / "cache")
    two = load(write(tmp_path / "two", 2, modified), tmp_path / "cache")
    assert len(decoded) == 8 and (pixels(one) != pixels(two)).any()
    # The two change places.
    (tmp_path / "one").rename(tmp_path / "x")
    (tmp_path / "two").rename(tmp_path / "one")
    (tmp_path / "x").rename(tmp_path / "two")
    for name, expected in (("one", two), ("two", one)):
        np.testing.assert_array_equal(
            pixels(load(tmp_path / name, tmp_path / "cache")), pixels(expected)
        )


@pytest.mark.promise("store")
def test_an_edited_file_with_its_old_time_is_noticed(tmp_path, decoded):
    folder = write(tmp_path / "in")
    path = folder / "a" / "1.bmp"
    before = pixels(load(folder, tmp_path / "cache"))
    times = path.stat()
    Image.new("RGB", (8, 8), "red").save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    after = pixels(load(folder, tmp_path / "cache"))
    assert (before != after).any() and len(decoded) == 8


@pytest.mark.parametrize("change", ["rename", "class", "remove", "add", "size"])
def test_changed_images_are_prepared_again(tmp_path, change):
    folder = write(tmp_path / "in")
    load(folder, tmp_path / "cache")
    if change == "rename":
        (folder / "a" / "1.bmp").rename(folder / "a" / "0.bmp")
    elif change == "class":
        (folder / "b").rename(folder / "c")
    elif change == "remove":
        (folder / "a" / "1.bmp").unlink()
    elif change == "add":
        shutil.copy(folder / "a" / "1.bmp", folder / "a" / "3.bmp")
    place = tmp_path / "moved"
    folder.rename(place)
    dataset = load(place, tmp_path / "cache", image_size=4 if change == "size" else 8)
    assert len(pixels(dataset)) == 4 + {"add": 1, "remove": -1}.get(change, 0)
    assert dataset.class_names == ("a", "c" if change == "class" else "b")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_relative_and_absolute_paths_are_one(tmp_path, decoded, monkeypatch):
    write(tmp_path / "in")
    load(tmp_path / "in", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    decoded.clear()
    for path in ("in", "./in/", "~/in", "in/../in"):
        load(path, "cache")
    assert not decoded and len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("preserve", [True, False])
def test_a_store_copied_to_another_machine_is_found(tmp_path, decoded, preserve):
    load(write(tmp_path / "in"), tmp_path / "cache")
    copy = shutil.copy2 if preserve else shutil.copy
    shutil.copytree(tmp_path / "in", tmp_path / "other/in", copy_function=copy)
    shutil.copytree(tmp_path / "cache", tmp_path / "other/cache", copy_function=copy)
    shutil.rmtree(tmp_path / "in")
    shutil.rmtree(tmp_path / "cache")
    decoded.clear()
    load(tmp_path / "other/in", tmp_path / "other/cache")
    assert not decoded


def test_a_damaged_store_elsewhere_is_passed_over(tmp_path, decoded):
    load(write(tmp_path / "in"), tmp_path / "cache")
    (store,) = (tmp_path / "cache").iterdir()
    (store / "labels.npy").write_bytes(b"x")
    (tmp_path / "in").rename(tmp_path / "moved")
    (tmp_path / "cache" / "folder-8px-a-file").write_text("x")
    decoded.clear()
    load(tmp_path / "moved", tmp_path / "cache")
    assert len(decoded) == 4


def test_a_cache_that_may_only_be_read_serves_moved_images(
    tmp_path, decoded, monkeypatch
):
    load(write(tmp_path / "in", modified=0), tmp_path / "cache")
    (tmp_path / "in").rename(tmp_path / "moved")

    def refuse(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(prepare.files, "write_atomically", refuse)
    decoded.clear()
    load(tmp_path / "moved", tmp_path / "cache")
    assert not decoded


def test_an_old_store_of_8_bit_images_is_used_and_one_of_16_bits_made_again(
    tmp_path, decoded, capsys, monkeypatch
):
    """Versions before 0.3 wrote no identity, and divided 16-bit values by 257."""
    for name, is_wide in (("narrow", False), ("wide", True)):
        folder = write(tmp_path / name)
        if is_wide:
            gray = np.full((8, 8), 4000, np.uint16)
            Image.fromarray(gray).save(folder / "a" / "3.png")
        create = prepare.store_writer.create

        def create_old(
            path, chunks, side, *, extra, fingerprint, create=create, **rest
        ):
            source = datasets.sources.source("folder", str(folder))  # noqa: B023
            old = f"{source.fingerprint()} {side}"
            return create(path, chunks, side, fingerprint=old, **rest)

        with monkeypatch.context() as patch:
            patch.setattr(prepare.store_writer, "create", create_old)
            load(folder, tmp_path / "cache")
        decoded.clear()
        dataset = load(folder, tmp_path / "cache")
        assert bool(decoded) == is_wide
        assert ("before 0.3" in capsys.readouterr().err) == is_wide
        if is_wide:
            assert 255 in dataset.train.images[..., 0]
