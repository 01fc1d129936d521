"""What is printed about the data before the work, and stands in result.json."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tfsimclr.data import dataset as datasets
from tfsimclr.data import summary, textures

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def small_textures(monkeypatch):
    monkeypatch.setattr(textures, "SPLITS", {"unlabeled": 40, "train": 30, "test": 20})


def write(folder, names):
    """Writes one PNG of random pixels per name."""
    random = np.random.default_rng(len(names))
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8)).save(path)
    return folder


def load(tmp_path, name="folder", **options):
    options = {"cache_dir": str(tmp_path / "cache"), **options}
    if name == "folder":
        options = {"data_dir": str(tmp_path / "in"), **options}
    return datasets.load(name, **options)


def data_lines(output):
    """Returns the lines of the summary without their indentation."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Data: "))
    rest = [line for line in lines[start + 1 :] if line.startswith("  ")]
    return [lines[start], *(line.strip() for line in rest)]


def test_a_folder_is_described_in_at_most_ten_lines(tmp_path, capsys):
    folder = tmp_path / "in"
    names = [
        f"{split}/class {i}/{j}.png"
        for split in ("train", "test")
        for i in range(13)
        for j in range(9 - i // 2)
    ]
    write(folder, names)
    shutil.copy(folder / "train/class 3/0.png", folder / "test/class 3/9.png")
    shutil.copy(folder / "train/class 3/0.png", folder / "train/class 4/9.png")
    write(folder, ["samples/1.png", "val/1.png", "loose.png"])
    for name in (
        "a.dng",
        "b.dng",
        "c.csv",
        "train/@eaDir/1.png",
        "train/class 1/x.png",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    Image.new("RGB", (9, 9)).save(
        folder / "two.gif",
        save_all=True,
        append_images=[Image.new("RGB", (9, 9), "red")],
    )
    shutil.move(folder / "two.gif", folder / "train/class 0/two.gif")
    dataset = load(tmp_path)
    first = data_lines(capsys.readouterr().out)
    expected = {
        "found": f"{len(names) + 6} .png, 1 .gif",
        "left aside": "2 .dng, 1 .csv, 1 @eaDir/, 1 image in samples/, 1 image outside "
        "of folders and 1 more kind (convert .dng to JPEG or PNG to use them)",
        "splits": "train 84 images, test 82 images",
        "classes": "13: class 0 19, class 1 18, class 10 8, class 11 8, class 12 6, "
        "class 2 16, class 3 17, class 4 15, class 5 14, class 6 12 and 3 more",
        "values": "0 to 255",
    }
    assert first[0] == f"Data: folder {folder}" and len(first) <= 10
    lines = dict(line.split(": ", 1) for line in first[1:])
    assert {name: lines[name] for name in expected} == expected
    assert lines["unreadable"].startswith("1, such as") and "x.png" in str(first)
    assert "1 of the test images are also among the training" in lines["duplicates"]
    assert lines["duplicates"].startswith("1.2% of the images (2)")
    # Opened again, also by another process: the same.
    again = load(tmp_path)
    assert data_lines(capsys.readouterr().out) == first
    assert again.description == dataset.description
    described = json.loads(json.dumps(dataset.description))
    assert described == dataset.description
    assert described["classes"][12] == {"name": "class 9", "train": 5, "test": 5}
    assert described["images"] == {"train": 83, "test": 82}
    assert described["several_frames"] == 1
    assert described["left_aside"]["images outside of folders"] == 1
    assert described["duplicates"] == {
        "images": 2,
        "share": 2 / 165,
        "test_images_in_training": 1,
    }
    assert len(described["unreadable"]) == 1


def test_textures_are_described(tmp_path, capsys):
    dataset = load(tmp_path, "textures", image_size=16)
    lines = data_lines(capsys.readouterr().out)
    assert lines[0] == "Data: textures"
    assert "splits: unlabeled 40 images, train 30 images, test 20 images" in lines
    assert any(line.startswith("classes: 10: ") for line in lines)
    assert "duplicates: 0.0% of the images; no test image" in "\n".join(lines)
    load(tmp_path, "textures", image_size=16)
    assert data_lines(capsys.readouterr().out) == lines
    assert dataset.description["images"]["unlabeled"] == 40


def test_one_image_without_classes(tmp_path, capsys):
    write(tmp_path / "in", ["1.png"])
    load(tmp_path)
    lines = data_lines(capsys.readouterr().out)
    assert "splits: unlabeled 1 image" in lines and "found: 1 .png" in lines
    assert lines[-1] == "duplicates: 0.0% of the images"


def test_names_of_any_bytes_stay_in_their_line(tmp_path, capsys):
    write(tmp_path / "in", ["a\nb/1.png", "a\nb/2.png", "c/1.png", "c/2.png"])
    dataset = load(tmp_path)
    lines = data_lines(capsys.readouterr().out)
    assert "classes: 2: a b 2, c 2" in lines
    assert dataset.description["classes"][0]["name"] == "a\nb"


def test_dark_images_are_named(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 16, (9, 9), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    load(tmp_path)
    output = capsys.readouterr().out
    assert "values: 0 to 15; dark: 99% of the values are at most 15 of 255" in output


def test_statistics_of_no_images():
    result = summary.Statistics().result()
    assert result["duplicates"]["images"] == 0 == result["duplicates"]["share"]


def test_a_store_without_statistics_is_described(tmp_path, capsys, monkeypatch):
    """Stores of versions before 0.3 have none."""
    write(tmp_path / "in", ["1.png", "2.png"])
    monkeypatch.setattr(datasets.prepare.store, "read_meta", lambda path: {})
    load(tmp_path)
    dataset = load(tmp_path)
    assert dataset.description["images"] == {"unlabeled": 2}
