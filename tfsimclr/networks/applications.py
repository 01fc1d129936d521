"""Encoders of `keras.applications`, and the weights that Keras publishes for them."""

import contextlib
import io
import socket
import warnings

import keras
import numpy as np

from tfsimclr.errors import UserError
from tfsimclr.networks.names import stable_paths
from tfsimclr.networks.norms import SplitBatchNormalization

# Name -> class in keras.applications, and the smallest side of an image in pixels.
# EfficientNetV2 and MobileNetV3 halve the sides, rounded up, five times: at 17 pixels
# the last stage gets a map of 2x2. ConvNeXt divides by 4, 2, 2 and 2, rounded down.
_APPLICATIONS = {
    "efficientnetv2b0": ("EfficientNetV2B0", 17),
    "mobilenetv3small": ("MobileNetV3Small", 17),
    "convnexttiny": ("ConvNeXtTiny", 32),
}
NAMES = tuple(_APPLICATIONS)
TIMEOUT_SECONDS = 10


def application(architecture: str, name: str = "encoder") -> keras.Model:
    """Returns an untrained encoder: images `[n, H, W, 3]` in 0-1 -> h `[n, d]`.

    The network is that of `keras.applications` without its classifier, with the
    preprocessing of the images inside. h is float32 under every precision.

    Differs from Keras's network where training on few steps or on one device needs it:
    batch norm can have groups and its moving statistics move by a tenth, as in our
    ResNets (Keras's MobileNetV3: by a thousandth); nothing is dropped at random
    (EfficientNetV2's stochastic depth), so that a step is a function of seed and step;
    and ConvNeXt's depthwise convolutions are depthwise layers, not grouped
    convolutions, which Keras compiles with XLA.

    Args:
        architecture: One of `NAMES`.
        name: Name of the model.

    Sources: Tan and Le 2021 (arXiv:2104.00298); Howard et al. 2019 (arXiv:1905.02244);
    Liu et al. 2022 (arXiv:2201.03545).
    """
    return _adapted(_original(architecture, weights=None), name)


def smallest_image(architecture: str) -> int:
    """Returns the smallest side of an image, in pixels, of `application`."""
    return _APPLICATIONS[architecture][1]


def published_weights(architecture: str) -> dict[str, np.ndarray]:
    """Returns the weights that Keras publishes: `{path of the variable: value}`.

    Keras downloads them on the first use, to its own cache (`~/.keras`), and compares
    their checksum. They were trained on the 1.3 million photographs of ImageNet with
    labels.

    Raises:
        UserError: If they cannot be downloaded; after `TIMEOUT_SECONDS` without data.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        # Keras prints a progress bar of thousands of lines where there is no terminal.
        with contextlib.redirect_stdout(io.StringIO()):
            original = _original(architecture, weights="imagenet")
    except Exception as error:  # Keras raises a bare Exception for a failed download
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--init=imagenet: Keras could not load its weights of {architecture} "
            f"({reason}). Run it once with a network, or copy the folder "
            "~/.keras/models from a machine that has them, or give a file or a run "
            "folder to --init."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    # Keras's variables have the order of ours, but names that differ.
    ours = _adapted(original, "encoder").variables
    paths = stable_paths([variable.path for variable in ours])
    return {
        paths[to.path]: _reshaped(value.numpy(), to.shape)
        for to, value in zip(ours, original.weights, strict=True)
    }


def _adapted(original: keras.Model, name: str) -> keras.Model:
    """Returns an untrained copy of Keras's network with our layers."""
    # The layers after the last feature map: ConvNeXt normalises the pooled features,
    # the others end in the pooling.
    names = {original.layers[-1].name: "h"}
    if isinstance(original.layers[-1], keras.layers.LayerNormalization):
        names[original.layers[-2].name] = "pool"

    def clone(layer):
        if layer.name not in names:
            return _clone(layer)
        # In float32, as in our ResNets: the mean of many half-precision numbers loses
        # accuracy in half precision.
        config = {**layer.get_config(), "name": names[layer.name]}
        config["dtype"] = layer.dtype_policy.variable_dtype
        return layer.__class__.from_config(config)

    network = keras.models.clone_model(original, clone_function=clone)
    return keras.Model(network.inputs[0], network.outputs[0], name=name)


def _reshaped(value: np.ndarray, shape) -> np.ndarray:
    """Returns a value of Keras's network in the shape that our variable has."""
    # The kernel of a grouped convolution is [height, width, 1, channels], that of a
    # depthwise layer [height, width, channels, 1].
    return value if value.shape == tuple(shape) else value.swapaxes(2, 3)


def _original(architecture: str, weights: str | None) -> keras.Model:
    images = keras.Input((None, None, 3), name="images")
    build = getattr(keras.applications, _APPLICATIONS[architecture][0])
    with warnings.catch_warnings():
        # "Weights for input shape (224, 224) will be loaded": of no consequence to a
        # network without its classifier.
        warnings.simplefilter("ignore", UserWarning)
        return build(
            include_top=False,
            weights=weights,
            # Keras's preprocessing takes 0-255.
            input_tensor=keras.layers.Rescaling(255.0, name="to_255")(images),
            input_shape=(None, None, 3),
            pooling="avg",
            include_preprocessing=True,
        )


def _clone(layer):
    """Returns an untrained layer in place of one of Keras's network."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.BatchNormalization):
        return SplitBatchNormalization.from_config({**config, "momentum": 0.9})
    if isinstance(layer, keras.layers.Dropout):
        return keras.layers.Dropout.from_config({**config, "rate": 0.0, "seed": None})
    if _is_grouped(layer):
        return keras.layers.DepthwiseConv2D(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            use_bias=layer.use_bias,
            dtype=layer.dtype_policy,
            name=layer.name,
        )
    if type(layer).__name__ == "LayerScale":  # a private class of Keras
        channels = layer.projection_dim
        return keras.layers.EinsumDense(
            "nhwc,c->nhwc",  # a factor for each channel
            output_shape=(None, None, channels),
            kernel_initializer=keras.initializers.Constant(layer.init_values),
            dtype=layer.dtype_policy,
            name=layer.name,
        )
    return layer.__class__.from_config(config)


def _is_grouped(layer) -> bool:
    is_convolution = isinstance(layer, keras.layers.Conv2D)
    return is_convolution and 1 < layer.groups == layer.filters
