"""Embedding files: every image with its path, complete whatever happens."""

import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import command
from PIL import Image

import tfsimclr
from tfsimclr import files, run
from tfsimclr.data import images
from tfsimclr.errors import UserError
from tfsimclr.modes import embed, export
from tfsimclr.runs import embedder as embedders
from tfsimclr.runs import embeddings, loading
from tfsimclr.runs import folder as run_folder
from tfsimclr.runs.embeddings import EmbeddingFile
from tfsimclr.settings import config as configs

ROOT = pathlib.Path(__file__).resolve().parents[2]
COUNT = 40


@pytest.fixture(scope="module")
def once(finished_once, tmp_path_factory):
    """Returns an exported run folder and a folder of photographs in two classes."""
    config, dataset, folder = finished_once
    root = tmp_path_factory.mktemp("embed")
    shutil.copytree(folder, root / "run")
    export.export(config, None, root / "run")
    for index in range(COUNT):
        path = root / "photos" / ("cat", "dog")[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.unlabeled.images[index]).save(path)
    return config, root / "run", root / "photos"


@pytest.fixture(scope="module")
def loaded_once(once):
    """Returns a function that opens an unchanged run once for each choice of layers."""
    of_run = embedders.of_run
    cached = functools.cache(lambda layers: of_run(once[1], layers))

    def cached_of_run(workdir, layers=("h",)):
        embedders._check_layers(layers, ("h", "head_1", "z"))
        return cached(tuple(layers))

    return cached_of_run


@pytest.fixture
def trained(once, loaded_once, tmp_path, monkeypatch):
    """Returns the same, as the folders `run` and `photos` of the working directory."""
    config, folder, photos = once
    shutil.copytree(folder, tmp_path / "run")
    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedders, "of_run", loaded_once)
    monkeypatch.setattr(embed, "BATCH_SIZE", 8)
    monkeypatch.setattr(embeddings, "PART_BYTES", 1)  # a part a batch
    return config, tmp_path / "run", tmp_path / "photos"


def test_a_folder_is_embedded(trained, capsys):
    config, folder, photos = trained
    command("--mode=embed", "--workdir=run", "--images=photos", "--layers=h,head_1,z")
    table = pq.read_table(folder / "embeddings.parquet")
    assert table.column_names == [
        *("path", "split", "label", "checksum", "h", "head_1", "z"),
    ]
    paths = table["path"].to_pylist()
    assert sorted(paths) == sorted(map(str, photos.rglob("*.png")))
    labels = [os.path.basename(os.path.dirname(path)) for path in paths]
    assert table["label"].to_pylist() == labels
    pixels = np.stack([images.read(path, 16) for path in paths])
    checksums = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
    assert table["checksum"].to_pylist() == checksums
    expected = loading.model(config, folder)[0].features(pixels)
    file = EmbeddingFile(folder / "embeddings.parquet")
    assert file.meta["layers"] == {name: x.shape[1] for name, x in expected.items()}
    for layer, values in expected.items():
        np.testing.assert_allclose(file.features(layer), values, atol=1e-5)
    assert not (folder / "embeddings.parquet.parts").exists()
    assert "40 images embedded." in capsys.readouterr().out
    command("--mode=embed", "--workdir=run", "--images=photos", "--layers=h,head_1,z")
    assert "is complete" in capsys.readouterr().out


def test_an_exported_model_gives_the_same_without_the_run(trained, tmp_path):
    _, folder, _ = trained
    command("--mode=embed", "--workdir=run", "--images=photos")
    shutil.copytree(folder / "saved_model", tmp_path / "model")
    shutil.rmtree(folder / "checkpoints")
    file = EmbeddingFile(folder / "embeddings.parquet")
    command(
        "--mode=embed", "--workdir=model", "--images=photos", "--output=other.parquet"
    )
    other = EmbeddingFile("other.parquet")
    assert other.meta["model"] == file.meta["model"]
    assert other.meta["key"] == file.meta["key"]
    np.testing.assert_allclose(other.features("h"), file.features("h"), atol=1e-5)
    assert other.columns("path", "checksum") == file.columns("path", "checksum")
    with pytest.raises(UserError, match="no run folder.*add --output="):
        command("--mode=embed", "--workdir=model", "--images=photos")


def test_an_older_export_needs_its_image_size(trained, tmp_path):
    os.remove(tmp_path / "run/saved_model/assets.extra/tfsimclr.json")
    arguments = ("--mode=embed", "--workdir=run/saved_model", "--images=photos")
    with pytest.raises(UserError, match="does not say.*--image_size=<pixels>"):
        command(*arguments, "--output=a.parquet")
    command(*arguments, "--output=a.parquet", "--image_size=16")
    assert EmbeddingFile("a.parquet").meta["image_size"] == 16
    # A fine-tuned network is embedded by its export as well.
    assert len(EmbeddingFile("a.parquet").meta["model"]) == 64


def test_other_formats_hold_the_same(trained):
    common = ("--mode=embed", "--workdir=run", "--images=photos", "--layers=z,h")
    for ending in embeddings.ENDINGS:
        command(*common, f"--output=e{ending}")
    file = EmbeddingFile("e.parquet")
    paths, labels, checksums = file.columns("path", "label", "checksum")
    with np.load("e.npz") as archive:
        assert archive["path"].tolist() == paths
        assert archive["label"].tolist() == labels
        assert json.loads(str(archive["meta"]))["key"] == file.meta["key"]
        for layer in ("h", "z"):
            np.testing.assert_array_equal(archive[layer], file.features(layer))
    frame = pd.read_csv("e.csv")
    assert frame["path"].tolist() == paths and frame["checksum"].tolist() == checksums
    columns = [name for name in frame.columns if name.startswith("z_")]
    values = frame[columns].to_numpy(np.float32)
    np.testing.assert_array_equal(values, file.features("z"))
    for ending in (".npz", ".csv"):
        with pytest.raises(UserError, match=f"e{ending} exists. Name another --output"):
            command(*common, f"--output=e{ending}")


def test_in_python(trained, tmp_path):
    config, _, photos = trained
    model, _ = loading.model(config, tmp_path / "run")
    of_run = tfsimclr.embed("run", "photos", ["h", "z"])
    assert of_run.features["z"].shape == (COUNT, config.proj_dim) and len(of_run) == 40
    pixels = np.stack([images.read(path, 16) for path in of_run.paths])
    of_array = tfsimclr.embed(model, pixels, "h")
    np.testing.assert_array_equal(of_array.features["h"], of_run.features["h"])
    assert of_array.paths[:2] == ["0", "1"]
    assert of_array.checksums == of_run.checksums
    of_floats = tfsimclr.embed(model, pixels.astype("float32"))
    assert of_floats.checksums == of_run.checksums
    some = of_run.paths[3:5]
    of_paths = tfsimclr.embed(tmp_path / "run/saved_model", some)
    assert of_paths.paths == some
    np.testing.assert_allclose(
        of_paths.features["h"], of_run.features["h"][3:5], atol=1e-5
    )
    path = tfsimclr.embed("run", photos, output="python.parquet")
    assert path == pathlib.Path("python.parquet")
    np.testing.assert_array_equal(
        EmbeddingFile(path).features("h"), of_run.features["h"]
    )
    for wrong in (
        pixels[0],
        pixels[:0],
        pixels.astype("float32") + 255.5,
        pixels[..., :1],
    ):
        with pytest.raises(UserError, match="images must be|pixels of the images"):
            tfsimclr.embed(model, wrong)


@pytest.mark.promise("embed-kill")
@pytest.mark.parametrize("parts", [0, 1, 3])
def test_an_unfinished_file_goes_on_to_the_same_content(trained, monkeypatch, parts):
    class Killed(BaseException):
        """Stands for SIGKILL: nothing in the program catches it."""

    Image.new("RGB", (16, 16)).save("photos/cat/zz.png")
    pathlib.Path("photos/dog/00.png").write_bytes(b"no image")
    monkeypatch.setattr(embed.prepare, "MAX_UNREADABLE", 0.1)
    common = ("--mode=embed", "--workdir=run", "--images=photos")
    command(*common, "--output=whole.parquet")
    real, count = files.write_atomically, [0]

    def killed_at(path, content):
        count[0] += 1
        if count[0] > parts:
            raise Killed
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", killed_at)
        with pytest.raises(Killed):
            command(*common, "--output=killed.parquet")
    assert not os.path.exists("killed.parquet")
    assert len(list(pathlib.Path("killed.parquet.parts").glob("part-*"))) == parts
    command(*common, "--output=killed.parquet")
    whole, killed = pq.read_table("whole.parquet"), pq.read_table("killed.parquet")
    assert len(whole) == 41 and killed.equals(whole)
    assert killed.schema.metadata == whole.schema.metadata
    assert EmbeddingFile("killed.parquet").meta["unreadable"] == 1


WRITER = """
import itertools, os, pathlib, signal, sys
import numpy as np
from tfsimclr.runs import embeddings

embeddings.PART_BYTES = 1
meta = {"format": 1, "layers": {"h": 4}, "key": "k", "images": "i"}

def write(name):
    with embeddings.EmbeddingWriter(pathlib.Path(name), meta).open() as writer:
        for row in range(writer.position, 6):
            features = np.full((1, 4), row, "float32")
            columns = [f"p{row}"], [""], [None], [str(row)]
            rows = embeddings.Embeddings(*columns, {"h": features}, meta)
            writer.append(rows, [], row + 1)
        writer.finish()

def dies_at(number, name):
    child = os.fork()
    if not child:
        counter = itertools.count()
        def access(event, arguments):
            if any(name in str(a) for a in arguments) and next(counter) == number:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(access)
        write(name)
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL

for number in range(int(sys.argv[1]), 10000, int(sys.argv[2])):
    name = f"out{number}.parquet"
    if not dies_at(number, name):
        break
    assert not os.path.exists(name) or embeddings.EmbeddingFile(name).num_rows == 6
    write(name)
    file = embeddings.EmbeddingFile(name)
    assert file.columns("path") == [[f"p{row}" for row in range(6)]], number
    assert (file.features("h") == np.arange(6)[:, None]).all(), number
    assert os.listdir() == [name], os.listdir()
    os.remove(name)
print("killed", number, "times")
"""


@pytest.mark.promise("embed-kill")
def test_a_writer_killed_at_any_access_to_the_disk_goes_on(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRITER, "0", "3"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 40


@pytest.mark.promise("embed-input")
def test_what_cannot_be_embedded_is_refused(trained):
    embed_photos = ["--mode=embed", "--workdir=run", "--images=photos"]
    cases = {
        "--mode=embed --images=photos": "needs --workdir",
        "--mode=embed --workdir=run": "--mode=embed needs --images",
        "--layers=h,y": "--layers must name some of h, head_1, z",
        "--layers=h,h": "each once",
        "--output=a.txt": "end in .parquet, .npz or .csv",
        "--output=b/a.csv": "'.*b' of --output does not exist",
        "--output=photos.csv": "photos.csv is a folder",
        "--output=a.csv --workdir=photos": "neither a run folder .* nor an exported",
        "--images=nothing.jpg": "'nothing.jpg' does not exist",
        "--epochs=3": "--epochs means nothing to --mode=embed",
        "--top=3": "--top means nothing to --mode=embed",
        "--mode=evaluate --images=photos": "--images means nothing to --mode=evaluate",
    }
    os.mkdir("photos.csv")
    for text, message in cases.items():
        arguments = text.split()
        if not text.startswith("--mode"):
            arguments = [*embed_photos, *arguments]
        with pytest.raises(UserError, match=message):
            command(*arguments)
    assert not os.path.exists("run/embeddings.parquet.parts")


def test_a_file_of_others_is_kept(trained):
    common = ("--mode=embed", "--workdir=run", "--images=photos")
    command(*common)
    before = pathlib.Path("run/embeddings.parquet").read_bytes()
    Image.new("RGB", (16, 16)).save("photos/cat/new.png")
    with pytest.raises(UserError, match="holds embeddings of other images"):
        command(*common)
    assert pathlib.Path("run/embeddings.parquet").read_bytes() == before
    os.mkdir("b.parquet.parts")
    shutil.copy("run/embeddings.parquet", "b.parquet.parts/part-000.parquet")
    with pytest.raises(UserError, match="part-000.parquet is damaged.*Delete"):
        command(*common, "--output=b.parquet")
    with run_folder.lock(pathlib.Path("b.parquet.parts")):
        with pytest.raises(UserError, match="in use by process.*another --output"):
            command(*common, "--output=b.parquet")


def test_unfinished_embeddings_of_others_are_refused(trained, monkeypatch):
    common = ("--mode=embed", "--workdir=run", "--images=photos")
    with monkeypatch.context() as patch:
        patch.setattr(embeddings.EmbeddingWriter, "finish", lambda self: None)
        command(*common)
    with pytest.raises(UserError, match="unfinished embeddings of other.*Delete"):
        command(*common, "--layers=z")
    command(*common)


def test_unreadable_images_are_named_and_left_out(trained, monkeypatch, capsys):
    pathlib.Path("photos/cat/00.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="more than 1% of the 40.*00.png.*not an image"):
        command("--mode=embed", "--workdir=run", "--images=photos")
    shutil.rmtree("run/embeddings.parquet.parts")
    monkeypatch.setattr(embed.prepare, "MAX_UNREADABLE", 0.1)
    command("--mode=embed", "--workdir=run", "--images=photos")
    printed = capsys.readouterr()
    assert "39 images embedded, 1 unreadable ones left out." in printed.out
    assert "unreadable, left out: " in printed.err and "00.png" in printed.err
    file = EmbeddingFile("run/embeddings.parquet")
    assert file.num_rows == 39 and file.meta["unreadable"] == 1


@pytest.mark.promise("full-disk")
def test_a_full_disk_is_one_line_and_goes_on(trained, monkeypatch):
    config = configs.Config(
        mode="embed", workdir="run", images="photos", output="full.parquet"
    )
    real, count = os.fsync, [0]

    def full(handle):
        count[0] += 1
        if count[0] == 5:  # the third part; a folder is flushed between
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left.*full.parquet.parts") as error:
            run.run(config)
    assert error.value.errno == errno.ENOSPC  # which run._main ends in one line
    run.run(config)
    assert EmbeddingFile("full.parquet").num_rows == COUNT


def test_the_dtype_policy_of_the_caller_does_not_matter(trained, monkeypatch):
    monkeypatch.undo()  # the run is loaded twice
    _, folder, photos = trained
    keras.config.set_dtype_policy("mixed_bfloat16")
    one = tfsimclr.embed(folder, photos)
    keras.config.set_dtype_policy("float32")
    other = tfsimclr.embed(folder, photos)
    np.testing.assert_array_equal(one.features["h"], other.features["h"])


def test_names_that_are_not_utf8(trained):
    shutil.copy("photos/cat/00.png", os.fsencode("photos/cat/") + b"\xff.png")
    command("--mode=embed", "--workdir=run", "--images=photos")
    (paths,) = EmbeddingFile("run/embeddings.parquet").columns("path")
    assert any(path.endswith("cat/\\xff.png") for path in paths)


def test_meta_of_the_file_is_plain_json(trained):
    command("--mode=embed", "--workdir=run", "--images=photos")
    metadata = pq.read_schema("run/embeddings.parquet").metadata
    meta = json.loads(metadata[b"tfsimclr"])
    assert meta["image_size"] == meta["side"] == 16 and meta["num_images"] == COUNT
    assert meta["versions"]["tfsimclr"] == tfsimclr.__version__
    assert dataclasses.asdict(configs.Config())["images"] == ""
