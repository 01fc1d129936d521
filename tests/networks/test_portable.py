"""The encoder of Keras's own layers."""

import keras
import numpy as np
import pytest

from tfsimclr.errors import UserError
from tfsimclr.networks import applications, norms, resnet
from tfsimclr.networks.portable import portable


def trained(stem="small", selective_kernel=False, norm="batch", input_norm="none"):
    """Returns an encoder whose batch norms have statistics of their own."""
    keras.utils.set_random_seed(0)
    encoder = resnet.resnet(
        10, 0.125, stem, selective_kernel, norm=norm, input_norm=input_norm
    )
    norms.set_bn_groups(encoder, 2 if norm == "batch" else 1)
    images = np.random.default_rng(0).uniform(size=(4, 20, 20, 3))
    for _ in range(3):
        encoder(images.astype("float32"), training=True)
    return encoder


@pytest.mark.parametrize(
    "stem,selective_kernel,norm,input_norm",
    [
        ("imagenet", False, "batch", "imagenet"),
        ("medium", True, "batch", "none"),
        ("small", False, "group", "none"),
    ],
)
def test_it_has_layers_of_keras_and_gives_the_same_features(
    stem, selective_kernel, norm, input_norm
):
    encoder = trained(stem, selective_kernel, norm, input_norm)
    check_copy(encoder)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("efficientnetv2b0", "convnexttiny")
        ),
    ],
)
def test_encoders_of_keras_applications(name):
    encoder = applications.application(name)
    check_copy(encoder, size=(40, 33))


def check_copy(encoder, size=(21, 17)):
    copy = portable(encoder)
    assert {type(layer).__module__.split(".")[0] for layer in copy.layers} == {"keras"}
    assert [v.path for v in copy.variables] == [v.path for v in encoder.variables]
    images = np.random.default_rng(1).uniform(0, 255, (3, *size, 3)).astype("float32")
    outputs = copy(images, training=False)
    expected = encoder(images / 255, training=False)
    np.testing.assert_allclose(outputs["h"], expected, atol=1e-5)
    average = np.mean(outputs["feature_map"], axis=(1, 2))
    if "pool" not in [layer.name for layer in encoder.layers]:  # ConvNeXt's layer norm
        np.testing.assert_allclose(average, expected, atol=1e-5)


def test_it_shares_nothing_with_the_encoder():
    encoder = trained()
    before = encoder.get_weights()
    portable(encoder)(np.ones((2, 9, 9, 3), "float32"), training=True)
    for now, then in zip(encoder.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_an_encoder_that_averages_no_map_is_refused():
    images = keras.Input((8, 8, 3))
    flat = keras.Model(images, keras.layers.Flatten()(images), name="flat")
    with pytest.raises(UserError, match="flat has no GlobalAveragePooling2D"):
        portable(flat)
