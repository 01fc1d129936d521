"""Data sets by name: textures, folders in every layout."""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from tfsimclr.data import batches, images, prepare
from tfsimclr.data import dataset as datasets
from tfsimclr.data import folder as folder_source
from tfsimclr.errors import UserError


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def write(folder, names, size=(12, 10)):
    """Writes one PNG per name, each of its own colour."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (index % 256, len(name) % 256, 7)).save(path, "PNG")
    return str(folder)


def numbered(prefix, count):
    return [f"{prefix}/{i:03}.png" for i in range(count)]


def load(folder, cache, **options):
    return datasets.load("folder", data_dir=str(folder), cache_dir=cache, **options)


def stores(cache):
    return sorted(os.listdir(cache)) if os.path.isdir(cache) else []


def test_textures(cache):
    made = datasets.load("textures", image_size=8, cache_dir=cache, verbose=False)
    again = datasets.load("textures", image_size=8, cache_dir=cache, verbose=False)
    for dataset in (made, again):
        assert dataset.has_labels and dataset.num_classes == 10
        assert dataset.pretrain is dataset.unlabeled and dataset.image_size == 8
        assert dataset.unlabeled.images.shape[1:] == (8, 8, 3)
        assert (dataset.unlabeled.labels == -1).all()
        for split in (dataset.train, dataset.test):
            assert set(split.labels) == set(range(10)) and split.labels.dtype == int
    np.testing.assert_array_equal(made.test.images, again.test.images)
    assert len(stores(cache)) == 1


@pytest.mark.parametrize(
    "names,expected,classes",
    [
        (["a.png", "b.png"], {"unlabeled": 2}, ()),
        (["a.png", "album/b.png", "album/c/d.png", "e/f.png"], {"unlabeled": 4}, ()),
        (["one/a.png", "one/b.png"], {"unlabeled": 2}, ()),
        (
            [*numbered("cat", 10), *numbered("dog/deep", 5)],
            {"train": 12, "test": 3},
            ("cat", "dog"),
        ),
        (
            ["train/x/1.png", "train/y/1.png", "train/x/2.png", "test/y/1.png"],
            {"train": 3, "test": 1},
            ("x", "y"),
        ),
        (["train/x/1.png", "val/x/1.png"], {"train": 1, "test": 1}, ("x",)),
        (
            [*numbered("train/x", 5), *numbered("train/y", 5), "unlabeled/a/b/1.png"],
            {"train": 8, "test": 2, "unlabeled": 1},
            ("x", "y"),
        ),
        (["train/1.png", "train/2.png"], {"unlabeled": 2}, ()),
        (["unlabelled/1.png", "unlabelled/x/2.png"], {"unlabeled": 2}, ()),
        # "train" can also be a class, of vehicles.
        (
            [*numbered("train", 5), *numbered("ship", 5)],
            {"train": 8, "test": 2},
            ("ship", "train"),
        ),
        (["a\nb/1.png", "a\nb/2.png", "ö ü/1.png"], {"train": 2, "test": 1}, None),
        # Spellings of split names.
        *(
            (
                [f"{train}/x/1.png", f"{train}/y/1.png", f"{test}/y/1.png"],
                {"train": 2, "test": 1},
                ("x", "y"),
            )
            for train, test in (
                *(("Train", "Test"), ("training", "testing"), ("TRAIN", "VAL")),
                *(("seg_train", "seg_test"), ("train", "eval")),
            )
        ),
        # One loose image among many does not cost the labels.
        (
            [*numbered("cat", 10), *numbered("dog", 10), "loose.png"],
            {"train": 16, "test": 4},
            ("cat", "dog"),
        ),
        # Thumbnails and deleted files of a network storage are no images and no class.
        (
            [
                *numbered("cat", 5),
                *numbered("dog", 5),
                "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
                *numbered("#recycle", 5),
                *numbered("lost+found", 5),
            ],
            {"train": 8, "test": 2},
            ("cat", "dog"),
        ),
    ],
)
def test_folder_layouts(tmp_path, cache, names, expected, classes):
    dataset = load(write(tmp_path / "in", names), cache)
    splits = {n: getattr(dataset, n) for n in ("unlabeled", "train", "test")}
    assert {n: len(s.images) for n, s in splits.items() if s} == expected
    assert dataset.class_names == (("a\nb", "ö ü") if classes is None else classes)
    pretrain = expected.get("unlabeled", expected.get("train"))
    assert len(dataset.pretrain.images) == pretrain
    assert dataset.has_labels == (len(dataset.class_names) > 1)
    for name, split in splits.items():
        if split:
            assert ((split.labels >= 0) == (name != "unlabeled")).all()


def test_folder_labels_belong_to_their_images(tmp_path, cache):
    folder = tmp_path / "in"
    for name in ("red", "green", "blue"):
        for i in range(10):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), name if name != "green" else "lime").save(path)
    dataset = load(folder, cache)
    assert dataset.class_names == ("blue", "green", "red")
    for split in (dataset.train, dataset.test):
        channel = split.images.mean(axis=(1, 2)).argmax(
            axis=1
        )  # red 0, green 1, blue 2
        np.testing.assert_array_equal(channel, 2 - split.labels)


def test_held_out_fifth_is_stratified_and_fixed(tmp_path):
    folder = tmp_path / "in"
    write(folder, [*numbered("a", 50), *numbered("b", 10), "c/0.png"])
    before = folder_source.FolderSource(str(folder)).splits
    test = [os.path.relpath(path, folder) for path, _ in before["test"]]
    assert [label for _, label in before["test"]] == [0] * 10 + [1] * 2
    assert not {path for path, _ in before["test"]} & {p for p, _ in before["train"]}
    assert test[:10] != numbered("a", 10)  # not simply the first ones
    (folder / "in2").mkdir()
    write(folder, numbered("0", 20))
    os.utime(folder / "a" / "000.png", (1, 1))
    after = folder_source.FolderSource(str(folder)).splits
    names = [os.path.relpath(path, folder) for path, _ in after["test"]]
    assert [n for n in names if n[0] != "0"] == test  # another class changes nothing


@pytest.mark.parametrize(
    "names,match",
    [
        (["train/x/1.png", "test/y/1.png"], "'y'"),
        (["train/x/1.png", "train/y/1.png", "test/z/1.png", "test/w/1.png"], "'w'"),
        (["train/1.png", "test/1.png"], "one folder per class"),
        (["train/1.png", "test/1.png", "more/1.png"], "more"),
        (["train/1.png", "test/x/1.png", "loose.png"], "image files"),
        (["test/1.png"], "only a test set"),
    ],
)
def test_unclear_layouts_are_refused(tmp_path, cache, names, match):
    with pytest.raises(ValueError, match=match):
        load(write(tmp_path / "in", names), cache)
    assert not stores(cache)


@pytest.mark.promise("folders")
@pytest.mark.parametrize("case", ["missing", "none", "empty", "text", "file"])
def test_folders_without_images_are_refused(tmp_path, cache, case):
    folder = tmp_path / case
    if case in ("empty", "text"):
        folder.mkdir()
    if case in ("text", "file"):
        (folder / "notes.txt" if case == "text" else folder).write_text("hello")
    match = "no image files" if case in ("empty", "text") else "needs --data_dir"
    with pytest.raises(ValueError, match=match):
        load("" if case == "none" else folder, cache)


@pytest.mark.promise("folders")
def test_only_broken_images(tmp_path, cache):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="none of the images"):
        load(tmp_path, cache)


@pytest.mark.promise("image-files")
@pytest.mark.parametrize("good,stops", [(99, False), (98, True), (19, True)])
def test_one_percent_may_be_unreadable(tmp_path, cache, capsys, good, stops):
    folder = tmp_path / "in"
    write(folder, [f"{i:03}.png" for i in range(good)])
    (folder / "050 bad\nname.png").write_bytes(b"no image")
    if stops:
        with pytest.raises(ValueError, match="more than 1% of the"):
            load(folder, cache)
        assert not stores(cache)
    else:
        for _ in range(2):  # made, then found
            dataset = load(folder, cache)
            assert dataset.skipped == 1 and len(dataset.unlabeled.images) == good
            output = capsys.readouterr()
            lines = output.out.splitlines()
            assert sum(r"050 bad\nname.png" in line for line in lines) == 1
            assert sum("unreadable: 1, " in line for line in lines) == 1
        assert "skipped" not in output.err  # that was the first time
        assert (dataset.unlabeled.images[:, 0, 0, 0] == np.arange(good)).all()


@pytest.mark.parametrize(
    "size,image_size,view,side",
    [
        ((200, 150), None, 96, 128),
        ((200, 110), None, 96, 110),
        ((60, 50), None, 50, 50),
        ((200, 150), 48, 48, 64),
        ((20, 10), 32, 32, 10),
        ((1, 1), None, 1, 1),
    ],
)
def test_sizes_of_folder_images(tmp_path, cache, size, image_size, view, side):
    folder = write(tmp_path / "in", ["a.png", "b.png", "c.png"], size)
    dataset = load(folder, cache, image_size=image_size)
    assert dataset.image_size == view
    assert dataset.unlabeled.images.shape == (3, side, side, 3)
    if image_size is None:
        assert datasets.folder_image_size(folder) == view
        assert datasets.defaults("folder", data_dir=folder)["image_size"] == view


@pytest.mark.promise("store")
def test_a_store_is_found_again_and_made_again_when_it_must(
    tmp_path, cache, monkeypatch, capsys
):
    folder = tmp_path / "in"
    write(folder, numbered("a", 4))
    load(folder, cache)
    decoded = []
    read = images.read

    def counted(*arguments):
        decoded.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(images, "read", counted)
    load(folder, cache)
    assert not decoded
    os.utime(folder / "a" / "000.png", (1, 1))
    load(folder, cache)
    assert not decoded  # the content is the same
    Image.new("RGB", (12, 10), (9, 9, 7)).save(folder / "a" / "000.png")
    load(folder, cache)
    assert len(decoded) == 4
    (path,) = stores(cache)
    with open(os.path.join(cache, path, "images.npy"), "r+b") as file:
        file.seek(300)
        file.write(b"\xff\xfe")
    capsys.readouterr()
    dataset = load(folder, cache)
    assert len(decoded) == 8 and "damaged" in capsys.readouterr().err
    assert dataset.unlabeled.images[..., 2].max() == 7
    write(folder, ["a/new.png"])
    assert len(load(folder, cache).unlabeled.images) == 5
    assert len(stores(cache)) == 1


def test_verbose_false_is_silent(tmp_path, cache, capsys):
    load(write(tmp_path / "in", numbered("a", 3)), cache, verbose=False)
    assert capsys.readouterr() == ("", "")
    load(tmp_path / "in", cache, image_size=4)
    output = capsys.readouterr()
    assert "3/3" in output.err and "without labels" in output.out


def test_a_cache_that_cannot_be_used(tmp_path, monkeypatch):
    folder = write(tmp_path / "in", ["a.png"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--cache_dir"):
        load(folder, str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(prepare.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="not writable.*--cache_dir"):
        load(folder, str(tmp_path / "cache"))


def test_a_full_disk_is_named(tmp_path, cache, monkeypatch):
    folder = write(tmp_path / "in", ["a.png"])
    usage = prepare.shutil.disk_usage(tmp_path)._replace(free=10)
    with monkeypatch.context() as patch:
        patch.setattr(prepare.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(ValueError, match="Make room"):
            load(folder, cache)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare.store_writer, "create", full)
    with pytest.raises(ValueError, match="No space left.*--cache_dir"):
        load(folder, cache)


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_default_cache_folder(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "place"))
    load(write(tmp_path / "in", ["a.png"]), "")
    part = "tfsimclr" if variable == "XDG_CACHE_HOME" else ".cache/tfsimclr"
    assert len(os.listdir(tmp_path / "place" / part)) == 1


@pytest.mark.parametrize(
    "name,size,expected",
    [
        ("textures", None, (32, "medium", 0.25)),
        ("textures", 64, (64, "medium", 0.25)),
        ("stl10", None, (96, "imagenet", 1)),
        ("stl10", 32, (32, "small", 1)),
        ("cifar10", None, (32, "small", 1)),
        ("anything", 40, (40, "small", 1)),
        ("anything", 41, (41, "medium", 1)),
        ("anything", 65, (65, "imagenet", 1)),
    ],
)
def test_defaults(name, size, expected):
    found = datasets.defaults(name, size)
    assert (found["image_size"], found["stem"], found["width"]) == expected
    assert found["backbone"] == "resnet18"


@pytest.mark.parametrize("size", [-1, 0.5])
def test_image_size_is_checked(cache, size):
    with pytest.raises(ValueError, match="image_size"):
        datasets.load("textures", image_size=size, cache_dir=cache)


def test_batches_of_a_loaded_folder(tmp_path, cache):
    dataset = load(write(tmp_path / "in", numbered("a", 20)), cache)
    loaded = batches.training_batches(dataset.pretrain.images, 6, 0, 0, 3)
    seen = np.concatenate([batch.numpy()[:, 0, 0, 0] for batch in loaded])
    assert len(set(seen)) == 18 and set(seen) <= set(range(20))


@pytest.mark.parametrize("names", [("first", "second"), ("images", "masks")])
def test_folders_that_all_hold_the_same_subfolders_are_refused(tmp_path, cache, names):
    """They are splits under names that we do not know, and not classes."""
    files = [f"{name}/{inner}/1.png" for name in names for inner in ("a", "b")]
    with pytest.raises(UserError, match=f"{names[0]}, {names[1]} .* folders a, b"):
        load(write(tmp_path / "in", files), cache)


def test_files_that_are_not_used_are_counted(tmp_path, cache, capsys):
    folder = pathlib.Path(write(tmp_path / "in", numbered("photos", 3)))
    for name in ("1.DNG", "2.dng", "list.csv"):
        (folder / name).write_bytes(b"x")
    load(folder, cache)
    output = capsys.readouterr().out
    assert "left aside: 2 .dng, 1 .csv (convert .dng to JPEG or PNG" in output


def test_classes_linked_to_one_folder_keep_all_mentions(tmp_path, cache):
    files = [*numbered("train/dog", 3), *numbered("cats", 4)]
    folder = pathlib.Path(write(tmp_path / "in", files))
    (folder / "cats").rename(tmp_path / "cats")
    (folder / "test" / "dog").mkdir(parents=True)
    (folder / "test" / "dog" / "1.png").write_bytes(
        (folder / "train" / "dog" / "000.png").read_bytes()
    )
    for split in ("train", "test"):
        (folder / split / "cat").symlink_to(tmp_path / "cats")
    dataset = load(folder, cache)
    assert dataset.class_names == ("cat", "dog")
    assert (len(dataset.train.images), len(dataset.test.images)) == (7, 5)


def test_a_path_as_the_name_of_a_data_set_is_explained(tmp_path):
    with pytest.raises(UserError, match="--dataset=folder --data_dir=/photos/mine"):
        datasets.load("/photos/mine", cache_dir=str(tmp_path))
