"""Reading image files: every kind of good one, every kind of bad one."""

import io
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from tfsimclr.data import decoding, images


def photo(width=40, height=30, mode="RGB"):
    """Returns a smooth image whose left is dark and whose top is blue-less."""
    x = np.linspace(0, 255, width)[None, :] * np.ones((height, 1))
    y = np.linspace(0, 255, height)[:, None] * np.ones((1, width))
    pixels = np.stack([x, (x + y) / 2, y], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "name,mode",
    [
        ("a.jpg", "RGB"),
        ("a.jpeg", "L"),
        ("a.JPG", "CMYK"),
        ("a.png", "RGB"),
        ("a.png", "RGBA"),
        ("a.png", "LA"),
        ("a.png", "P"),
        ("a.png", "1"),
        ("a.webp", "RGB"),
        ("a.bmp", "RGB"),
        ("a.gif", "P"),
        ("a.tif", "RGB"),
        ("a.ppm", "RGB"),
    ],
)
@pytest.mark.parametrize("size", [8, 30, 64])
def test_every_kind_gives_a_square_of_the_same_picture(tmp_path, name, mode, size):
    photo(mode=mode).save(tmp_path / name)
    found, _ = images.find(str(tmp_path))
    assert found == [str(tmp_path / name)]
    result = images.read(found[0], size)
    assert result.shape == (size, size, 3) and result.dtype == np.uint8
    # Palettes and single bits are dithered; JPEG is not exact.
    reference = photo(mode=mode).convert("RGB").crop((5, 0, 35, 30))
    expected = reference.resize((size, size), Image.Resampling.BILINEAR)
    assert np.abs(result.astype(float) - np.asarray(expected)).mean() < 4
    assert images.short_side(found[0]) == 30


def test_middle_square_is_kept_exactly_when_no_resize_is_needed():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    result = images.read(encoded(Image.fromarray(pixels)), 30)
    np.testing.assert_array_equal(result, pixels[:, 5:35])


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    result = images.read(encoded(Image.fromarray(stripes)), 16)
    assert np.abs(result.astype(int) - 127).max() < 25


def test_16_bit_gray_is_scaled_not_clipped():
    gray = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    result = images.read(encoded(Image.fromarray(gray)), 16)
    assert result[0, 0, 0] == 0 and result[-1, -1, 0] == 255
    np.testing.assert_allclose(result[..., 1], gray / 257, atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode):
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 10, 20))
    options = {}
    if mode == "P":
        image = Image.new("P", (20, 20), 1)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.paste(0, (0, 0, 10, 20))
        options = {"transparency": 1}
    else:
        image = image.convert(mode)
    result = images.read(encoded(image, **options), 20)
    assert (result[:, :10] == 0).all() and (result[:, 10:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_undone(orientation, kind):
    upright = photo(32, 32)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the inverse of how it is shown
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = images.read(encoded(stored, kind, exif=exif), 32)
    difference = np.abs(result.astype(float) - np.asarray(upright))
    assert difference.mean() < 4


@pytest.mark.promise("odd-images")
@pytest.mark.parametrize("width,height", [(1, 1), (1, 50), (20000, 3), (3, 5000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_odd_sizes_work(width, height, kind):
    result = images.read(encoded(Image.new("RGB", (width, height), "red"), kind), 16)
    assert result.shape == (16, 16, 3)
    assert result[..., 0].min() > 250 and result[..., 1].max() < 5


def bomb():
    """Returns a PNG of a few bytes whose header claims 30000 x 30000 pixels."""
    data = bytearray(encoded(Image.new("L", (1, 1))))
    data[16:24] = (30000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


BAD = {
    "empty.jpg": b"",
    "text.png": b"This is no image.\n" * 10,
    "truncated.jpg": encoded(photo(200, 200), "JPEG")[:1500],
    "truncated.png": encoded(photo(200, 200))[:300],
    "header.png": encoded(photo())[:20],
    "bomb.png": bomb(),
    "float.tif": encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
    "new\nline.png": b"nothing",
}


@pytest.mark.promise("image-files")
@pytest.mark.parametrize("name", BAD)
def test_bad_files_raise_one_line_that_names_them(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BAD[name])
    with pytest.raises(images.UnreadableImageError) as caught:
        images.read(str(path), 16)
    assert caught.value.path == str(path) and caught.value.reason
    assert "\n" not in str(caught.value) and repr(str(path)) in str(caught.value)
    assert images.find(str(tmp_path))[0] == [str(path)]


@pytest.mark.promise("image-files")
def test_missing_forbidden_and_folder_are_unreadable(tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    for name in ("missing.png", "folder.png"):
        with pytest.raises(images.UnreadableImageError):
            images.read(str(tmp_path / name), 16)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images.Image, "open", refuse)
    with pytest.raises(images.UnreadableImageError, match="Permission denied"):
        images.read("secret.png", 16)


@pytest.mark.promise("odd-images")
def test_find_follows_links_but_no_loops_and_skips_hidden_names(tmp_path):
    names = ["b.png", "a b.jpg", "new\nline.png", "ö.JPEG", "sub/deep/c.webp"]
    hidden = [".d.png", ".git/e.png", "notes.txt", "sub/noextension"]
    for name in names + hidden:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "sub" / "again").symlink_to(tmp_path / "sub" / "deep")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "@eaDir" / "thumbnail.jpg").write_bytes(b"x")
    (tmp_path / "camera.DNG").write_bytes(b"x")
    paths, others = images.find(str(tmp_path))
    assert paths == sorted(paths)
    expected = [pathlib.Path(name).name for name in names]
    # Every mention counts: c.webp is there under its own folder and under the link.
    expected += ["c.webp", "broken.png", os.fsdecode(b"\xff.png")]
    assert sorted(map(os.path.basename, paths)) == sorted(expected)
    assert others == {
        "@eaDir/": 1,
        ".dng": 1,
        ".txt": 1,
        "files without an extension": 1,
    }
    with pytest.raises(images.UnreadableImageError):
        images.read(str(tmp_path / "broken.png"), 8)


def test_find_names_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def listdir(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(ValueError, match="Permission denied"):
        images.find(str(tmp_path))


@pytest.mark.parametrize("threads", [1, 4])
def test_read_all_keeps_the_order(threads):
    colours = [(i, 2 * i, 255 - i) for i in range(101)]
    rows = [
        (encoded(Image.new("RGB", (4, 4), colour)), f"image {i}", i)
        for i, colour in enumerate(colours)
    ]
    rows[50] = (b"broken", "image 50", 50)
    blocks = list(images.read_all(iter(rows), 2, threads))
    results = [row for block in blocks for row in block]
    assert [label for _, label in results] == list(range(101))
    for index, (image, _) in enumerate(results):
        if index == 50:
            assert (
                isinstance(image, images.UnreadableImageError)
                and image.path == "image 50"
            )
        else:
            np.testing.assert_array_equal(image[0, 0], colours[index])


def test_median_short_side():
    sizes = [(10, 50), (20, 20), (90, 30), (40, 40), (7, 7)]
    sources = [(encoded(Image.new("L", size)), "x") for size in sizes]
    assert images.median_short_side([*sources, (b"bad", "y")]) == 20
    with pytest.raises(ValueError, match="'y'"):
        images.median_short_side([(b"bad", "y")])


# Large images


MODES = {
    **{mode: (mode, {}) for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "I;16")},
    "P with transparency": ("P", {"transparency": 3}),
    "RGB with transparency": ("RGB", {"transparency": (0, 0, 0)}),
}


@pytest.mark.promise("decode-memory")
@pytest.mark.parametrize(("mode", "options"), MODES.values(), ids=MODES)
@pytest.mark.parametrize("strip", [1, 90, 1000])
def test_a_large_image_is_made_rgb_in_strips_without_a_seam(
    monkeypatch, mode, options, strip
):
    image = photo(40, 37, "L" if mode == "I;16" else mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(photo(40, 37, "L").rotate(90, expand=False))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 250)
    content = encoded(image, **options)
    whole = images.read(content, 37)
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", strip)
    np.testing.assert_array_equal(images.read(content, 37), whole)
    assert whole.std() > 20


def hold(budget, needs, seconds=0.02):
    """Returns (bytes held, largest need among them) whenever a thread had got its."""
    held, seen, mutex = [], [], threading.Lock()

    def work(need):
        with budget.reserve(need):
            with mutex:
                held.append(need)
                seen.append((sum(held), max(held)))
            time.sleep(seconds)
            with mutex:
                held.remove(need)

    threads = [threading.Thread(target=work, args=(need,)) for need in needs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return seen


@pytest.mark.promise("decode-memory")
def test_the_memory_of_large_images_is_limited():
    needs = [400, 900, 100, 600, 250, 250, 1000, 50, 3000, 700] * 2
    seen = hold(decoding.Budget(1000), needs)
    assert len(seen) == len(needs)
    for total, largest in seen:
        assert total <= 1000 or (total == largest == 3000)
    assert max(total for total, _ in seen if total <= 1000) > 900  # they do share


@pytest.mark.promise("decode-memory")
def test_small_images_do_not_wait():
    budget = decoding.Budget(64_000)
    with budget.reserve(10**9):
        assert sum(total == 999 * 8 for total, _ in hold(budget, [999] * 8, 0.5)) == 1
        waiting = threading.Thread(target=hold, args=(budget, [1000], 0))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive() and budget.used == 0


def test_an_error_gives_the_memory_back(monkeypatch):
    budget = decoding.Budget(64)
    monkeypatch.setattr(images, "_BUDGET", budget)
    with pytest.raises(images.UnreadableImageError):
        images.read(encoded(photo(200, 200), "JPEG", progressive=True)[:1500], 16)
    assert budget.used == 0


PEAK = """
    import re, sys
    from tfsimclr.data import decoding, images

    def peak():  # not the one of resource.getrusage, which a child inherits
        with open("/proc/self/status") as file:
            return int(re.search(r"VmHWM:\\s*(\\d+) kB", file.read())[1])

    images._BUDGET = decoding.Budget(int(sys.argv[1]) << 20)
    images._BLOCK = 1  # so that all threads work
    with open(sys.argv[2], "rb") as file:
        content = file.read()
    rows = [(content, f"image {i}", i) for i in range(6)]
    before = peak()
    found = [row for block in images.read_all(rows, 16, threads=6) for row in block]
    assert [label for _, label in found] == list(range(6))
    assert all(image.shape == (16, 16, 3) for image, _ in found)
    print((peak() - before) >> 10)
"""


LARGE = {
    # 100 MB of coefficients each, whatever the draft.
    "progressive.jpg": (4200, "RGB", {"progressive": True, "subsampling": 0}),
    # 50 MB decoded and 50 MB made RGB; looking for the orientation decodes it too.
    "rgba.png": (3500, "RGBA", {"compress_level": 1}),
}


@pytest.mark.promise("decode-memory")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", LARGE)
def test_six_threads_decode_large_images_in_little_memory(tmp_path, name):
    """Two images at once, or six without the limit."""
    side, mode, options = LARGE[name]
    picture = Image.radial_gradient("L").convert(mode).resize((side, side))
    picture.save(tmp_path / name, **options)

    def megabytes(limit):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PEAK), str(limit), tmp_path / name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert megabytes(limit=240) < 280
    assert megabytes(limit=10_000) > 380


KINDS = {
    **{"png": ("RGB", "PNG", {}), "rgba.png": ("RGBA", "PNG", {})},
    **{"jpeg": ("RGB", "JPEG", {}), "p.gif": ("P", "GIF", {})},
    "progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "cmyk": ("CMYK", "JPEG", {"progressive": True, "subsampling": 0}),
    "webp": ("RGB", "WEBP", {}),
}


@pytest.mark.parametrize(("mode", "kind", "options"), KINDS.values(), ids=KINDS)
def test_the_need_of_an_image_covers_its_pixels_and_coefficients(mode, kind, options):
    content = encoded(photo(160, 120, mode), kind, **options)
    with Image.open(io.BytesIO(content)) as image:
        full_size, bands = image.size, len(image.getbands())
        image.draft(None, (15, 15))
        drafted = image.width * image.height
        need = decoding.bytes_needed(image, full_size)
    assert (drafted < 160 * 120) == (kind == "JPEG")
    coefficients = 2 * bands * 160 * 120 if options else 0
    per_pixel = 16 if kind == "WEBP" else 4 if mode == "RGB" else 8
    assert coefficients + per_pixel * drafted <= need
    assert need <= 1.3 * (coefficients + per_pixel * drafted)


def test_a_camera_s_largest_images_are_no_reason_for_a_warning(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 10_000)).save(path)  # Pillow warns from 89 million pixels
    sources = [(str(path), "large")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(images.UnreadableImageError, match="bomb"):
            images.short_side(str(path))  # it does warn
        assert images.median_short_side(sources) == 10_000
        (((image, _),),) = images.read_all([(str(path), "large", 0)], 4)
    assert (image == 0).all()
