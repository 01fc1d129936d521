"""Files that are not the images that their names say: each is named for what it is."""

import collections
import io
import logging
import os
import struct
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tfsimclr.data import dataset as datasets
from tfsimclr.data import images
from tfsimclr.errors import UserError

pytestmark = pytest.mark.quick


def encoded(kind="PNG", size=(24, 20), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def five_channels():
    """Returns a TIFF image of five channels, which Pillow does not know."""
    tags = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 0, 277: 5, 278: 4, 279: 80}
    entries = b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + bytes(4) + bytes(80)


FILES = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git lfs"),
    "page": (b"\r\n<!DOCTYPE HTML><html>404</html>", "web page"),
    "page with a mark": (b"\xef\xbb\xbf<html>", "web page"),
    "json": (b'{"error": "not found"}', "JSON"),
    "svg": (b"<?xml version='1.0'?><svg/>", "SVG"),
    "text": (b"This is no image.\n", "text"),
    "empty": (b"", "0 bytes"),
    "zeros": (bytes(5000), "only zeros"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
    "avif": (b"\0\0\0\x18ftypavif" + bytes(100), "AVIF"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(100), "video"),
    "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "JPEG 2000"),
    "jpeg xl": (b"\xff\x0a" + b"\x7f" * 50, "JPEG XL"),
    "photoshop": (b"8BPS" + bytes(50), "Photoshop"),
    "numpy": (b"\x93NUMPY\x01\0" + bytes(50), "NumPy"),
    "dicom": (bytes(128) + b"DICM" + bytes(50), "DICOM"),
    "zip": (b"PK\x03\x04" + bytes(50), "ZIP"),
    "pdf": (b"%PDF-1.4", "PDF"),
    "cut JPEG": (encoded("JPEG")[:300], "damaged JPEG image: "),
    "cut PNG": (encoded()[:300], "damaged PNG image: .*truncated"),
    "cut WebP": (encoded("WEBP", lossless=True)[:60], "damaged WebP image: "),
    "five channels": (five_channels(), "TIFF image of 5 channels of 8 bits"),
    "noise": (bytes(range(128, 256)), "not an image"),
}


@pytest.mark.promise("image-files")
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named_for_what_it_is(name, capfd):
    content, words = FILES[name]
    with pytest.raises(images.UnreadableImageError, match=words) as error:
        images.read(content, 8, "it")
    assert "\n" not in str(error.value)
    with pytest.raises(images.UnreadableImageError):
        images.short_side(content[:40], "it")


def test_heic_without_its_reader_names_the_extra(monkeypatch):
    monkeypatch.setattr(images, "HAS_HEIF", False)
    monkeypatch.setattr(images, "_FORMATS", ("JPEG", "PNG"))
    with pytest.raises(images.UnreadableImageError, match=r"install tfsimclr\[heif\]"):
        images.read(FILES["heic"][0], 8)


@pytest.mark.parametrize(("kind", "has"), [("HEIF", "HAS_HEIF"), ("AVIF", "HAS_AVIF")])
def test_heic_and_avif_are_read(tmp_path, kind, has):
    if not getattr(images, has):
        pytest.skip(f"this Pillow cannot read {kind}")
    smooth = Image.linear_gradient("L").convert("RGB").resize((40, 32))
    extension = ".heic" if kind == "HEIF" else ".avif"
    smooth.save(tmp_path / f"a{extension}", kind)
    assert images.find(str(tmp_path))[0] == [str(tmp_path / f"a{extension}")]
    result = images.read(str(tmp_path / f"a{extension}"), 32).astype(int)
    expected = np.asarray(smooth.crop((4, 0, 36, 32))).astype(int)
    assert np.abs(result - expected).mean() < 6


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("chunk", ["zTXt", "iTXt", "iCCP", "many"])
def test_png_files_with_large_texts_are_read(tmp_path, chunk, place):
    """Image generators store their settings, cameras and editors their profiles."""
    content, options = "x" * (2 << 20), {}
    if chunk == "iCCP":
        if place == "after":
            return  # a profile stands before the pixels
        content = encoded(icc_profile=b"x" * (2 << 20))
    else:
        info = PngImagePlugin.PngInfo()
        for i in range(70 if chunk == "many" else 1):
            text = "x" * (1_000_000 if chunk == "many" else 2 << 20)
            info.add_text(f"key {i}", text, zip=True)
        content = encoded(pnginfo=info, **options)
    if place == "after":  # the text behind the pixels
        content = behind_the_pixels(content)
    np.testing.assert_array_equal(images.read(content, 20), images.read(encoded(), 20))
    assert images.short_side(content) == 20
    (tmp_path / "a.png").write_bytes(content)
    assert images.read(str(tmp_path / "a.png"), 20).std() > 5


def behind_the_pixels(content):
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append(content[at : at + 12 + length])
        at += 12 + length
    text = [c for c in chunks if c[4:8] in (b"zTXt", b"iTXt", b"tEXt")]
    rest = [c for c in chunks if c not in text]
    return content[:8] + b"".join([*rest[:-1], *text, rest[-1]])


@pytest.mark.skipif(sys.platform != "linux", reason="libtiff is found by /proc")
def test_pillow_and_libtiff_print_nothing(tmp_path, capfd):
    for i in range(20):
        (tmp_path / f"{i}.tif").write_bytes(five_channels())
    broken = bytearray(encoded("TIFF", compression="tiff_deflate"))
    broken[100:140] = bytes(40)
    (tmp_path / "broken.tif").write_bytes(broken)
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    level = logging.getLogger("PIL").level
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        rows = [(str(path), str(path), 0) for path in sorted(tmp_path.iterdir())]
        assert len([r for block in images.read_all(rows, 8) for r in block]) == 22
        images.median_short_side(row[:2] for row in rows)
        images.wide_facts(row[:2] for row in rows)
    assert not raised and capfd.readouterr() == ("", "")
    assert logging.getLogger("PIL").level == level


def test_all_unreadable_files_are_named_at_once(tmp_path, capsys):
    """F14: 10 % of bad files took eight runs, each of which named a few.

    Siblings looked for, and what they did: the 1 % that is accepted (every file was
    named in a line of its own, 12,000 lines for ImageNet; now five, and a list); the
    sample that decides the image size (names one file and its reason, since then none
    can be read); bad links (named), files without permission (named), folders that
    cannot be listed (the run stopped; now left aside by name); a store that is opened
    again (says how many, and names two); images of TFDS (the same code).
    """
    folder = tmp_path / "in"
    folder.mkdir()
    good = encoded("JPEG")
    bad = [FILES[n][0] for n in ("lfs", "page", "cut JPEG", "empty")]
    for i in range(200):
        content = bad[i // 10 % 4] if i % 10 == 7 else good
        (folder / f"{i:03}.jpg").write_bytes(content)
    with pytest.raises(UserError, match="unreadable: 20 ") as error:
        datasets.load("folder", data_dir=str(folder), cache_dir=str(tmp_path / "c"))
    message = str(error.value)
    for part in ("5 x a Git LFS pointer", "5 x a web page", "5 x empty"):
        assert part in message
    (report,) = (tmp_path / "c").iterdir()
    assert str(report) in message
    lines = report.read_text().splitlines()
    named = [os.path.basename(line.split("'")[1]) for line in lines]
    assert named == [f"{i:03}.jpg" for i in range(7, 200, 10)]
    # Repaired in one round.
    for name in named:
        (folder / name).unlink()
    dataset = datasets.load(
        "folder", data_dir=str(folder), cache_dir=str(tmp_path / "c")
    )
    assert len(dataset.unlabeled.images) == 180 and not dataset.skipped
    assert not report.exists()


def test_few_unreadable_files_are_listed_in_the_store(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    content = encoded(size=(2, 2))
    for i in range(700):
        (folder / f"{i:03}.png").write_bytes(b"" if i % 100 == 3 else content)
    options = {"data_dir": str(folder), "cache_dir": str(tmp_path / "c")}
    dataset = datasets.load("folder", **options)
    assert dataset.skipped == 7 == len(dataset.description["unreadable"])
    output = capsys.readouterr()
    counts = collections.Counter(line.split(":")[0] for line in output.err.splitlines())
    assert counts["unreadable, skipped"] == 5 and counts["All 7 of them"] == 1
    (store,) = (tmp_path / "c").iterdir()
    assert len((store / "unreadable.txt").read_text().splitlines()) == 7
    assert "unreadable: 7, such as" in output.out
