"""The images that Keras's verbs take: kinds of batches, and the scale of the pixels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsimclr.methods import simclr
from tfsimclr.networks import heads, resnet
from tfsimclr.views import random_view

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
SMALL = IMAGES / np.float32(255)


@pytest.fixture(scope="module")
def model():
    encoder = resnet.resnet(10, 0.125, stem="medium")
    model = simclr.SimCLR(
        encoder, heads.ProjectionHead(2, dim=8), random_view.Views(16)
    )
    model.compile(optimizer="sgd", run_eagerly=True)
    return model


class Batches(keras.utils.PyDataset):
    """Batches of 8 images with labels."""

    def __init__(self, images=IMAGES):
        super().__init__()
        self.images = images

    def __len__(self):
        return 3

    def __getitem__(self, index):
        batch = self.images[8 * index : 8 * index + 8]
        return batch, np.zeros(len(batch))


def dataset(images=IMAGES):
    return tf.data.Dataset.from_tensor_slices(images).batch(8)


def pairs(images=IMAGES):
    return tf.data.Dataset.zip(dataset(images), dataset(np.zeros(20)))


@pytest.mark.parametrize(
    "images",
    [
        *(dataset(), pairs(), Batches(), [IMAGES[:8], IMAGES[8:]]),
        *(dataset(IMAGES.astype("float32")), tf.constant(IMAGES)),
        *(IMAGES.astype(name) for name in ("float16", "float64", "uint16", "int64")),
    ],
    ids=lambda images: type(images).__name__,
)
def test_features_take_what_fit_takes(model, images):
    """F24: `features` of a `tf.data.Dataset` failed where `fit` takes one.

    Siblings: data sets of pairs, `PyDataset`, generators and lists of batches failed
    too; arrays of every dtype worked. Data without end is refused.
    """
    expected = model.features(IMAGES)
    for name, layer in model.features(images).items():
        np.testing.assert_allclose(layer, expected[name], atol=1e-5)


def test_features_of_a_generator_and_of_data_without_end(model):
    expected = model.features(IMAGES)["h"]
    generator = (batch for batch in (IMAGES[:8], IMAGES[8:]))
    np.testing.assert_allclose(model.features(generator)["h"], expected, atol=1e-5)
    with pytest.raises(ValueError, match="repeats without end"):
        model.features(dataset().repeat())
    with pytest.raises(ValueError, match=r"Use batch\(\)"):
        model.features(tf.data.Dataset.from_tensor_slices(IMAGES))
    for empty in (dataset().take(0), iter(())):
        with pytest.raises(ValueError, match="at least one image, got none"):
            model.features(empty)


SCALED = {
    "array": SMALL,
    "float16": SMALL.astype("float16"),
    "tensor": tf.constant(SMALL),
    "dataset": dataset(SMALL),
    "pairs": pairs(SMALL),
    "pydataset": Batches(SMALL),
}


@pytest.mark.parametrize("kind", SCALED)
def test_pixels_in_0_1_are_refused_where_0_255_is_expected(model, kind):
    """F9: two scales of pixels in one class; mixed up, features were silently wrong.

    Siblings: `fit`, `evaluate`, the validation data of `fit`, `features`; arrays and
    data sets of every float type are refused. Not checked: generators, which can be
    read only once; a SavedModel, where a check would cost a pass over the images and
    cannot be converted to TensorFlow Lite (its signature `serving_uint8` has one scale
    only); the encoder called by itself, which Keras feeds with floats of any integers.
    """
    images = SCALED[kind]
    with pytest.raises(ValueError, match="features takes images in 0-255"):
        model.features(images)
    with pytest.raises(ValueError, match="fit takes images in 0-255"):
        model.fit(images, verbose=0)
    with pytest.raises(ValueError, match="evaluate takes images in 0-255"):
        model.evaluate(images, verbose=0)
    validation = (images,) if hasattr(images, "shape") else images
    with pytest.raises(ValueError, match="validation_data.* takes images in 0-255"):
        model.fit(IMAGES, validation_data=validation, verbose=0)


@pytest.mark.parametrize("kind", ["array", "tensor", "dataset"])
def test_pixels_in_0_255_are_refused_where_0_1_is_expected(model, kind):
    kinds = {"array": IMAGES, "tensor": tf.constant(IMAGES), "dataset": dataset()}
    images = kinds[kind]
    with pytest.raises(ValueError, match="takes float images in 0-1, got uint8"):
        model.predict(images, verbose=0)
    if kind != "dataset":
        with pytest.raises(ValueError, match="takes float images in 0-1, got uint8"):
            model(images)
        as_float = tf.cast(images, tf.float32)
        with pytest.raises(ValueError, match="predict takes images in 0-1, got .* 255"):
            model.predict(as_float, verbose=0)


def test_black_images_and_integers_of_either_scale_are_taken(model):
    assert model.features(np.zeros((2, 16, 16, 3), "float32"))["h"].shape == (2, 64)
    assert model.features((IMAGES > 127).astype("uint8"))["h"].shape == (20, 64)
    outputs = model.predict(SMALL, verbose=0)
    np.testing.assert_allclose(outputs[0], model.features(IMAGES)["h"], atol=1e-5)
