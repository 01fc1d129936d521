"""Runs that start from weights: training, resume, identity, scores and defaults."""

import dataclasses
import hashlib
import json
import shutil

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from tfsimclr import build, resolve
from tfsimclr.errors import UserError
from tfsimclr.modes import evaluate, export, pretrain
from tfsimclr.networks import applications, torchvision_names
from tfsimclr.runs import folder as run_folder
from tfsimclr.runs import initial, loading
from tfsimclr.training import checkpoints, weight_files


@pytest.fixture
def weights_file(finished, tmp_path):
    """Returns the encoder of a finished run, and a file of it under torch's names."""
    config, _, workdir = finished
    encoder = loading.model(config, workdir)[0].encoder
    variables = torchvision_names.variables_by_name(encoder)
    tensors = {k: torchvision_names.to_torch(v.numpy()) for k, v in variables.items()}
    np.savez(tmp_path / "weights.npz", **tensors)
    return encoder, tmp_path / "weights.npz"


def test_a_run_starts_from_another_run(finished, tiny, tmp_path, capsys):
    config, dataset, source = finished
    new, _, _ = tiny(init=str(source), workdir=str(tmp_path / "new"), epochs=1)
    new = dataclasses.replace(new, seed=3)
    workdir = run_folder.prepare(new)
    weights = initial.load(new, workdir)
    pretrain.pretrain(new, dataset, workdir)
    text = capsys.readouterr().out
    assert f"starts from {source}" in text
    assert "60 tensors loaded" in text
    result = evaluate.evaluate(new, dataset, workdir)
    # What the encoder starts from, exactly; the head is the seed's.
    trained = loading.model(config, source)[0]
    start = loading.untrained(new, weights=weights)
    for a, b in zip(start.encoder.variables, trained.encoder.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    plain = loading.untrained(dataclasses.replace(new, init=""))
    for a, b in zip(start.head.variables, plain.head.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    # The third baseline is that encoder, before any step.
    names = ["pixels", "random_h", "init_h", "h", "head_1", "z"]
    assert list(result["features"]) == names
    h = trained.features(dataset.test.images)["h"]
    cached = np.load(workdir / "features" / "init_h-test.npy")
    np.testing.assert_allclose(cached, h, rtol=1e-4, atol=1e-5)
    report = json.loads((workdir / "result.json").read_text())["init"]
    assert report["checksum"] == new.init_checksum == weights.checksum
    assert len(report["loaded"]) == len(trained.encoder.variables)
    assert any("projection_head" in name for name in report["unused"])
    pairs = {(r["feature"], r["baseline"]): r for r in result["differences"]}
    assert len(pairs) == 15
    row = pairs["h", "init_h"]
    top1 = {name: scores["top1"] for name, scores in result["features"].items()}
    assert row["top1_difference"] == pytest.approx(top1["h"] - top1["init_h"])
    assert row["low"] < row["top1_difference"] < row["high"]
    assert "the weights of --init before the training" in capsys.readouterr().out


@pytest.mark.promise("init")
def test_the_run_is_tied_to_the_weights_not_to_the_path(weights_file, tiny, tmp_path):
    _, path = weights_file
    settings = {"workdir": str(tmp_path / "new"), "epochs": 1}
    config, dataset, _ = tiny(init=str(path), **settings)
    workdir = run_folder.prepare(config)
    pretrain.pretrain(config, dataset, workdir)
    before = checkpoints.load_latest(workdir / "checkpoints")[0]
    # Moved, the same weights are the same run.
    moved = shutil.move(path, tmp_path / "moved.npz")
    again, _, _ = tiny(init=str(moved), **settings)
    run_folder.prepare(again)
    assert again.default_workdir() == config.default_workdir()
    # Gone, the run has a copy.
    gone, _, _ = tiny(init=str(path), **settings)
    assert run_folder.prepare(gone) == workdir
    pretrain.pretrain(gone, dataset, workdir)
    after = checkpoints.load_latest(workdir / "checkpoints")[0]
    assert all(np.array_equal(before[key], after[key]) for key in before)
    # Other weights are another run.
    arrays = dict(np.load(moved))
    arrays["bn1.bias"] = arrays["bn1.bias"] + 1
    np.savez(path, **arrays)
    other, _, _ = tiny(init=str(path), **settings)
    with pytest.raises(UserError, match="--init_checksum="):
        run_folder.prepare(other)
    assert other.default_workdir() != config.default_workdir()
    plain, _, _ = tiny(**settings)
    with pytest.raises(UserError, match="run of other settings"):
        run_folder.prepare(plain)


def test_the_files_of_an_export_are_the_weights_of_the_run(finished):
    config, dataset, workdir = finished
    config = dataclasses.replace(config, formats="keras,safetensors")
    export.export(config, dataset, workdir)
    folder = workdir / "exported"
    sources = (
        workdir,
        folder,
        folder / "encoder.keras",
        folder / "encoder.safetensors",
    )
    weights = [weight_files.read(str(path)) for path in sources]
    assert len({of_file.checksum for of_file in weights}) == 1
    assert {of_file.settings["input_norm"] for of_file in weights} == {"none"}
    assert {of_file.settings["backbone"] for of_file in weights} == {"resnet10"}


def test_settings_left_open_are_those_of_the_weights(weights_file, tiny):
    _, path = weights_file
    open_settings = {"backbone": None, "width": None, "epochs": None}
    config, _, _ = tiny(init=str(path), **open_settings)
    assert (config.backbone, config.width) == ("resnet10", 0.125)
    assert config.input_norm == "imagenet"
    assert config.epochs == 20
    config, _, _ = tiny(init=str(path), input_norm="none", epochs=3)
    assert (config.input_norm, config.epochs) == ("none", 3)
    with pytest.raises(UserError, match="does not fit.*--backbone=resnet10"):
        tiny(init=str(path), backbone="resnet18")
    with pytest.raises(UserError, match="does not fit.*--width=0.125"):
        tiny(init=str(path), width=0.25)


@pytest.mark.parametrize("method", ["moco", "byol"])
def test_a_momentum_network_starts_as_a_copy_of_the_weights(method, weights_file, tiny):
    encoder, path = weights_file
    config, _, _ = tiny(init=str(path), method=method)
    model = build.method(config, 10, weights=resolve.initial_weights(config))
    target = model.average.target()[0]
    for a, b in zip(target.variables, encoder.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_init_means_nothing_to_a_student(weights_file, tiny, tmp_path):
    _, path = weights_file
    settings = {"mode": "distill", "teacher_dir": str(tmp_path / "teacher")}
    with pytest.raises(UserError, match="--init=.* means nothing to --mode=distill"):
        tiny(init=str(path), **settings)
    with pytest.raises(UserError, match="means nothing without --init"):
        tiny(init_checksum="12")


# --- weights that Keras publishes --------------------------------------------------


def test_keras_publishes_no_weights_for_our_resnets(tiny):
    with pytest.raises(UserError, match="no weights for --backbone=resnet10.*convnext"):
        tiny(init="imagenet")


@pytest.fixture
def keras_cache(monkeypatch, tmp_path):
    """Returns the empty folder to which Keras downloads; there is no network."""
    monkeypatch.setattr(keras.src.backend.config, "_KERAS_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_without_a_network_the_download_fails_in_one_line(keras_cache):
    with pytest.raises(UserError, match="could not load its weights") as error:
        applications.published_weights("mobilenetv3small")
    assert "\n" not in str(error.value) and "~/.keras/models" in str(error.value)


# Encoder -> module of Keras, key of the checksums, name of the file that it downloads.
DOWNLOADS = {
    "mobilenetv3small": (
        keras.src.applications.mobilenet_v3,
        "small_224_1.0_float",
        "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
    ),
    "efficientnetv2b0": (
        keras.src.applications.efficientnet_v2,
        "b0",
        "efficientnetv2-b0_notop.h5",
    ),
    "convnexttiny": (
        keras.src.applications.convnext,
        "convnext_tiny",
        "convnext_tiny_notop.h5",
    ),
}


def with_random_weights(name):
    """Returns Keras's network as its documentation builds it, and its preprocessing."""
    module = DOWNLOADS[name][0]
    build_network = getattr(module, applications._APPLICATIONS[name][0])
    network = build_network(weights=None, include_top=False, pooling="avg")
    rng = np.random.default_rng(0)
    for variable in network.weights:
        fan_in = max(1, int(np.prod(variable.shape[:-1])))
        value = rng.normal(0, fan_in**-0.5, variable.shape)
        if "variance" in variable.path:
            value = rng.uniform(0.5, 1.5, variable.shape)
        variable.assign(value)
    return network, module.preprocess_input


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3small",
        pytest.param("efficientnetv2b0", marks=pytest.mark.slow),
        pytest.param("convnexttiny", marks=pytest.mark.slow),
    ],
)
def test_published_weights_give_the_features_of_keras(
    name, keras_cache, monkeypatch, tiny
):
    """Keras's cache has a file of random weights, in the format of the published one.

    Keras finds it there, and compares its checksum with that of the published file,
    which is replaced.
    """
    network, preprocess = with_random_weights(name)
    module, key, file = DOWNLOADS[name]
    # Older than the format of `save_weights`; Keras tells it by the name of the file.
    with h5py.File(keras_cache / file, "w") as opened:
        legacy_h5_format.save_weights_to_hdf5_group(opened, network)
    checksum = hashlib.md5((keras_cache / file).read_bytes()).hexdigest()
    assert key in module.WEIGHTS_HASHES
    monkeypatch.setitem(module.WEIGHTS_HASHES, key, (None, checksum))
    config, _, _ = tiny(
        backbone=name, width=None, stem="auto", init="imagenet", image_size=32
    )
    assert config.input_norm is None
    weights = resolve.initial_weights(config)
    model = build.method(config, 1, weights=weights)
    assert len(weights.report(model.encoder).loaded) == len(network.weights)
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), "uint8")
    expected = network.predict(preprocess(images.astype("float32")), verbose=0)
    assert np.std(expected) > 0.01
    h = model.encoder(images / np.float32(255), training=False)
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-4)


def test_a_damaged_download_is_one_line(keras_cache):
    file = keras_cache / DOWNLOADS["mobilenetv3small"][2]
    file.write_bytes(b"half of it")
    with pytest.raises(UserError, match="could not load its weights"):
        applications.published_weights("mobilenetv3small")
