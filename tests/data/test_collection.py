"""Collections: every image of a folder, file or data set with its path, in order."""

import os

import numpy as np
import pytest
from PIL import Image

from tfsimclr.data import collection, images, textures
from tfsimclr.data import dataset as datasets
from tfsimclr.errors import UserError


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """Two classes of 30 images, 20 x 24 pixels, of different colours."""
    root = tmp_path / "photos"
    for index in range(60):
        path = root / ("cat", "dog")[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 24), (4 * index, 255 - index, 7)).save(path)
    return root


def rows_and_images(opened, size=16, start=0):
    """Returns all positions, images and messages of a collection."""
    batches = list(opened.batches(size, start))
    assert [batch.stop for batch in batches][-1:] == [len(opened)][: len(batches)]
    return (
        np.concatenate([batch.rows for batch in batches]),
        np.concatenate([batch.images for batch in batches]),
        [line for batch in batches for line in batch.unreadable],
    )


def test_a_folder_has_paths_splits_and_classes(folder, cache):
    opened = collection.open_collection(str(folder), 12, cache_dir=cache)
    assert sorted(opened.paths) == sorted(map(str, folder.rglob("*.png")))
    for path, split, label in zip(
        opened.paths, opened.splits, opened.labels, strict=True
    ):
        assert os.path.basename(os.path.dirname(path)) == label
        assert split in ("train", "test")
    assert opened.splits.count("test") == 12
    assert opened.side == 16 and not opened.stored
    rows, pixels, unreadable = rows_and_images(opened)
    assert rows.tolist() == list(range(60)) and not unreadable
    for row in (0, 31, 59):
        np.testing.assert_array_equal(pixels[row], images.read(opened.paths[row], 16))


def test_prepared_images_are_used_and_are_the_same(folder, cache):
    (folder / "cat" / "00: x.png").write_bytes(b"no image")
    (folder / "dog" / "99.png").write_bytes(b"no image")
    for number in range(140):  # two of 202 images are unreadable: below 1 %
        path = folder / f"cat/x{number}.png"
        Image.new("RGB", (20, 24), (number, 9, 9)).save(path)
    plain = collection.open_collection(str(folder), 12, cache_dir=cache)
    datasets.load("folder", data_dir=str(folder), image_size=12, cache_dir=cache)
    stored = collection.open_collection(str(folder), 12, cache_dir=cache)
    assert not plain.stored and stored.stored
    assert (plain.paths, plain.splits, plain.labels, plain.fingerprint) == (
        *(stored.paths, stored.splits, stored.labels, stored.fingerprint),
    )
    for size, start in ((16, 0), (7, 14), (1000, 0)):
        rows, pixels, unreadable = rows_and_images(plain, size, start)
        again, same_pixels, named = rows_and_images(stored, size, start)
        np.testing.assert_array_equal(rows, again)
        np.testing.assert_array_equal(pixels, same_pixels)
        assert len(named) == (1 if start else 2)  # the first one is before 14
        assert [line.split("': ")[0] for line in named] == [
            line.split("': ")[0] for line in unreadable
        ]


def test_batches_do_not_depend_on_the_start(folder):
    opened = collection.from_paths(sorted(map(str, folder.rglob("*.png"))), 12)
    whole = list(opened.batches(16))
    later = list(opened.batches(16, start=32))
    for one, other in zip(whole[2:], later, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.images, other.images)
    assert list(opened.batches(16, start=60)) == []


def test_images_beside_class_folders_are_kept(folder, cache):
    Image.new("RGB", (20, 24)).save(folder / "loose.png")
    opened = collection.open_collection(str(folder), 12, cache_dir=cache)
    assert len(opened) == 61 and opened.labels[-1] is None and opened.splits[-1] == ""


def test_a_folder_that_a_run_refuses_can_be_read(folder, cache):
    Image.new("RGB", (20, 24)).save(folder / "cat" / "a.png")
    for name in ("train", "test", "other"):
        (folder / name).mkdir()
        Image.new("RGB", (20, 24)).save(folder / name / "a.png")
    opened = collection.open_collection(str(folder), 12, cache_dir=cache)
    assert len(opened) == 64 and set(opened.labels) == {None}
    assert "used without splits and labels" in opened.notes[0]


def test_one_file_and_a_data_set(folder, cache, monkeypatch):
    file = next(folder.rglob("*.png"))
    opened = collection.open_collection(str(file), 12, cache_dir=cache)
    assert list(opened.paths) == [str(file)] and opened.side == 16
    assert collection.open_queries(str(file), 9).side == 9
    monkeypatch.setattr(textures, "SPLITS", {"unlabeled": 20, "train": 20, "test": 10})
    opened = collection.open_collection("textures", 16, cache_dir=cache)
    assert len(opened) == 50 and opened.paths[-1] == "textures/test/9"
    assert opened.labels[-1] == textures.CLASS_NAMES[9] and opened.labels[0] is None
    loaded = datasets.load("textures", image_size=16, cache_dir=cache, verbose=False)
    rows, pixels, _ = rows_and_images(opened)
    np.testing.assert_array_equal(pixels[rows >= 40], loaded.test.images)


@pytest.mark.promise("embed-input")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "no image files below .*empty.* end in .*bmp"),
        ("missing.jpg", "'missing.jpg' does not exist"),
        ("a/b", "'a/b' does not exist. Expected a folder of images"),
        ("photos\0", "does not exist"),
        ("photoz", "'photoz' is no folder or image file, and as a data set"),
        ("text.txt", "none of the images looked at can be read.*not an image"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, monkeypatch, cache, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(UserError, match=message):
        collection.open_collection(name, 12, cache_dir=cache)
    with pytest.raises(UserError, match="the list of paths is empty"):
        collection.from_paths([], 12)


def test_pictures_for_display(folder, cache, tmp_path):
    opened = collection.open_collection(str(folder), 12, cache_dir=cache)
    first, gone = opened.pictures([0, 1], 40)[0], tmp_path / "gone.png"
    assert first.shape == (40, 40, 3)
    assert collection.picture(str(gone), 40) is None


def test_images_of_more_than_8_bits_have_one_range(tmp_path, cache):
    """12-bit images are scaled by their largest value, as in a training run."""
    os.mkdir(tmp_path / "deep")
    for index in range(4):
        values = np.full((20, 20), 1000 * (index + 1), np.uint16)
        Image.fromarray(values).save(tmp_path / f"deep/{index}.png")
    opened = collection.open_collection(str(tmp_path / "deep"), 20, cache_dir=cache)
    pixels = rows_and_images(opened)[1]
    assert pixels.max(axis=(1, 2, 3)).tolist() == [64, 128, 191, 255]
    one = collection.open_queries(opened.paths[0], opened.side, opened.ranges)
    np.testing.assert_array_equal(rows_and_images(one)[1][0], pixels[0])
    given = collection.open_collection(
        str(tmp_path / "deep"), 20, cache_dir=cache, max_value=8000
    )
    assert rows_and_images(given)[1].max() == 128
