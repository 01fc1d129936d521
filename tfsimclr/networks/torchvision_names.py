"""The names of a ResNet's weights in the state dicts of torchvision and timm.

Both libraries use the same names for ResNet-18, 34, 50, 101 and 152, for example
`layer1.0.conv1.weight`. Their convolutions are stored as `[out, in, height, width]`
(OIHW), Keras's as `[height, width, in, out]` (HWIO).
"""

import keras
import numpy as np

# Key, in the metadata of a safetensors file of ours, of the normalisation of the images
# that the weights need: "none" (images in 0-1) or "imagenet". Published files have no
# such key and need "imagenet".
INPUT_NORM_KEY = "input_norm"

# Parameters of a batch norm: ours -> torch's.
_BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# The stem of one convolution, and the three of selective kernels (timm's "deep" stem).
_STEMS = {
    "stem_conv": "conv1",
    "stem_bn": "bn1",
    "stem1_conv": "conv1.0",
    "stem1_bn": "conv1.1",
    "stem2_conv": "conv1.3",
    "stem2_bn": "conv1.4",
    "stem3_conv": "conv1.6",
    "stem3_bn": "bn1",
    # Group norm, which torchvision does not have.
    "stem_gn": "gn1",
    "stem1_gn": "conv1.1",
    "stem2_gn": "conv1.4",
    "stem3_gn": "gn1",
}
_ENCODER = ("conv1.", "bn1.", "layer")
_SHORTCUT = {"conv": "downsample.0", "bn": "downsample.1", "gn": "downsample.1"}


def torchvision_name(path: str) -> str:
    """Returns torchvision's name of a variable of `resnet.resnet`.

    The two layers of a selective kernel, which torchvision does not have, get names of
    the same form: `layer1.0.conv1_squeeze.weight` and `layer1.0.conv1_mix.weight`.

    Args:
        path: Path of the variable, e.g. `stage1_block2_3_conv/kernel`, which becomes
            `layer1.1.conv3.weight`.
    """
    layer, variable = path.split("/")
    parameter = "weight" if variable == "kernel" else _BATCH_NORM[variable]
    if layer in _STEMS:
        return f"{_STEMS[layer]}.{parameter}"
    stage, block, *part, kind = layer.split("_")  # stage1, block2, ["3"], conv
    prefix = f"layer{stage.removeprefix('stage')}"
    index = int(block.removeprefix("block")) - 1
    name = _SHORTCUT[kind] if part == ["shortcut"] else kind + "_".join(part)
    return f"{prefix}.{index}.{name}.{parameter}"


def variables_by_name(encoder: keras.Model) -> dict:
    """Returns `{torchvision's name: variable}` of a model of `resnet.resnet`."""
    return {torchvision_name(v.path): v for v in encoder.variables}


def is_without_counterpart(name: str) -> bool:
    """Returns whether a tensor is of no use to an encoder.

    These are the classifier `fc` or another head, and the counter of a batch norm,
    which no computation uses.
    """
    return not name.startswith(_ENCODER) or name.endswith(".num_batches_tracked")


def to_torch(value: np.ndarray) -> np.ndarray:
    """Returns a variable's value in torch's layout: HWIO kernels become OIHW."""
    value = np.asarray(value)
    moved = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return np.ascontiguousarray(moved)


def from_torch(tensor: np.ndarray) -> np.ndarray:
    """Returns a tensor of torch's layout in Keras's: OIHW kernels become HWIO."""
    tensor = np.asarray(tensor)
    moved = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
    return np.ascontiguousarray(moved)
