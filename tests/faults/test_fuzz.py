"""Bad input: whatever comes, a sentence that says what to do, and nothing half made."""

import collections
import dataclasses
import io
import os
import pathlib
import subprocess
import sys
import traceback

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from fuzz_script import script
from hypothesis import strategies as st
from last_words import last_words
from PIL import Image

from tfsimclr import build, resolve, run
from tfsimclr.data import dataset as datasets
from tfsimclr.data import images, store
from tfsimclr.errors import UserError
from tfsimclr.evaluation import projector
from tfsimclr.modes import export
from tfsimclr.networks import resnet
from tfsimclr.runs import loading
from tfsimclr.settings import config as configs
from tfsimclr.settings import flagfiles
from tfsimclr.settings.config import Config

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_COMMAND_LINES = 2000
NUM_BROKEN_IMAGES = 1000


def fuzz(count):
    """Returns the settings of a test that takes `count` inputs, always the same."""
    return hypothesis.settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


# The parser of flags and flagfiles


NAMES = [field.name for field in dataclasses.fields(Config)]
# A command line holds any character but NUL; a file holds any byte.
TEXT = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12
)
VALUES = st.one_of(
    TEXT,
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["true", "false", "none", "auto", "", "~", "~nobody/x", "head_3"]),
    st.sampled_from(
        [c for f in dataclasses.fields(Config) for c in f.metadata["choices"] or ()]
    ),
)
FLAGS = st.builds(
    "{}{}={}".format,
    st.sampled_from(["--", "-", "--no"]),
    st.sampled_from(NAMES),
    VALUES,
)
ARGUMENTS = st.one_of(
    FLAGS,
    TEXT,
    st.sampled_from(
        ["--", "-", "--flagfile", "--flagfile=", "--undefok=x", "--noflip"]
    ),
    st.just("--flagfile=FILE"),
)
FILES = st.one_of(
    st.binary(max_size=60), st.lists(FLAGS, max_size=4).map("\n".join).map(str.encode)
)


PARSER = flags.FlagValues()
configs.define_flags(PARSER)
PARSER.set_gnu_getopt(True)


def parsed(arguments):
    """Returns the config of arguments from `flagfiles.expand`."""
    before = flagsaver.save_flag_values(PARSER)
    try:
        PARSER(arguments)
        return configs.from_flags(PARSER)
    finally:
        flagsaver.restore_flag_values(before, PARSER)


def end_of(arguments):
    """Returns "settings", or where a command line is refused."""
    try:
        config = parsed(flagfiles.expand(["program", *arguments]))
    except SystemExit as stop:
        assert stop.code.startswith("tfsimclr: ")
        return "flagfile"
    except flags.Error as error:
        assert str(error)
        return "parser"
    except UserError as error:
        assert str(error).startswith("-")
        return "value"
    except ValueError as error:  # absl's; `run._parse` catches it
        assert str(error).startswith("-")
        assert traceback.extract_tb(error.__traceback__)[-1].name == "_parse_args"
        return "parser"
    assert parsed(["program", *config.lines()]) == config
    return "settings"


@pytest.mark.promise("any-command-line")
def test_any_command_line_gives_settings_or_a_sentence(tmp_path):
    path, ends = tmp_path / "fuzzed.flags", collections.Counter()

    @fuzz(NUM_COMMAND_LINES)
    @hypothesis.given(arguments=st.lists(ARGUMENTS, max_size=4), content=FILES)
    def check(arguments, content):
        path.write_bytes(content)
        with script.time_limit(10):
            ends[end_of([a.replace("FILE", str(path)) for a in arguments])] += 1

    check()
    assert sum(ends.values()) >= NUM_COMMAND_LINES
    for end in ("settings", "flagfile", "parser", "value"):
        assert ends[end] > NUM_COMMAND_LINES / 50, ends


@pytest.mark.promise("one-line")
@pytest.mark.parametrize("flag", ["--noflip=false", "--noflip=", "--nodeterministic=1"])
def test_what_the_parser_of_flags_refuses_is_one_line(monkeypatch, flag):
    values = flags.FlagValues()
    configs.define_flags(values)
    monkeypatch.setattr(run.flags, "FLAGS", values)
    with pytest.raises(SystemExit, match="^tfsimclr: .*See --help"):
        run._parse(["program", flag])


@pytest.mark.promise("flagfiles")
@pytest.mark.parametrize("line", ["--workdir=~a\0b", "--flagfile=a\0b", "\0"])
def test_a_flagfile_that_is_no_text_is_refused(tmp_path, line):
    path = tmp_path / "a.flags"
    path.write_text(f"--epochs=3\n{line}\n")
    with pytest.raises(SystemExit, match="a.flags"):
        flagfiles.expand(["program", f"--flagfile={path}"])


# Settings that fit neither the network nor the data


@pytest.mark.promise("early")
@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"stem": "imagenet", "image_size": 16}, ["--image_size=16", "--stem=small"]),
        ({"batch_size": 81}, ["--batch_size=81", "80 images", "--batch_size=80"]),
        (
            {"batch_size": 31, "num_pretrain_images": 30},
            ["--batch_size=31", "30 images", "--batch_size=30"],
        ),
        ({"num_pretrain_images": 81}, ["--num_pretrain_images=81", "80 images"]),
        ({"proj_activation": "rleu"}, ["--proj_activation", "leaky_relu", "'rleu'"]),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_made(
    tiny, tmp_path, monkeypatch, settings, parts
):
    config, *_ = tiny()
    message = last_words(monkeypatch, dataclasses.replace(config, **settings))
    assert all(part in message for part in parts), message
    assert not (tmp_path / "run").exists()


@pytest.mark.promise("early")
@pytest.mark.parametrize("stem", ["imagenet", "medium", "small"])
def test_the_smallest_size_a_stem_takes_is_that_of_the_message(tiny, stem):
    smallest = resnet.smallest_image(stem)
    assert tiny(stem=stem, image_size=max(8, smallest))[0].stem == stem
    if smallest > 8:
        with pytest.raises(ValueError, match=f"at least {smallest}"):
            tiny(stem=stem, image_size=smallest - 1)


@pytest.mark.promise("run-folder-settings")
@pytest.mark.parametrize("place", ["below a file", "forbidden"])
def test_a_run_folder_that_cannot_be_written_is_named(
    tiny, tmp_path, monkeypatch, place
):
    config, *_ = tiny()
    workdir = tmp_path / "locked" / "run"
    if place == "below a file":
        (tmp_path / "locked").write_text("no folder")
    else:  # root may write everywhere

        def refuse(path, *_, **__):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    monkeypatch.setattr(build, "dataset", lambda config: None)
    monkeypatch.setattr(resolve, "resolve", lambda config, dataset: config)
    config = dataclasses.replace(config, workdir=str(workdir))
    message = last_words(monkeypatch, config)
    assert str(workdir) in message
    assert "Not a directory" in message or "Permission denied" in message


# Images and data sets


def encoded(kind, image, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def originals():
    """Returns small images of all that JPEG and PNG can do."""
    x, y = np.mgrid[:24, :20]
    image = Image.fromarray(np.stack([9 * x, 12 * y, 5 * (x + y)], -1).astype(np.uint8))
    wide = Image.fromarray((2000 * x).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encoded("JPEG", image, exif=exif),
        encoded("JPEG", image, progressive=True),
        encoded("JPEG", image.convert("CMYK")),
        encoded("JPEG", image.convert("L"), restart_marker_rows=1),
        encoded("PNG", image),
        encoded("PNG", image.convert("RGBA"), exif=exif),
        encoded("PNG", image.convert("P"), transparency=3),
        encoded("PNG", wide),
    ]


ORIGINALS = originals()


@st.composite
def broken(draw):
    """Draws an image with bytes changed, taken out, put in, and its end cut off."""
    content = bytearray(draw(st.sampled_from(ORIGINALS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 4))
        content[at : at + length] = draw(st.binary(max_size=4))
    if draw(st.sampled_from([True, False, False, False])):
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


def test_the_originals_are_whole():
    for content in ORIGINALS:
        assert images.read(content, 16).std() > 5


@pytest.mark.promise("any-image")
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_any_bytes_give_an_image_or_say_why_not():
    ends = collections.Counter()

    @fuzz(NUM_BROKEN_IMAGES)
    @hypothesis.given(content=broken(), size=st.integers(1, 40))
    def check(content, size):
        try:
            with script.time_limit(20):
                assert images.short_side(content, "it") >= 1
                result = images.read(content, size, "it")
        except images.UnreadableImageError as error:
            assert error.reason and "\n" not in str(error)
            assert str(error).startswith("'it': ")
            ends["refused"] += 1
        else:
            assert result.shape == (size, size, 3) and result.dtype == np.uint8
            ends["read"] += 1

    check()
    assert sum(ends.values()) >= NUM_BROKEN_IMAGES
    assert min(ends["read"], ends["refused"]) > NUM_BROKEN_IMAGES / 20, ends


@pytest.mark.promise("store")
@pytest.mark.parametrize("num_broken", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_broken_files_leave_a_whole_store_or_none(tmp_path, seed, num_broken):
    random = np.random.default_rng((seed, num_broken))
    folder, cache = tmp_path / "in", tmp_path / "cache"
    folder.mkdir()
    for i in range(150 - num_broken):
        (folder / f"{i}.jpg").write_bytes(ORIGINALS[i % len(ORIGINALS)])
    for i in range(num_broken):
        content = bytearray(ORIGINALS[random.integers(len(ORIGINALS))])
        for at in random.integers(0, len(content), 9):
            content[at] = random.integers(256)
        content = content[: random.integers(2 * len(content))]
        (folder / f"broken {i}.jpg").write_bytes(content)
    try:
        found = datasets.load("folder", data_dir=str(folder), cache_dir=str(cache))
    except ValueError as error:
        assert "more than 1%" in str(error) and num_broken > 1
        assert not list(cache.iterdir())
    else:
        (path,) = cache.iterdir()
        assert found.skipped <= min(1, num_broken)
        assert len(found.unlabeled.images) == 150 - found.skipped
        with pytest.raises(
            store.InvalidStoreError, match="other data"
        ):  # whole, that is
            store.open(path, "another fingerprint")


@pytest.mark.promise("odd-images")
def test_a_wild_folder(tmp_path, capsys):
    """Everything odd at once, 1 % of it bad: the bad is named, the rest is used."""
    folder = tmp_path / "my phötos\n(old)"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "sub dir" / "loop").symlink_to(folder)
    for i in range(297):
        (folder / "sub dir" / f"ü {i}\n.png").write_bytes(ORIGINALS[4])
    (folder / "dot.png").write_bytes(encoded("PNG", Image.new("RGB", (1, 1), "red")))
    (folder / "banner.jpg").write_bytes(
        encoded("JPEG", Image.new("RGB", (20000, 9), "red"))
    )
    bad = {"zero.jpg": b"", "te\nxt.png": b"hello", "cut.jpg": ORIGINALS[0][:400]}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    found = datasets.load(
        "folder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"), image_size=8
    )
    assert len(found.unlabeled.images) == 299 and found.skipped == 3
    assert found.unlabeled.images.shape[1:] == (11, 11, 3)
    error = capsys.readouterr().err
    for name in bad:
        assert sum(repr(name)[1:-1] in line for line in error.splitlines()) == 1


@pytest.mark.promise("odd-images")
def test_names_that_are_no_text(tmp_path, capfd):
    """A file name is bytes, of no known code: read, named, stored and shown."""
    folder = tmp_path / os.fsdecode(b"photos \xff")
    for i in range(150):
        path = folder / os.fsdecode([b"\xfe cat", b"dog\t\n\xc3"][i % 2])
        path.mkdir(parents=True, exist_ok=True)
        (path / os.fsdecode(b"%d \xfd.png" % i)).write_bytes(ORIGINALS[4])
    (path / os.fsdecode(b"bad \xfc.png")).write_bytes(b"no image")
    settings = {"data_dir": str(folder), "cache_dir": str(folder), "image_size": 8}
    found = [datasets.load("folder", **settings) for _ in range(2)]  # made, and opened
    for dataset in found:
        assert dataset.class_names == ("dog\t\n\udcc3", "\udcfe cat")
        assert len(dataset.train.images) + len(dataset.test.images) == 150
        assert dataset.skipped == 1
    output = capfd.readouterr()
    assert output.err.count(r"\udcff") == 1 and r"bad \udcfc.png" in output.err
    test = found[0].test
    projector.write(tmp_path / "board", np.eye(30)[:, :3], test, dataset.class_names)
    labels = (tmp_path / "board" / "labels.tsv").read_text(encoding="utf-8")
    assert len(labels.split("\n")) == 31 and set(labels.split("\n")[:-1]) == {
        *("dog ?", "? cat")
    }


PRINTED = """
from tfsimclr import run
run.run = lambda config, *_: print("\\n".join(config.lines()))
run.main()
"""


@pytest.mark.promise("odd-images")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_path_that_no_terminal_can_show_is_no_error(encoding):
    done = subprocess.run(
        [sys.executable, "-c", PRINTED, b"--data_dir=/x/\xff\xe7\x8c\xab"],
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"--data_dir=/x/\\udcff" in done.stdout and done.stderr == b""


def test_a_folder_of_no_text_is_named_in_one_line(tmp_path, monkeypatch):
    missing = str(tmp_path / os.fsdecode(b"missing \xff"))
    config = Config(dataset="folder", data_dir=missing, cache_dir=str(tmp_path))
    assert r"missing \udcff" in last_words(monkeypatch, config)


def split(labels):
    labels = np.array(labels, np.int64)
    return datasets.Split(np.zeros((len(labels), 8, 8, 3), np.uint8), labels)


@pytest.mark.promise("labels")
@pytest.mark.parametrize(
    ("train", "test", "names", "expected"),
    [
        ([0, 1], [1, 0], ("a", "b"), True),
        ([0, 1, -1], [-1, 0], ("a", "b"), True),
        ([0, 0], [0, 0], ("a",), False),
        ([0, 1], None, ("a", "b"), False),
        (None, [0, 1], ("a", "b"), False),
        ([-1, -1], [0, 1], ("a", "b"), False),
        ([0, 1], [-1, -1], ("a", "b"), False),
    ],
)
def test_labels_are_there_only_if_both_splits_have_some(train, test, names, expected):
    parts = [split(labels) if labels else None for labels in (train, test)]
    dataset = datasets.DataSet("x", split([-1]), *parts, names, 8)
    assert dataset.has_labels == expected


# The exported model


@pytest.mark.promise("export-input")
@pytest.mark.parametrize("signature", ["serving_default", "serving_uint8"])
def test_a_saved_model_names_the_shape_that_it_cannot_take(tiny, tmp_path, signature):
    config, *_ = tiny()
    dtype = tf.float32 if signature == "serving_default" else tf.uint8
    module = export.Exported(loading.untrained(config), 16, ("h", "head_1", "z"))
    spec = tf.TensorSpec([None, None, None, 3], dtype, name="images")
    serve = tf.function(module.outputs, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={signature: serve})
    loaded = tf.saved_model.load(str(tmp_path / "m")).signatures[signature]
    assert loaded(images=tf.zeros([2, 5, 9, 3], dtype))["h"].shape[0] == 2
    # Three images of four channels have the bytes of four images of three.
    for wrong in ([16, 16, 3], [3, 16, 16, 4], [2, 16, 16, 1], [2, 16, 16]):
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            loaded(images=tf.zeros(wrong, dtype))
        assert str(wrong).replace(" ", "") in str(error.value)
