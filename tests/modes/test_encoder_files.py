"""The encoder in other formats, loaded as docs/exports.md shows."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import safetensors.numpy

from tfsimclr import resolve
from tfsimclr.errors import UserError
from tfsimclr.modes import encoder_files, export
from tfsimclr.networks import applications, resnet, torchvision_model, torchvision_names
from tfsimclr.runs import loading
from tfsimclr.settings.config import FORMATS, Config

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
ALL = ",".join(FORMATS)
SCRIPT = ROOT / "tests" / "data" / "make_torchvision.py"
# Variables that name the Python of another environment: one with keras, safetensors,
# torch, torchvision and timm, and one with keras and jax.
TORCH, JAX = "TFSIMCLR_TORCH_PYTHON", "TFSIMCLR_JAX_PYTHON"


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_script(SCRIPT)


def blocks(section):
    """Returns the Python blocks of a section of docs/exports.md."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def python(variable):
    """Returns the Python of another environment; skips the test if there is none."""
    if variable not in os.environ:
        pytest.skip(f"{variable} names no Python of an environment for this test.")
    return os.environ[variable]


def run_elsewhere(program, folder, executable=sys.executable, **environment):
    """Runs a program in a folder, in a process that cannot import tfsimclr."""
    hide = "import sys\nsys.modules['tfsimclr'] = None\nimport numpy as np\n"
    done = subprocess.run(
        [executable, "-c", hide + program + "\nprint('the end')"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", **environment},
    )
    assert done.stdout.endswith("the end\n"), done.stderr


@pytest.fixture(scope="module")
def elsewhere(finished_once, tmp_path_factory):
    """Returns a folder with runs/mine, images.npy, h.npy; and the run's config."""
    config, dataset, folder = finished_once
    place = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(folder, place / "runs" / "mine")
    config = dataclasses.replace(config, formats=ALL)
    export.export(config, None, place / "runs" / "mine")
    save_images(place, loading.model(config, folder)[0], dataset.test.images[:12])
    return place, config


def save_images(place, model, images):
    images = images.astype("float32")
    np.save(place / "images.npy", images)
    np.save(place / "h.npy", model.features(images)["h"])


READ = "images, expected = np.load('images.npy'), np.load('h.npy')\n"


def check(tolerance, axes="(1, 2)"):
    return textwrap.dedent(f"""
        np.testing.assert_allclose(h, expected, atol={tolerance})
        average = np.mean(np.asarray(feature_map), axis={axes})
        np.testing.assert_allclose(average, expected, atol={tolerance})
        del h, feature_map
    """)


FINE_TUNE = """
labels = np.arange(12) % 10
before = [np.array(variable) for variable in encoder.trainable_variables]
{block}
losses = network.history.history["loss"]
assert losses[-1] < losses[0], losses
for variable, value in zip(encoder.trainable_variables, before):
    assert np.abs(np.array(variable) - value).max() > 0, variable.path
"""


@pytest.mark.promise("export-equal")
def test_the_examples_run_without_this_package(elsewhere):
    """One process for all, because starting TensorFlow takes most of the time."""
    place, _ = elsewhere
    ((saved_model,), (load, tune)) = blocks("SavedModel"), blocks("Keras")
    ((onnx,), (litert,)) = blocks("ONNX"), blocks("LiteRT")
    program = READ + saved_model + check(1e-5) + load + check(1e-5)
    program += FINE_TUNE.format(block=tune) + onnx + check(1e-4)
    # Any number of images; ONNX also takes any size.
    program += "h, _ = session.run(['h', 'feature_map'], {'images': images[:1, :9]})\n"
    program += "assert h.shape == (1, expected.shape[1])\n"
    program += litert + check(1e-4)
    program += "h = encoder(images=images[:1])['h']\n"
    program += "assert h.shape == (1, expected.shape[1])\n"
    run_elsewhere(program, place)


@pytest.mark.promise("export-equal")
@pytest.mark.parametrize("backend,variable", [("jax", JAX), ("torch", TORCH)])
def test_keras_on_another_backend(elsewhere, backend, variable):
    executable, (place, _) = python(variable), elsewhere
    load, tune = blocks("Keras")
    program = READ + load + check(1e-5) + FINE_TUNE.format(block=tune)
    run_elsewhere(program, place, executable, KERAS_BACKEND=backend)


# --- torch -------------------------------------------------------------------------


def filled(**arguments):
    """Returns an encoder with the weights that make_torchvision.py draws."""
    encoder = resnet.resnet(**arguments)
    for name, variable in torchvision_names.variables_by_name(encoder).items():
        shape = torchvision_names.to_torch(variable).shape
        variable.assign(torchvision_names.from_torch(reference.draw(name, shape)))
    return encoder


@pytest.mark.promise("export-equal")
@pytest.mark.parametrize(
    "network,stem",
    [*(("resnet18", stem) for stem in resnet.STEMS), ("resnet50", "imagenet")],
)
def test_safetensors_has_the_state_dict_of_torchvision(network, stem):
    """The features of torchvision with these tensors are compared in test_resnet.py."""
    key = network if stem == "imagenet" else f"{network}_{stem}"
    golden = np.load(ROOT / "tests" / "data" / "torchvision_resnet.npz")
    depth = int(network.removeprefix("resnet"))
    content = encoder_files.safetensors_content(
        filled(depth=depth, stem=stem), "none", 7
    )
    tensors = safetensors.numpy.load(content)
    shapes = {f"{name} {value.shape}" for name, value in tensors.items()}
    assert shapes == set(golden[f"{key}_names"])
    for name, value in tensors.items():
        if name.endswith("num_batches_tracked"):
            assert value == 7 and value.dtype == np.int64
        else:
            np.testing.assert_array_equal(value, reference.draw(name, value.shape))
    assert torchvision_model.fitting_model(depth, 1, stem, False, "batch") == (
        network,
        reference.CHANGES[stem],
    )


@pytest.mark.parametrize("stem", resnet.STEMS)
@pytest.mark.parametrize("network", ["resnet18", "resnet50", "resnet10", "group"])
def test_torch_gives_the_same_features(network, stem, tmp_path):
    """The examples, and the lines of config.json, in a process with torch."""
    executable = python(TORCH)
    depth, width, norm = 18, 0.3, "group"
    if network != "group":
        depth, width, norm = int(network.removeprefix("resnet")), 1.0, "batch"
    encoder = filled(depth=depth, width=width, stem=stem, norm=norm)
    config = Config(
        backbone=f"resnet{depth}", width=width, stem=stem, norm=norm, image_size=65
    )
    folder = tmp_path / "runs" / "mine" / "exported"
    folder.parent.mkdir(parents=True)
    encoder_files.write(folder, encoder, ("safetensors",), config, "hash", 7)
    images = np.random.default_rng(0).uniform(0, 255, (3, 65, 65, 3)).astype("float32")
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "h.npy", encoder(images / 255, training=False))
    example, maps, load = blocks("torchvision and timm")
    about = json.loads((folder / "config.json").read_text())["torch"]
    program = READ
    if network in reference.NETWORKS:
        assert about["model"] == network
        lines = example.splitlines()
        change = [line.split("  #")[0] for line in lines if "  # stem" in line]
        assert [*reference.CHANGES["small"]] == change
        kept = [line for line in lines if "  # stem" not in line]
        position = next(i for i, line in enumerate(kept) if ".fc =" in line) + 1
        kept[position:position] = about["changes"]
        program += "\n".join(kept).replace("resnet18", network) + "\n" + maps
        program += check(1e-4, (2, 3))
        program += textwrap.dedent(f"""
            import timm
            model = timm.create_model("{network}", num_classes=0)
            {chr(10).join(about["changes"]).replace(chr(10), chr(10) + " " * 12)}
            model.load_state_dict(weights, strict=True)
            model.eval()
            with torch.no_grad():
                h, feature_map = model(pixels), model.forward_features(pixels)
        """)
        program += check(1e-4, (2, 3))
    else:
        assert about["model"] is None
    program += load + textwrap.dedent("""
        with torch.no_grad():
            h = model(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        np.testing.assert_allclose(h, expected, atol=1e-4)
    """)
    run_elsewhere(program, tmp_path, executable)


def test_selective_kernels_are_written_and_named(tmp_path):
    encoder = resnet.resnet(10, 0.125, "small", selective_kernel=True)
    config = Config(backbone="resnet10", width=0.125, stem="small", image_size=16)
    config = dataclasses.replace(config, selective_kernel=True)
    encoder_files.write(tmp_path / "e", encoder, ("safetensors",), config, "hash", 0)
    about = json.loads((tmp_path / "e" / "config.json").read_text())["torch"]
    tensors = safetensors.numpy.load_file(tmp_path / "e" / "encoder.safetensors")
    counters = {name for name in tensors if name.endswith(".num_batches_tracked")}
    assert set(about["names"]) == set(tensors) - counters
    assert "layer1.0.conv1_mix.weight" in about["names"] and about["model"] is None
    assert "selective kernels" in encoder_files.torch_hint(config)


# --- keras.applications ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mobilenetv3small", "efficientnetv2b0", "convnexttiny"]
)
def test_encoders_of_keras_applications(name, tmp_path):
    keras.utils.set_random_seed(0)
    encoder = applications.application(name)
    config = Config(backbone=name, image_size=40)
    assert resolve.export_formats(config) == ("saved_model", "keras")
    formats = ("keras", "onnx", "litert")
    folder = tmp_path / "runs" / "mine" / "exported"
    folder.parent.mkdir(parents=True)
    encoder_files.write(folder, encoder, formats, config, "hash", 0)
    images = np.random.default_rng(0).uniform(0, 255, (3, 40, 40, 3)).astype("float32")
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "h.npy", encoder(images / 255, training=False))
    program = READ
    for block in (blocks("Keras")[0], *blocks("ONNX"), *blocks("LiteRT")):
        program += block + "np.testing.assert_allclose(h, expected, atol=1e-4)\n"
        program += "assert feature_map.shape[0] == 3 and feature_map.ndim == 4\n"
    run_elsewhere(program, tmp_path)


# --- the folder --------------------------------------------------------------------


def test_config_json_says_how_to_use_the_files(elsewhere):
    place, config = elsewhere
    about = json.loads((place / "runs/mine/exported/config.json").read_text())
    model, _ = loading.model(config, place / "runs" / "mine")
    d = model.encoder.output_shape[-1]
    assert about["images"]["range"] == [0, 255]
    assert about["torch"]["images"]["range"] == [0, 1]
    assert about["image_size"] == config.image_size
    assert about["num_features"] == d == about["outputs"]["feature_map"][-1]
    assert about["files"] == encoder_files.FILES
    assert about["tfsimclr"]["step"] == int(model.step) > 0


def test_files_of_the_same_weights_stay_and_others_go(elsewhere, tmp_path):
    _, config = elsewhere
    encoder = resnet.resnet(10, 0.125, "medium")
    folder = tmp_path / "exported"

    def write(formats, weights):
        encoder_files.write(folder, encoder, formats, config, weights, 0)
        about = json.loads((folder / "config.json").read_text())
        present = {path.name for path in folder.iterdir()} - {"config.json"}
        assert present == set(about["files"].values())
        assert ("torch" in about) == ("safetensors" in about["files"])
        return set(about["files"])

    assert write(("safetensors",), "first") == {"safetensors"}
    assert write(("keras",), "first") == {"safetensors", "keras"}
    assert write(("keras",), "second") == {"keras"}
    (folder / "config.json").write_text("{")
    assert write(("safetensors",), "second") == {"safetensors"}


def test_only_the_formats_are_written(finished):
    config, _, folder = finished
    export.export(dataclasses.replace(config, formats="safetensors"), None, folder)
    names = {path.name for path in (folder / "exported").iterdir()}
    assert names == {"config.json", "encoder.safetensors"}
    assert not (folder / "saved_model").exists()


def test_a_run_without_a_checkpoint_is_refused(finished):
    config, _, folder = finished
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint to evaluate or export"):
        export.export(config, None, folder)
    assert not (folder / "exported").exists()


def test_an_encoder_beyond_two_gigabytes_is_refused(elsewhere, tmp_path, monkeypatch):
    _, config = elsewhere
    monkeypatch.setattr(encoder_files, "MAX_BYTES", 1000)
    encoder = resnet.resnet(10, 0.125, "medium")
    with pytest.raises(UserError, match="--formats=onnx: such a file holds at most 2"):
        encoder_files.write(tmp_path / "e", encoder, ("onnx",), config, "hash", 0)


@pytest.mark.promise("full-disk")
@pytest.mark.parametrize("format", ["keras", "safetensors"])
def test_a_full_disk_leaves_the_older_files(elsewhere, tmp_path, monkeypatch, format):
    _, config = elsewhere
    encoder = resnet.resnet(10, 0.125, "medium")
    folder = tmp_path / "exported"
    encoder_files.write(folder, encoder, (format,), config, "old", 0)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def no_space(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(pathlib.Path, "write_bytes", no_space)
    monkeypatch.setattr(keras.Model, "save", no_space)
    with pytest.raises(OSError, match="No space left on device: .*exported"):
        encoder_files.write(folder, encoder, (format,), config, "new", 0)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
