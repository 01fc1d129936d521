"""Images of more than 8 bits: one range per data set, whatever the file format."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tfsimclr import resolve
from tfsimclr.data import dataset as datasets
from tfsimclr.data import depth, images
from tfsimclr.errors import UserError
from tfsimclr.modes import transfer
from tfsimclr.settings.config import Config

SIDE = 12
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
FORMATS = {"u": 1, "i": 2, "f": 3}  # of TIFF's tag 339, by NumPy's kind


def png(values):
    """Returns 16-bit pixels `[h, w, c]` as a PNG file; Pillow writes only gray ones."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, COLOR_TYPES[channels], 0, 0, 0)

    def chunk(name, data):
        return (
            struct.pack(">I", len(data))
            + name
            + data
            + struct.pack(">I", zlib.crc32(name + data))
        )

    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(values, order="<", compressed=False):
    """Returns pixels `[h, w, c]` of any type as a TIFF file of one strip."""
    height, width, channels = values.shape
    bits, kind = 8 * values.dtype.itemsize, FORMATS[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if compressed else data
    tags = {
        **{256: width, 257: height, 258: [bits] * channels},
        **{259: 8 if compressed else 1, 262: 2 if channels > 2 else 1, 273: None},
        **{277: channels, 278: height, 279: len(data)},
        **({338: 2} if channels in (2, 4) else {}),
        339: [kind] * channels,
    }
    start = 8 + 2 + 12 * len(tags) + 4
    lists = b""
    entries = struct.pack(order + "H", len(tags))
    long_lists = sum(2 * channels for v in tags.values() if isinstance(v, list))
    pixels = start + (long_lists if channels > 2 else 0)
    for tag, value in tags.items():
        if isinstance(value, list) and channels > 2:
            entries += struct.pack(order + "HHII", tag, 3, channels, start + len(lists))
            lists += struct.pack(order + "H" * channels, *value)
        elif isinstance(value, list):
            padded = (*value, 0)[:2]
            entries += struct.pack(order + "HHIHH", tag, 3, channels, *padded)
        elif tag in (259, 262, 277, 338):
            entries += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
        else:
            value = pixels if value is None else value
            entries += struct.pack(order + "HHII", tag, 4, 1, value)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", 8) + entries + bytes(4) + lists + data


def pixels(high, channels=1, dtype=np.uint16, low=0, seed=0):
    """Returns random values from `low` to `high`, both of which occur."""
    random = np.random.default_rng(seed)
    values = random.integers(low, high + 1, (SIDE, SIDE, channels)).astype(dtype)
    values[0, 0, 0], values[0, 1, 0] = low, high
    return values


def expected(values, low, high):
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    return np.broadcast_to(np.rint(scaled).clip(0, 255), (SIDE, SIDE, 3))


def write(folder, contents, extension="png"):
    for name, content in enumerate(contents):
        path = folder / "ab"[name % 2] / f"{name:03}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def load(tmp_path, **options):
    return datasets.load(
        "folder",
        data_dir=str(tmp_path / "in"),
        cache_dir=str(tmp_path / "cache"),
        image_size=SIDE,
        **options,
    )


def stored(dataset):
    """Returns the images of train and test in the order of the files."""
    parts = [split.images for split in (dataset.train, dataset.test) if split]
    return np.concatenate(parts)


@pytest.mark.quick
@pytest.mark.promise("image-files")
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["png", "tiff<", "tiff>", "tiff<z", "tiff>z"])
def test_all_bits_of_16_bit_files_are_read(kind, channels):
    """Pillow keeps only the high byte of 16-bit colour and of gray with alpha."""
    values = pixels(4095, channels)
    content = png(values) if kind == "png" else tiff(values, kind[4], "z" in kind)
    if channels == 2 and kind != "png":
        with pytest.raises(images.UnreadableImageError, match="2 channels of 16 bits"):
            images.read(content, SIDE)
        return
    if channels in (2, 4):
        values[..., -1] = 4095
        content = png(values) if kind == "png" else tiff(values, kind[4], "z" in kind)
    colors = values[..., : 3 if channels > 2 else 1]
    assert images.extent(content) == ("integer", colors.min(), colors.max())
    result = images.read(content, SIDE, ranges={"integer": depth.Range(0, 4095)})
    np.testing.assert_array_equal(result, expected(colors, 0, 4095))


def test_transparent_16_bit_pixels_are_white():
    values = pixels(4095, 4)
    values[:6, :, 3], values[6:, :, 3] = 0, 4095
    result = images.read(png(values), SIDE, ranges={"integer": depth.Range(0, 4095)})
    assert (result[:6] == 255).all()
    np.testing.assert_array_equal(result[6:], expected(values[..., :3], 0, 4095)[6:])


@pytest.mark.parametrize("high", [1, 15, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_range_for_all_images_of_a_data_set(tmp_path, capsys, high, channels):
    """F2: 12-bit data in 16-bit files was divided by 257, so it was almost black.

    Siblings looked for, and what they did: 16-bit TIFF (the same), TFDS uint16 (the
    same), 16-bit colour in PNG and TIFF (only its high byte was read: 16 levels of a
    12-bit image), gray with alpha (the same), PGM with a maxval (scaled by its own
    maxval, so mixed with PNG it would have another scale), signed 16-bit TIFF (refused
    below 0, else divided by 257), 32-bit integers (the same), float TIFF (refused),
    1-bit and palette images (always right: 0 to 255 by definition), 12-bit packed TIFF
    (divided by 257), alpha of 12 bits (almost transparent, so white), a hot pixel (the
    reason for --max_value), 8-bit images of few values (now named as dark).
    """
    dark, bright = pixels(high // 2 + 1, channels), pixels(high, channels, seed=1)
    write(tmp_path / "in", [png(dark), png(bright)] * 5)
    for _ in range(2):  # prepared, then opened
        dataset = load(tmp_path)
        output = capsys.readouterr().out
        assert f"10 images of more than 8 bits hold 0 to {high}" in output
        assert f"{high / 65535:.1%} of 16 bits" in output
        wide = dataset.description["wide"]["integer"]
        assert wide["images"] == 10 and wide["range"] == [0, high]
        result = stored(dataset)
        labels = np.concatenate([dataset.train.labels, dataset.test.labels])
        for image, label in zip(result, labels, strict=True):
            truth = expected((dark, bright)[label], 0, high)
            np.testing.assert_array_equal(image, truth)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_max_value_is_the_range_and_another_store(tmp_path, capsys):
    values = pixels(3000)
    values[3, 3] = 60000  # a hot pixel
    write(tmp_path / "in", [png(values)] * 4)
    automatic = stored(load(tmp_path))
    assert np.median(automatic) < 10
    assert "dark: 99% of the values are at most" in capsys.readouterr().out
    dataset = load(tmp_path, max_value=4095)
    np.testing.assert_array_equal(stored(dataset)[0], expected(values, 0, 4095))
    assert "0 to 4095 becomes 0 to 255" in (output := capsys.readouterr().out)
    assert "larger values are clipped" in output
    assert dataset.description["wide"]["integer"]["largest"] == 60000
    assert len(list((tmp_path / "cache").iterdir())) == 2
    np.testing.assert_array_equal(stored(load(tmp_path)), automatic)


def test_max_value_of_8_bit_images_is_refused(tmp_path):
    gray = Image.fromarray(pixels(255).astype(np.uint8)[..., 0])
    gray.save(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "in" / "a.png")
    with pytest.raises(UserError, match="--max_value=4095 means nothing"):
        load(tmp_path, max_value=4095)
    with pytest.raises(UserError, match="--max_value=4095 means nothing"):
        resolve.check(Config(max_value=4095))


@pytest.mark.parametrize(
    "values,low,high",
    [
        (pixels(3000, dtype=np.int16, low=-1000), -1000, 3000),
        (pixels(3000, dtype=np.int16, low=5), 0, 3000),
        (pixels(70000, dtype=np.int32), 0, 70000),
        (pixels(3000, dtype=np.float32) / np.float32(3000), 0, 1),
        (pixels(3000, dtype=np.float32, low=-1000), -1000, 3000),
    ],
    ids=["int16", "positive int16", "int32", "float 0-1", "float"],
)
@pytest.mark.parametrize("order", "<>")
def test_signed_and_floating_point_tiff(tmp_path, capsys, values, low, high, order):
    write(tmp_path / "in", [tiff(values, order)] * 4, "tif")
    np.testing.assert_array_equal(
        stored(load(tmp_path))[0], expected(values, float(low), float(high))
    )
    assert f"; {low} to {high} becomes 0 to 255" in capsys.readouterr().out


def test_values_that_are_no_numbers_are_unreadable():
    values = pixels(10, dtype=np.float32)
    values[2, 2] = np.nan
    with pytest.raises(images.UnreadableImageError, match="not finite"):
        images.extent(tiff(values))


def test_8_bit_images_beside_16_bit_ones_stay_as_they_are(tmp_path):
    eight = pixels(200).astype(np.uint8)
    folder = tmp_path / "in"
    write(folder, [png(pixels(4095, seed=i)) for i in range(6)])
    Image.fromarray(eight[..., 0]).save(folder / "a" / "eight.png")
    (folder / "a" / "palette.png").write_bytes(b"")
    Image.fromarray(eight[..., 0]).convert("P").save(folder / "a" / "palette.png")
    result = stored(load(tmp_path))
    same = [np.array_equal(image[..., 0], eight[..., 0]) for image in result]
    assert sum(same) == 2


def test_the_maxval_of_a_pgm_file_is_no_range(tmp_path):
    """Pillow multiplies by 65535 / maxval, which PNG files beside it do not know."""
    values = pixels(3000)
    header = f"P5 {SIDE} {SIDE} 4095\n".encode()
    contents = [header + values.astype(">u2").tobytes(), png(pixels(4095))]
    write(tmp_path / "in", contents[:1] * 4, "pgm")
    write(tmp_path / "in", contents[1:] * 4)
    result = stored(load(tmp_path))
    truth = expected(values, 0, 4095)
    assert sum(np.abs(image - truth).max() <= 1 for image in result) == 4


def test_tfds_uint16(tmp_path, capsys):
    import tensorflow_datasets as tfds

    values = pixels(4095)
    rows = [(i, {"image": values, "label": i % 2}) for i in range(10)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="microscope",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(SIDE, SIDE, 1), dtype=np.uint16),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
        ),
        split_datasets={"train": rows},
        data_dir=str(tmp_path / "tfds"),
    )
    options = {"data_dir": str(tmp_path / "tfds"), "cache_dir": str(tmp_path / "c")}
    dataset = datasets.load("microscope", image_size=SIDE, **options)
    np.testing.assert_array_equal(stored(dataset)[0], expected(values, 0, 4095))
    assert "6.2% of 16 bits" in capsys.readouterr().out
    dataset = datasets.load("microscope", image_size=SIDE, max_value=8190, **options)
    np.testing.assert_array_equal(stored(dataset)[0], expected(values, 0, 8190))


def test_images_that_are_all_one_value(tmp_path):
    write(tmp_path / "in", [png(np.zeros((SIDE, SIDE, 1), np.uint16))] * 4)
    assert (stored(load(tmp_path)) == 0).all()


def test_other_data_are_scaled_by_the_range_of_the_run(tmp_path, capsys):
    """`--eval_dataset`: new images have the scale that the encoder learned."""
    write(tmp_path / "in", [png(pixels(2000))] * 4)
    own = stored(load(tmp_path))
    run = tmp_path / "run"
    run.mkdir()
    wide = {"integer": {"images": 9, "range": [0, 4095]}}
    (run / "result.json").write_text(json.dumps({"data": {"wide": wide}}))
    ranges = transfer.value_ranges(Config(), run)
    assert ranges == {"integer": [0, 4095]}
    for _ in range(2):
        other = stored(load(tmp_path, ranges=ranges))
        np.testing.assert_array_equal(other[0], expected(pixels(2000), 0, 4095))
        assert "0 to 4095 becomes 0 to 255" in capsys.readouterr().out
    np.testing.assert_array_equal(stored(load(tmp_path)), own)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("content", [None, "", "{}", '{"data": {"wide": {}}}'])
def test_the_range_of_a_run_that_has_none(tmp_path, content):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    assert transfer.value_ranges(Config(), tmp_path) == {}
    if content is None:
        fixed = transfer.value_ranges(Config(dataset="x", max_value=9), tmp_path)
        assert fixed["integer"] == [0, 9]
