"""Weights to start from: every kind of file, and every kind of bad file."""

import io
import json
import pathlib
import shutil
import zipfile

import keras
import numpy as np
import pytest
import safetensors.numpy

from tfsimclr.errors import UserError
from tfsimclr.methods import simclr
from tfsimclr.networks import heads, initial_weights, resnet, torchvision_names
from tfsimclr.training import weight_files
from tfsimclr.views import random_view

LEGACY = pathlib.Path(__file__).parents[1] / "data" / "legacy"


def tiny(depth=10, stem="imagenet", **settings):
    return resnet.resnet(depth, 0.125, stem, **settings)


def torch_tensors(encoder):
    """Returns what torch would save of an encoder with a classifier."""
    variables = torchvision_names.variables_by_name(encoder)
    tensors = {k: torchvision_names.to_torch(v.numpy()) for k, v in variables.items()}
    tensors["bn1.num_batches_tracked"] = np.array(7, "int64")
    tensors["fc.weight"] = np.ones((10, 64), "float32")
    return tensors


@pytest.fixture(scope="module")
def source():
    """Returns an encoder in which no two variables are equal."""
    encoder = tiny()
    rng = np.random.default_rng(0)
    for variable in encoder.variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return encoder


@pytest.fixture(scope="module")
def tensors(source):
    return torch_tensors(source)


@pytest.fixture(scope="module")
def files(source, tensors, tmp_path_factory):
    """Returns {kind: file} of the same weights."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {k: folder / f"a.{k}" for k in ("safetensors", "npz", "keras")}
    safetensors.numpy.save_file(tensors, paths["safetensors"])
    np.savez(paths["npz"], **tensors)
    source.save(paths["keras"])
    return paths


def same_values(a, b):
    pairs = zip(a.variables, b.variables, strict=True)
    return all(np.array_equal(x.numpy(), y.numpy()) for x, y in pairs)


# --- kinds of files ----------------------------------------------------------------


@pytest.mark.promise("init")
@pytest.mark.parametrize("kind", ["safetensors", "npz", "keras"])
def test_the_encoder_gets_every_value(kind, files, source):
    weights = weight_files.read(str(files[kind]))
    target = tiny()
    report = weights.assign(target)
    assert same_values(target, source)
    assert len(report.loaded) == len(source.variables)
    assert report.random == ()
    expected = () if kind == "keras" else ("bn1.num_batches_tracked", "fc.weight")
    assert sorted(report.unused) == sorted(expected)
    assert weights.settings["backbone"] == "resnet10"
    assert weights.settings["width"] == 0.125


def test_the_checksum_is_that_of_the_weights_in_every_file(files, source, tensors):
    checksums = {weight_files.read(str(path)).checksum for path in files.values()}
    assert len(checksums) == 1
    changed = {**tensors, "bn1.bias": tensors["bn1.bias"] + 1e-6}
    other = initial_weights.InitialWeights("x", changed, {})
    assert other.checksum not in checksums


def test_files_of_torch_need_its_normalisation_unless_they_say_otherwise(
    files, tensors, tmp_path
):
    def norm_of(path):
        return weight_files.read(str(path)).settings["input_norm"]

    assert norm_of(files["safetensors"]) == norm_of(files["npz"]) == "imagenet"
    assert norm_of(files["keras"]) == "none"
    for value in ("none", "imagenet"):
        path = tmp_path / f"{value}.safetensors"
        metadata = {torchvision_names.INPUT_NORM_KEY: value}
        safetensors.numpy.save_file(tensors, path, metadata)
        assert norm_of(path) == value
    normalised = tiny(input_norm="imagenet")
    normalised.save(tmp_path / "norm.keras")
    assert norm_of(tmp_path / "norm.keras") == "imagenet"


def test_half_precision_files_are_read(tensors, tmp_path):
    half = {k: v.astype("float16") for k, v in tensors.items()}
    safetensors.numpy.save_file(half, tmp_path / "half.safetensors")
    weights = weight_files.read(str(tmp_path / "half.safetensors"))
    value = weights.values["bn1.weight"]
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, tensors["bn1.weight"], rtol=1e-3)


def test_a_saved_method_gives_its_encoder(source, tmp_path):
    head = heads.ProjectionHead(1, dim=4)
    simclr.SimCLR(source, head, random_view.Views(16)).save(tmp_path / "all.keras")
    weights = weight_files.read(str(tmp_path / "all.keras"))
    target = tiny()
    report = weights.assign(target)
    assert same_values(target, source)
    assert len(report.unused) == 2  # the head's kernel and the step


def test_the_copy_in_a_run_folder_is_the_same(files, tmp_path):
    weights = weight_files.read(str(files["npz"]))
    np.savez(tmp_path / weight_files.COPY, **weight_files.copy_arrays(weights))
    copy = weight_files.read(str(tmp_path / weight_files.COPY))
    assert copy.checksum == weights.checksum
    assert (copy.settings, copy.unused) == (weights.settings, weights.unused)
    # Without the file, and with other weights in its place.
    gone = str(tmp_path / "gone.npz")
    assert weight_files.load(gone, str(tmp_path)).checksum == weights.checksum
    checksum = weights.checksum
    assert weight_files.load(gone, str(tmp_path), checksum).checksum == checksum
    with pytest.raises(UserError, match="holds other weights than --init_checksum=12"):
        weight_files.load(str(files["npz"]), str(tmp_path), "12")


@pytest.mark.parametrize("run", ["simclr", "moco", "byol"])
def test_runs_of_version_0_1(run):
    weights = weight_files.read(str(LEGACY / run))
    settings = dict(weights.settings)
    depth = int(settings.pop("backbone").removeprefix("resnet"))
    settings = {k: settings[k] for k in ("width", "stem", "selective_kernel")}
    encoder = resnet.resnet(depth, **settings)
    weights.assign(encoder)
    images = np.load(LEGACY / f"{run}-features.npz")["images"]
    expected = np.load(LEGACY / f"{run}-features.npz")["h"]
    size = int(
        (LEGACY / run / "flags.txt").read_text().split("--image_size=")[1].split()[0]
    )
    view = random_view.plain_view(images, size)
    np.testing.assert_allclose(encoder(view), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_file_and_its_folder_are_the_same():
    (path,) = (LEGACY / "moco" / "checkpoints").glob("*.npz")
    checkpoint = weight_files.read(str(path))
    assert checkpoint.checksum == weight_files.read(str(LEGACY / "moco")).checksum


# --- stems and normalisation -------------------------------------------------------


@pytest.mark.parametrize("stem", ["small", "medium"])
def test_another_stem_is_left_at_random(stem, files, source):
    target = tiny(stem=stem)
    before = target.get_layer("stem_conv").kernel.numpy()
    report = weight_files.read(str(files["npz"])).assign(target)
    parts = ("weight", "bias", "running_mean", "running_var")
    stem_names = {"conv1.weight", *(f"bn1.{part}" for part in parts)}
    assert set(report.random) == stem_names
    assert stem_names < set(report.unused)
    np.testing.assert_array_equal(target.get_layer("stem_conv").kernel, before)
    last = "stage4_block1_2_conv"
    np.testing.assert_array_equal(
        target.get_layer(last).kernel, source.get_layer(last).kernel
    )


def test_a_normalisation_cannot_be_folded_into_the_first_convolution(source):
    """With padding by zeros the folded network sees the mean colour at the border."""
    images = np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype("float32")
    exact = tiny(input_norm="imagenet")
    exact.set_weights(source.get_weights())
    mean, std = map(np.array, resnet.INPUT_NORMS["imagenet"])
    expected = tiny()
    expected.set_weights(source.get_weights())
    np.testing.assert_allclose(
        exact(images), expected(((images - mean) / std).astype("float32")), rtol=1e-4
    )
    convolution = source.get_layer("stem_conv")
    kernel = convolution.kernel.numpy()
    folded = kernel / std[:, None]
    bias = -(folded * mean[:, None]).sum(axis=(0, 1, 2))

    def convolve(x, kernel):
        padded = keras.ops.pad(x, [[0, 0], [3, 3], [3, 3], [0, 0]])
        return np.array(keras.ops.conv(padded, kernel.astype("float32"), 2, "valid"))

    inside = (slice(None), slice(2, -2), slice(2, -2))
    normalised = convolve(((images - mean) / std).astype("float32"), kernel)
    attempt = convolve(images, folded) + bias
    scale = normalised.std()
    np.testing.assert_allclose(attempt[inside], normalised[inside], atol=1e-3 * scale)
    assert np.abs(attempt - normalised).max() > 0.1 * scale


# --- bad input ---------------------------------------------------------------------


def refused(path):
    """Returns the message with which a file is refused: one line."""
    with pytest.raises(UserError) as error:
        weight_files.read(str(path)).report(tiny())
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


def save(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


def test_a_pickle_is_refused_with_a_remedy(tmp_path):
    for name in ("a.pth", "a.pt", "a.bin"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
        message = refused(tmp_path / name)
        assert "weights_only=True" in message
        assert f"{str(tmp_path / 'a.safetensors')!r}" in message


def test_other_files_and_folders(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.npz")
    (tmp_path / "a.h5").write_bytes(b"")
    assert "must be imagenet, a .safetensors" in refused(tmp_path / "a.h5")
    assert "folder without" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "npz", "keras"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_truncated_files(kind, share, files, tmp_path):
    content = files[kind].read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(content[: int(share * len(content))])
    assert "cannot be read" in refused(path)


@pytest.mark.parametrize("kind", ["safetensors", "npz", "keras"])
def test_another_kind_of_file(kind, tmp_path):
    path = tmp_path / f"page.{kind}"
    path.write_text("<!DOCTYPE html><title>404</title>" * 20)
    assert "cannot be read" in refused(path)


@pytest.mark.promise("init-bad")
def test_another_depth(tmp_path):
    with_values = torch_tensors(tiny(18))
    message = refused(save(tmp_path / "a.safetensors", with_values))
    assert "does not fit" in message and "--backbone=resnet18" in message


def test_no_resnet(tensors, tmp_path):
    missing = {k: v for k, v in tensors.items() if not k.startswith("layer3.")}
    assert "no ResNet" in refused(save(tmp_path / "a.safetensors", missing))
    other = {"visual.conv.weight": np.ones(3, "float32")}
    message = refused(save(tmp_path / "b.safetensors", other))
    assert "no weights of an encoder" in message
    one = {k: v for k, v in tensors.items() if k != "layer3.0.bn2.weight"}
    assert "layer3.0.bn2.weight" in refused(save(tmp_path / "c.safetensors", one))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value, tensors, tmp_path):
    bad = tensors["layer2.0.bn1.running_var"].copy()
    bad[0] = value
    changed = {**tensors, "layer2.0.bn1.running_var": bad}
    message = refused(save(tmp_path / "a.safetensors", changed))
    assert "layer2.0.bn1.running_var holds NaN or infinite" in message


def test_gray_images(tensors, tmp_path):
    gray = {**tensors, "conv1.weight": tensors["conv1.weight"].mean(1, keepdims=True)}
    message = refused(save(tmp_path / "a.safetensors", gray))
    assert "images with 1 channels, tfsimclr's have 3" in message


@pytest.mark.parametrize(
    "groups,widening,words", [(1, 2, "wide_resnet50_2"), (32, 1, "ResNeXt")]
)
def test_wide_resnets_and_resnexts_are_named(groups, widening, words, tmp_path):
    changed = torch_tensors(tiny(50))
    inner = 8 * widening
    changed["layer1.0.conv2.weight"] = np.ones(
        (inner, max(1, inner // groups), 3, 3), "float32"
    )
    assert words in refused(save(tmp_path / "a.safetensors", changed))


def test_objects_in_an_archive(tmp_path):
    np.savez(tmp_path / "a.npz", **{"conv1.weight": np.array([{}], object)})
    assert "cannot be read" in refused(tmp_path / "a.npz")


def test_huge_headers(tmp_path):
    path = tmp_path / "a.safetensors"
    for length in (2**63, 2**40, 200_000_000, 1000):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        assert "cannot be read" in refused(path)
    huge = {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}
    text = json.dumps({"conv1.weight": huge}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0\0\0")
    assert "cannot be read" in refused(path)
    # An .npz whose array claims to be 32 TB.
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**43,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("conv1.weight.npy", buffer.getvalue())
    assert "cannot be read" in refused(tmp_path / "b.npz")


@pytest.mark.promise("init-bad")
@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_no_damage_gives_another_kind_of_error(kind, files, tmp_path):
    content = files[kind].read_bytes()
    encoder = tiny()
    path = tmp_path / f"damaged.{kind}"
    rng = np.random.default_rng(0)
    # Most of a file are values; the bytes at both ends decide how it is read.
    ends = np.r_[0:2000, len(content) - 2000 : len(content)]
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.choice(ends, rng.integers(1, 8)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            weight_files.read(str(path)).report(encoder)
        except UserError as error:
            assert "\n" not in str(error)


def test_a_damaged_checkpoint_is_not_used(tmp_path):
    shutil.copytree(LEGACY / "simclr", tmp_path / "run")
    (path,) = (tmp_path / "run" / "checkpoints").glob("*.npz")
    path.write_bytes(path.read_bytes()[:-10])
    assert "undamaged checkpoint" in refused(tmp_path / "run")
