"""An encoder rebuilt from Keras's own layers, for files that others load."""

import keras
import numpy as np

from tfsimclr.errors import UserError
from tfsimclr.networks.norms import SplitBatchNormalization
from tfsimclr.networks.standardization import StandardizedConv2D, standardize

# Name of the output with the encoder's map before it is averaged over its positions.
FEATURE_MAP = "feature_map"


def portable(encoder: keras.Model) -> keras.Model:
    """Returns a copy of an encoder that needs nothing but Keras.

    Every layer is a class of Keras, so that a `.keras` file of the copy loads without
    this package and on every backend. Layers and variables keep their names. The first
    layer divides the images by 255. Standardised kernels are constants of the copy: it
    computes the same, and trains as a network without weight standardisation.

    Args:
        encoder: A functional model, images `[n, H, W, 3]` in 0-1 -> h `[n, d]`, with a
            feature map that it averages.

    Returns:
        A functional model, images `[n, H, W, 3]` in 0-255 -> `{"h": [n, d],
        "feature_map": [n, H', W', c]}`.

    Raises:
        UserError: If the encoder does not average a feature map.
    """
    scaled: dict = {}

    def call(layer, x, *args, **kwargs):
        if not scaled:  # the first layer, which takes the images
            scaled[id(x)] = keras.layers.Rescaling(1 / 255, name="to_0_1")(x)
        return layer(scaled.get(id(x), x), *args, **kwargs)

    copy = keras.models.clone_model(encoder, clone_function=_clone, call_function=call)
    for layer in encoder.layers:
        values = layer.get_weights()
        if isinstance(layer, StandardizedConv2D):
            values[0] = standardize(layer.kernel).numpy()
        if values:
            copy.get_layer(layer.name).set_weights(values)
    outputs = {"h": copy.outputs[0], FEATURE_MAP: feature_map(copy)}
    return keras.Model(copy.inputs[0], outputs, name=encoder.name)


def feature_map(encoder: keras.Model):
    """Returns the symbolic map `[n, H', W', c]` that an encoder averages.

    Raises:
        UserError: If the encoder does not average a feature map.
    """
    pooling = keras.layers.GlobalAveragePooling2D
    # Selective kernels and squeeze-and-excitation average maps too, before the end.
    averages = [layer for layer in encoder.layers if isinstance(layer, pooling)]
    if not averages:
        raise UserError(
            f"{encoder.name} has no {pooling.__name__} layer, so it has no feature map "
            "to export."
        )
    return averages[-1].input


def _clone(layer):
    """Returns an untrained layer of Keras in place of one of ours."""
    config = layer.get_config()
    if isinstance(layer, SplitBatchNormalization):
        # Groups change what training computes, not inference.
        del config["groups"]
        return keras.layers.BatchNormalization.from_config(config)
    if isinstance(layer, StandardizedConv2D):
        return keras.layers.Conv2D.from_config(config)
    if isinstance(layer, keras.layers.Normalization) and config["mean"] is not None:
        # Its constants are tensors outside of the graph, which the conversion to ONNX
        # would make inputs.
        std = np.sqrt(np.asarray(config["variance"], "float64")).ravel()
        mean = np.asarray(config["mean"], "float64").ravel()
        return keras.layers.Rescaling(
            (1 / std).tolist(), (-mean / std).tolist(), name=layer.name
        )
    return layer.__class__.from_config(config)
