"""The loss sogclr in training: its running denominators and the images' indices."""

import keras
import numpy as np
import pytest

from tfsimclr import SimCLR, losses
from tfsimclr.losses import multi_view
from tfsimclr.networks import heads, resnet
from tfsimclr.views import random_view

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(30, 226, (16, 1, 1, 3))
IMAGES = (COLOURS + RANDOM.integers(-30, 30, (16, 16, 16, 3))).astype("uint8")


def small_model(**options):
    keras.utils.set_random_seed(1)
    encoder = resnet.resnet(10, 0.125, "medium")
    settings = {"loss": "sogclr", "num_images": 16, **options}
    model = SimCLR(
        encoder, heads.ProjectionHead(2, 8), random_view.Views(16), **settings
    )
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    return model


def test_a_step_stores_the_means_of_its_own_images():
    model = small_model(sogclr_gamma=0.5)
    index = np.array([9, 2, 5, 14])
    model.fit(IMAGES[index], index, batch_size=4, shuffle=False, verbose=0)
    stored = model.log_means.numpy()
    assert set(np.flatnonzero(stored > multi_view.UNSEEN)) == set(index)
    # The learning rate is 0, so the projections of that step can be made again.
    z, _ = model._projections(model.step_views(IMAGES[index], 0), True)
    unseen = np.full(4, multi_view.UNSEEN, "float32")
    loss, means = multi_view.sogclr(z, 0.5, log_means=unseen, gamma=0.5)
    np.testing.assert_allclose(stored[index], means, rtol=1e-5)
    # A new image has no other mean than that of its batch, as in dcl.
    np.testing.assert_allclose(loss, losses.dcl(*z, 0.5), rtol=1e-6)
    model.fit(IMAGES[index], index, batch_size=4, shuffle=False, verbose=0)
    z, _ = model._projections(model.step_views(IMAGES[index], 1), True)
    _, newest = multi_view.sogclr(z, 0.5, log_means=unseen, gamma=0.5)
    mixed = np.log(0.5 * np.exp(means) + 0.5 * np.exp(newest))
    np.testing.assert_allclose(model.log_means.numpy()[index], mixed, rtol=1e-4)


def test_the_indices_must_be_given():
    with pytest.raises(ValueError, match="needs the index of every image.*np.arange"):
        small_model().fit(IMAGES, batch_size=8, verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_images": None},
            "num_images.*belongs to loss='sogclr', got num_images=N",
        ),
        ({"loss": "dcl"}, "num_images=16 and loss='dcl'"),
        (
            {"loss": "dcl", "num_images": None, "sogclr_gamma": 0.5},
            "sogclr_gamma means nothing to loss='dcl'",
        ),
        ({"hcl_beta": 1.0}, "hcl_beta means nothing to loss='sogclr'"),
    ],
)
def test_arguments_of_another_loss_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_model(**options)


def test_held_out_images_have_the_loss_of_new_ones():
    model = small_model()
    model.fit(IMAGES, np.arange(16), batch_size=8, verbose=0)
    before = model.log_means.numpy()
    plain = SimCLR(model.encoder, model.head, model.views, loss="dcl")
    plain.compile()
    evaluated = model.evaluate(IMAGES[:8], verbose=0, return_dict=True)
    expected = plain.evaluate(IMAGES[:8], verbose=0, return_dict=True)
    assert evaluated == expected
    np.testing.assert_array_equal(model.log_means, before)
