"""Reads the weights that an encoder starts from: files, run folders, Keras's own."""

import contextlib
import json
import pathlib
import zipfile
from collections.abc import Callable

import keras
import numpy as np
import safetensors

from tfsimclr.errors import UserError
from tfsimclr.networks import initial_weights, resnet, torchvision_names
from tfsimclr.networks.initial_weights import InitialWeights
from tfsimclr.training import checkpoints

# --init with this value are the weights that Keras publishes.
PUBLISHED = "imagenet"
# The copy of the weights in a run folder.
COPY = "init.npz"
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
# The array of a copy with everything but the values, as JSON.
_ABOUT = "init_json"
_ENCODER_SETTINGS = (
    "backbone",
    "width",
    "stem",
    "selective_kernel",
    "norm",
    "input_norm",
)


def load(
    source: str,
    folder: str = "",
    checksum: str | None = None,
    published: Callable[[], InitialWeights] | None = None,
) -> InitialWeights:
    """Returns the weights that a run starts from.

    Args:
        source: What the user named: `imagenet`, or a path for `read`.
        folder: The run folder if it is known. Its copy is used if it holds the weights
            of the checksum, or if the source is not there.
        checksum: Expected checksum of the weights, or None for any.
        published: Returns the weights that Keras publishes for the encoder.

    Raises:
        UserError: If there are no such weights, or they have another checksum.
    """
    copy = pathlib.Path(folder) / COPY
    if folder and copy.is_file():
        if not checksum and source != PUBLISHED and not pathlib.Path(source).exists():
            return read(str(copy))
        with contextlib.suppress(UserError):  # a damaged copy
            weights = read(str(copy))
            if weights.checksum == checksum:
                return weights
    weights = published() if source == PUBLISHED and published else read(source)
    if checksum and weights.checksum != checksum:
        raise UserError(
            f"--init={source} holds other weights than --init_checksum={checksum}: "
            f"their checksum is {weights.checksum}. Name the right file, or leave "
            "--init_checksum out to start another run."
        )
    return weights


def read(source: str) -> InitialWeights:
    """Returns the weights in a file or folder.

    Args:
        source: A `.safetensors` or `.npz` file with the names of torchvision or timm; a
            run folder, a checkpoint, or a `.keras` file of tfsimclr.

    Raises:
        UserError: If it cannot be read or holds no weights of an encoder.
    """
    path = pathlib.Path(source)
    if not path.exists():
        raise UserError(
            f"--init={source} does not exist. Expected {PUBLISHED}, a .safetensors, "
            ".npz or .keras file, or a run folder."
        )
    if path.is_dir():
        return _read_folder(path)
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        target = path.with_suffix(".safetensors")
        raise UserError(
            f"--init={source} is a pickle, which can run any program when it is read. "
            "Turn it into safetensors, in Python with torch: import torch, "
            "safetensors.torch; safetensors.torch.save_file(torch.load("
            f"{str(path)!r}, map_location='cpu', weights_only=True), {str(target)!r})"
        )
    readers = {
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
        ".keras": _read_keras,
    }
    if suffix not in readers:
        raise UserError(
            f"--init={source} must be {PUBLISHED}, a .safetensors, .npz or .keras "
            "file, or a run folder."
        )
    try:
        return readers[suffix](path)
    except UserError:
        raise
    # The libraries raise a dozen kinds for a damaged file, MemoryError among them.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"--init={source} cannot be read as a {suffix} file ({reason}). It may be "
            "truncated, or another kind of file; download or write it again."
        ) from error


def copy_arrays(weights: InitialWeights) -> dict[str, np.ndarray]:
    """Returns the arrays of the copy in a run folder, which `read` reads again."""
    about = {
        "source": weights.source,
        "settings": weights.settings,
        "unused": weights.unused,
    }
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    return {**weights.values, _ABOUT: text}


def _read_folder(path: pathlib.Path) -> InitialWeights:
    checkpoint = checkpoints.load_latest(path / "checkpoints")
    if checkpoint is not None:
        return _from_checkpoint(str(path), *checkpoint)
    for name in ("encoder.keras", "exported/encoder.keras"):
        if (path / name).is_file():
            return read(str(path / name))
    raise UserError(
        f"--init={path} is a folder without an undamaged checkpoint and without "
        "encoder.keras. Name a run folder, or a file."
    )


def _read_safetensors(path: pathlib.Path) -> InitialWeights:
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    input_norm = metadata.get(torchvision_names.INPUT_NORM_KEY, "imagenet")
    return _from_torch(str(path), tensors, input_norm)


def _read_npz(path: pathlib.Path) -> InitialWeights:
    with np.load(path, allow_pickle=False) as archive:
        if checkpoints.is_checkpoint(archive):
            arrays = dict(archive)
            return _from_checkpoint(str(path), arrays, checkpoints.pop_meta(arrays))
        if _ABOUT in archive:
            return _from_copy(archive)
        return _from_torch(str(path), dict(archive), "imagenet")


def _from_copy(archive) -> InitialWeights:
    values = dict(archive)
    about = json.loads(values.pop(_ABOUT).tobytes())
    return InitialWeights(
        about["source"], values, about["settings"], tuple(about["unused"])
    )


def _from_torch(source: str, tensors: dict, input_norm: str) -> InitialWeights:
    """Returns the weights of tensors in torch's layout under torchvision's names."""
    unused = [n for n in tensors if torchvision_names.is_without_counterpart(n)]
    values = {
        name: torchvision_names.from_torch(tensor).astype(np.float32)
        for name, tensor in tensors.items()
        if name not in unused
    }
    if "layer1.0.conv1.weight" not in values:
        values = {}  # answered with the names that are expected
    settings = initial_weights.resnet_settings(source, values) if values else {}
    settings["input_norm"] = _checked_input_norm(source, input_norm)
    return InitialWeights(source, values, settings, tuple(unused))


def _checked_input_norm(source: str, value: str) -> str:
    if value not in resnet.INPUT_NORMS:
        raise UserError(
            f"--init={source}: {torchvision_names.INPUT_NORM_KEY} in its metadata must "
            f"be one of {tuple(resnet.INPUT_NORMS)}, got {value!r}."
        )
    return value


def _from_checkpoint(source: str, arrays: dict, meta: dict) -> InitialWeights:
    names = checkpoints.saved_names(arrays)
    settings = _settings(meta.get("settings") or meta["config"])
    if names is None:  # version 0.1
        names = _names_by_position(arrays, settings)
    part = "encoder: "
    paths = {k: n.removeprefix(part) for k, n in names.items() if n.startswith(part)}
    canonical = initial_weights.canonical_names(list(paths.values()))
    values = {
        canonical[path]: arrays[key].astype(np.float32) for key, path in paths.items()
    }
    # Slots of the optimizer and sums of metrics are no weights.
    others = [k for k in arrays if k.startswith("model/") and k not in paths]
    unused = tuple(names.get(key, key) for key in others)
    return InitialWeights(source, values, settings, unused)


def _settings(saved: dict) -> dict:
    """Returns the encoder's settings in a checkpoint, where they may be text."""
    settings = {name: saved[name] for name in _ENCODER_SETTINGS if name in saved}
    settings = {k: v for k, v in settings.items() if v not in (None, "None")}
    if settings["backbone"].startswith("resnet"):
        settings["width"] = float(settings["width"])
        selective = str(settings["selective_kernel"]).lower() == "true"
        settings["selective_kernel"] = selective
        settings.setdefault("input_norm", "none")
        return settings
    return {"backbone": settings["backbone"]}


def _names_by_position(arrays: dict, settings: dict) -> dict[str, str]:
    """Returns the names of the encoder's variables in a checkpoint of version 0.1.

    It holds the model's variables in their order, the encoder's one after the other.
    """
    with keras.StatelessScope(initialize_variables=False):
        encoder = resnet.resnet(
            int(settings["backbone"].removeprefix("resnet")),
            settings["width"],
            settings["stem"],
            settings["selective_kernel"],
        )
    shapes = [tuple(variable.shape) for variable in encoder.variables]
    keys = [f"model/{i}" for i in range(len(arrays)) if f"model/{i}" in arrays]
    for start in range(len(keys)):  # after the step, and MoCo's queue
        part = keys[start : start + len(shapes)]
        if [arrays[key].shape for key in part] == shapes:
            names = [f"encoder: {variable.path}" for variable in encoder.variables]
            return dict(zip(part, names, strict=True))
    raise UserError(
        "the checkpoint of version 0.1 holds no encoder of its settings. Export the "
        "run and start from the export."
    )


def _read_keras(path: pathlib.Path) -> InitialWeights:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no zip archive")
    model = keras.models.load_model(path, compile=False)
    encoder = getattr(model, "encoder", model)  # a whole method, saved by `model.save`
    names = initial_weights.canonical_names([v.path for v in encoder.variables])
    values = {names[v.path]: v.numpy().astype(np.float32) for v in encoder.variables}
    ours = {id(variable) for variable in encoder.variables}
    unused = tuple(v.path for v in model.variables if id(v) not in ours)
    settings: dict = {}
    if "layer1.0.conv1.weight" in values:
        settings = initial_weights.resnet_settings(str(path), values)
        with contextlib.suppress(ValueError):
            settings["input_norm"] = "none"
            encoder.get_layer("input_norm")
            settings["input_norm"] = "imagenet"
    return InitialWeights(str(path), values, settings, unused)
