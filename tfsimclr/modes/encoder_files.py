"""The trained encoder in the file formats of other libraries (`exported/`).

Every file holds the encoder alone, without the projection head, and gives `h` and the
feature map that it is the average of. `config.json` says how to use them.
"""

import json
import pathlib
import shutil
import tempfile
import warnings

import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf

from tfsimclr import __version__, files
from tfsimclr.errors import UserError
from tfsimclr.networks import resnet, torchvision_model, torchvision_names
from tfsimclr.networks.portable import FEATURE_MAP, portable
from tfsimclr.settings.config import Config

# Format -> name of its file.
FILES = {
    "keras": "encoder.keras",
    "safetensors": "encoder.safetensors",
    "onnx": "encoder.onnx",
    "litert": "encoder.tflite",
}
CONFIG = "config.json"
# Protocol buffers and flat buffers have 32-bit offsets.
MAX_BYTES = 2_000_000_000

_IMAGES = {"dtype": "float32", "channels": "RGB"}


def write(
    folder: pathlib.Path,
    encoder: keras.Model,
    formats: tuple[str, ...],
    config: Config,
    weights: str,
    step: int,
) -> None:
    """Writes an encoder's files so that the folder is complete or as it was.

    Files of other formats that were exported from the same weights stay.

    Args:
        folder: The folder `exported`; created.
        encoder: The trained encoder, float32, images in 0-1 -> h.
        formats: Keys of `FILES`.
        config: Resolved settings of the run.
        weights: Checksum of the run's weights.
        step: Steps for which the run was trained.

    Raises:
        UserError: If the encoder is too large for a format.
        OSError: If the folder cannot be written.
    """
    size = 4 * encoder.count_params()
    for name in formats:
        if name in ("onnx", "litert") and size > MAX_BYTES:
            raise UserError(
                f"--formats={name}: such a file holds at most 2 GB, and the encoder "
                f"has {size / 1e9:.1f} GB. Use saved_model, keras or safetensors."
            )
    copy = portable(encoder)
    kept = [
        name
        for name, file in FILES.items()
        if name not in formats
        and (folder / file).is_file()
        and _weights_of(folder) == weights
    ]
    with files.atomic_folder(folder) as fresh:
        fresh.mkdir()
        for name in kept:
            shutil.copy2(folder / FILES[name], fresh / FILES[name])
        for name in formats:
            path = fresh / FILES[name]
            if name == "keras":
                copy.save(path)
            elif name == "safetensors":
                path.write_bytes(
                    safetensors_content(copy, config.input_norm or "none", step)
                )
            elif name == "onnx":
                path.write_bytes(_onnx(copy))
            else:
                path.write_bytes(_litert(copy, config.image_size))
        description = {
            "tfsimclr": {
                "version": __version__,
                "method": config.method,
                "step": step,
                "weights": weights,
            },
            **_description(copy, config, {*kept, *formats}),
        }
        text = json.dumps(description, indent=2) + "\n"
        (fresh / CONFIG).write_text(text, encoding="utf-8")


def _weights_of(folder: pathlib.Path) -> str | None:
    """Returns the checksum of the weights that a folder was exported from."""
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        return json.loads(text)["tfsimclr"]["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def safetensors_content(encoder: keras.Model, input_norm: str, step: int) -> bytes:
    """Returns a safetensors file with torchvision's and timm's names.

    Args:
        encoder: A model of `resnet.resnet`, or its portable copy.
        input_norm: Its argument `input_norm`.
        step: Steps for which it was trained.
    """
    tensors = {
        name: torchvision_names.to_torch(variable.numpy())
        for name, variable in torchvision_names.variables_by_name(encoder).items()
    }
    # torch counts the steps of each batch norm. It reads the counter only if a batch
    # norm has momentum=None, but a state dict of torch's has it.
    for name in [name for name in tensors if name.endswith(".running_mean")]:
        counter = name.removesuffix("running_mean") + "num_batches_tracked"
        tensors[counter] = np.array(step, np.int64)
    metadata = {
        "format": "pt",  # which layout the tensors have, for loaders that ask
        torchvision_names.INPUT_NORM_KEY: input_norm,
    }
    return safetensors.numpy.save(tensors, metadata)


def _onnx(model: keras.Model) -> bytes:
    """Returns an ONNX file of a portable encoder."""
    import onnx  # the extra "onnx"

    from tfsimclr.modes import onnx_operations  # noqa: F401

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # tf2onnx, of NumPy
        path = pathlib.Path(folder) / "encoder.onnx"
        spec = tf.TensorSpec([None, None, None, 3], tf.float32, name="images")
        model.export(path, format="onnx", verbose=False, input_signature=[spec])
        network = onnx.load(path)
    # tf2onnx gives the sizes that may vary numbers for names.
    names = {
        "images": ("n", "height", "width", None),
        "h": ("n", None),
        FEATURE_MAP: ("n", "map_height", "map_width", None),
    }
    for value in (*network.graph.input, *network.graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, name in zip(dims, names[value.name], strict=True):
            if name is not None:
                dim.dim_param = name
    onnx.helper.set_model_props(network, {"images": "RGB in 0-255"})
    onnx.checker.check_model(network)
    return network.SerializeToString()


def _litert(model: keras.Model, image_size: int) -> bytes:
    """Returns a LiteRT file of a portable encoder, for images of one size."""
    spec = tf.TensorSpec([None, image_size, image_size, 3], tf.float32, name="images")
    function = tf.function(lambda images: model(images, training=False))
    # The converter freezes only variables that a module holds; it does not see those
    # inside Keras's.
    module = tf.Module()
    module.held = [variable.value for variable in model.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function(spec)], module
    )
    return converter.convert()


def _description(model: keras.Model, config: Config, formats) -> dict:
    """Returns what a program needs to know to use the files: `config.json`."""
    size, outputs = config.image_size, model.output
    description = {
        "architecture": config.backbone,
        "num_features": outputs["h"].shape[-1],
        "image_size": size,
        "images": {**_IMAGES, "range": [0, 255], "shape": ["n", "height", "width", 3]},
        "outputs": {
            "h": ["n", outputs["h"].shape[-1]],
            FEATURE_MAP: [
                "n",
                "map_height",
                "map_width",
                outputs[FEATURE_MAP].shape[-1],
            ],
        },
        "files": {name: FILES[name] for name in FILES if name in formats},
    }
    if "safetensors" in formats:
        description["torch"] = _torch_description(model, config)
    return description


def _torch_description(encoder: keras.Model, config: Config) -> dict:
    """Returns how to build the network of the safetensors file in torch."""
    name, changes = _fitting_model(config)
    # None in a run of a version without the setting.
    mean, std = resnet.INPUT_NORMS[config.input_norm or "none"] or ((0,) * 3, (1,) * 3)
    description = {
        "model": name,
        "changes": list(changes),
        **torchvision_model.resnet_arguments(
            _depth(config), config.width, config.stem, config.norm
        ),
        "selective_kernel": config.selective_kernel,
        "images": {
            **_IMAGES,
            "range": [0, 1],
            "mean": list(mean),
            "std": list(std),
            "shape": ["n", 3, "height", "width"],
        },
    }
    if config.selective_kernel:
        description["names"] = [*torchvision_names.variables_by_name(encoder)]
    return description


def _depth(config: Config) -> int:
    return int(config.backbone.removeprefix("resnet"))


def _fitting_model(config: Config) -> tuple[str | None, tuple[str, ...]]:
    return torchvision_model.fitting_model(
        _depth(config),
        config.width,
        config.stem,
        config.selective_kernel,
        config.norm,
    )


def torch_hint(config: Config) -> str:
    """Returns one sentence: which model of torch the safetensors file fits."""
    name, changes = _fitting_model(config)
    file = FILES["safetensors"]
    if config.selective_kernel:
        return (
            "No model of torchvision or timm has selective kernels: the names in "
            f"{file} are listed in {CONFIG}."
        )
    if name is None:
        return (
            f"{file} fits no model of torchvision or timm as it is; docs/exports.md "
            "builds one from torchvision's blocks."
        )
    change = f" after: {'; '.join(changes)}" if changes else ""
    return f"{file} fits {name} of torchvision and timm without fc{change}."
