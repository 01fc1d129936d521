"""Odd things in a folder of images: left aside by name, and the labels are kept."""

import os
import pathlib
import stat

import pytest
from PIL import Image

from tfsimclr.data import dataset as datasets
from tfsimclr.data import folder as folder_source
from tfsimclr.data import images

pytestmark = pytest.mark.quick


def write(folder, names):
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index % 256, index // 256, 9)).save(path, "PNG")
    return folder


def numbered(prefix, count):
    return [f"{prefix}/{i:03}.png" for i in range(count)]


TRAIN = [*numbered("train/cat", 10), *numbered("train/dog", 10)]
TEST = [*numbered("test/cat", 5), *numbered("test/dog", 5)]
CLASSES = [*numbered("cat", 10), *numbered("dog", 10)]


@pytest.mark.promise("folders")
@pytest.mark.parametrize(
    ("names", "train", "test", "aside"),
    [
        # An unlabelled test set, as in competitions.
        ([*TRAIN, *numbered("test", 7)], 16, 4, {"images in test/": 7}),
        ([*TRAIN, *numbered("test/unknown", 7)], 16, 4, {"images in test/unknown/": 7}),
        (
            [*TRAIN, *numbered("test", 7), *numbered("val/cat", 3)],
            *(20, 3),
            {"images in test/": 7},
        ),
        # Others beside the splits.
        (
            [*TRAIN, *TEST, *numbered("samples", 2), "sheet.png"],
            *(20, 10),
            {"images in samples/": 2, "images outside of folders": 1},
        ),
        ([*TRAIN, *TEST, *numbered("a/b", 2)], 20, 10, {"images in a/": 2}),
        (
            [*TRAIN, *TEST, *numbered("val/cat", 4), *numbered("validation", 3)],
            *(20, 10),
            {"images in val/": 4, "images in validation/": 3},
        ),
        (
            [*TRAIN, *numbered("training/x", 3), *TEST],
            20,
            10,
            {"images in training/": 3},
        ),
        # Single images beside class folders.
        (
            [*TRAIN, "train/1.png", *TEST, "test/1.png"],
            *(20, 10),
            {
                "images outside of class folders in train/": 1,
                "images outside of class folders in test/": 1,
            },
        ),
        ([*CLASSES, "1.png"], 16, 4, {"images outside of class folders": 1}),
        # A class that only the test set has, of few images.
        ([*TRAIN, *TEST, "test/cow/1.png"], 20, 10, {"images in test/cow/": 1}),
        # What systems create.
        ([*CLASSES, *numbered("lost+found", 3)], 16, 4, {"lost+found/": 1}),
    ],
)
def test_what_does_not_fit_is_left_aside(tmp_path, names, train, test, aside):
    """F20: one odd thing decided for all images.

    Siblings looked for, and what they did: a loose picture beside class folders
    (dropped all labels), also inside train/ and test/ (dropped all labels, or
    refused); samples/ or a picture beside train/ and test/ (refused); a flat test/
    (refused), also as test/unknown/ (refused) and beside a labelled val/ (refused); a
    second training folder (not used, now counted); a test class of one image that
    train/ lacks (refused; many are still refused); a subfolder that cannot be listed
    (refused); unlabelled images beside classes without splits (a class; cannot be
    told); class folders of one image (train, without a test set, which is said); a
    data folder that may only be read (works; nothing is written there).
    """
    source = folder_source.FolderSource(str(write(tmp_path, names)))
    assert source.class_names == ("cat", "dog")
    assert {k: source.count(k) for k in source.splits} == {"train": train, "test": test}
    assert dict(source.left_aside) == aside
    assert sum(aside.values()) + train + test == len(names) - 2 * ("lost" in str(names))


def test_an_unlabelled_test_set_is_named(tmp_path):
    names = [*TRAIN, *numbered("test", 7)]
    notes = folder_source.FolderSource(str(write(tmp_path, names))).notes
    assert "test/ has no class folders, so no labels" in notes
    assert any("a fixed fifth of every class is the test set" in n for n in notes)


def test_class_folders_of_one_image(tmp_path, capsys):
    folder = write(tmp_path / "in", [f"class {i}/1.png" for i in range(30)])
    options = {"data_dir": str(folder), "cache_dir": str(tmp_path / "cache")}
    dataset = datasets.load("folder", **options)
    assert len(dataset.train.images) == 30 and dataset.test is None
    assert not dataset.has_labels and dataset.pretrain is dataset.train
    output = capsys.readouterr().out
    assert "no class has two images or more, so there is no test set" in output
    assert "classes: 30: class 0 1, class 1 1," in output


@pytest.fixture
def forbidden(tmp_path, monkeypatch):
    """Makes folders called `secret` impossible to list, also for root."""
    listdir = os.listdir

    def refuse(path="."):
        if os.path.basename(os.fspath(path)) in ("secret", "lost+found"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)


@pytest.mark.promise("folders")
def test_folders_that_cannot_be_listed_are_left_aside(tmp_path, forbidden):
    names = [*CLASSES, "cat/secret/1.png", "secret/1.png", "lost+found/1.png"]
    source = folder_source.FolderSource(str(write(tmp_path, names)))
    assert source.class_names == ("cat", "dog")
    assert source.left_aside == {
        "cat/secret/ (Permission denied)": 1,
        "secret/ (Permission denied)": 1,
        "lost+found/": 1,
    }


def test_the_data_folder_itself_must_be_readable(tmp_path, forbidden):
    write(tmp_path / "secret", CLASSES)
    with pytest.raises(ValueError, match="cannot list the folder.*Permission denied"):
        folder_source.FolderSource(str(tmp_path / "secret"))


def test_nothing_is_written_into_the_data_folder(tmp_path, monkeypatch):
    folder = write(tmp_path / "in", CLASSES)
    for path in (*folder.rglob("*"), folder):
        path.chmod(stat.S_IREAD | (stat.S_IEXEC * path.is_dir()))
    before = {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
    options = {"data_dir": str(folder), "cache_dir": str(tmp_path / "cache")}
    for _ in range(2):
        assert len(datasets.load("folder", **options).train.images) == 16
    after = {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
    assert after == before
    for path in (folder, *filter(pathlib.Path.is_dir, folder.rglob("*"))):
        path.chmod(0o755)  # so that pytest can remove it


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_several_pages_or_frames_are_counted(tmp_path, capsys, kind):
    """F24: of a TIFF stack only the first page was used, without a word.

    Siblings looked for, and what they did: animated GIF, WebP and PNG (the first frame,
    as documented, without a word); MPO, whose second picture is a preview (not
    counted); HEIC bursts (the primary image).
    """
    folder = write(tmp_path / "in", ["1.png", "2.png"])
    pages = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    path = folder / f"stack.{kind.lower()}"
    pages[0].save(path, kind, save_all=True, append_images=pages[1:])
    options = {"data_dir": str(folder), "cache_dir": str(tmp_path / "cache")}
    for _ in range(2):
        dataset = datasets.load("folder", **options)
        assert (
            "note: 1 file holds several pages or frames; the first of each is used"
            in (capsys.readouterr().out)
        )
    assert dataset.description["several_frames"] == 1
    red = dataset.unlabeled.images[-1].reshape(-1, 3).mean(axis=0)
    assert red[0] > 200 and red[1:].max() < 50


def test_a_preview_is_no_second_page(tmp_path):
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    path = tmp_path / "1.jpg"
    pictures[0].save(path, "MPO", save_all=True, append_images=pictures[1:])
    facts = images.Facts()
    images.read(str(path), 8, facts=facts)
    assert facts.several_frames == 0
