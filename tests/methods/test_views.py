"""Any number of views of an image, and local views of fewer pixels."""

import keras
import numpy as np
import pytest
import references
import tensorflow as tf

from tfsimclr import SimCLR, losses
from tfsimclr.networks import heads, resnet
from tfsimclr.views import random_view

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(30, 226, (16, 1, 1, 3))
IMAGES = (COLOURS + RANDOM.integers(-30, 30, (16, 24, 24, 3))).astype("uint8")


def small_model(**options):
    keras.utils.set_random_seed(1)
    encoder = resnet.resnet(10, 0.125, "medium")
    head = heads.ProjectionHead(2, 8)
    views = random_view.Views(16, jitter_strength=0.2)
    return SimCLR(encoder, head, views, **options)


@pytest.mark.promise("views")
def test_more_views_leave_the_first_two_as_they_are():
    two = small_model().step_views(IMAGES, 3)
    many = small_model(num_views=3, num_local_views=2).step_views(IMAGES, 3)
    assert [view.shape[1] for view in many] == [16, 16, 16, 8, 8]
    for one, other in zip(two, many, strict=False):
        np.testing.assert_array_equal(one, other)
    for i, view in enumerate(many[:3]):
        for another in many[:i]:
            assert np.abs(view - another).mean() > 0.01
    assert np.abs(many[3] - many[4]).mean() > 0.01


def test_the_objective_is_the_loss_of_all_views_in_a_pass_per_size():
    # In float64: float32's rounding puts an activation on the other side of a ReLU.
    keras.config.set_dtype_policy("float64")
    model, twin = (small_model(num_views=3, num_local_views=2) for _ in range(2))
    views = model.step_views(IMAGES, 0)
    loss, logs = model.objective(*views)
    whole = twin(tf.concat(views[:3], 0), training=True)[-1]
    local = twin(tf.concat(views[3:], 0), training=True)[-1]
    z = [*np.split(whole, 3), *np.split(local, 2)]
    slow = references.multi_view(z, 0.5)
    np.testing.assert_allclose(loss, slow, rtol=1e-5)
    above = slow - losses.chance(16, 5)
    np.testing.assert_allclose(logs["loss_above_chance"], above, atol=1e-5)
    top1 = references.multi_view_top1(z)
    np.testing.assert_allclose(logs["contrastive_top1"], top1, atol=1e-5)
    # The moving statistics follow both passes.
    for one, other in zip(model.variables, twin.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batch_norm_sees_all_views_of_one_size_together():
    model = small_model(num_views=3, num_local_views=2)
    seen = []
    call = model.encoder.call
    model.encoder.call = lambda x, **options: (
        seen.append(tuple(x.shape[:2])) or call(x, **options)
    )
    model.objective(*model.step_views(IMAGES, 0))
    assert seen == [(48, 16), (32, 8)]


def test_local_views_are_small_crops_in_the_same_colours():
    views = random_view.Views(33, crop_min_area=0.3, grayscale=0.7, flip=False)
    local = views.local_views()
    assert local.get_config() == {
        **views.get_config(),
        **{"image_size": 17, "crop_min_area": 0.05, "crop_max_area": 0.14},
    }
    assert views.local_views(20, 0.2, 0.4).crop_max_area == 0.4
    loaded = random_view.Views.from_config(local.get_config())
    assert loaded.get_config() == local.get_config()


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.14), (0.3, 0.3), (0.5, 1.0)])
def test_crops_have_the_areas_that_were_asked_for(low, high):
    boxes = random_view.resample.random_boxes(
        tf.random.stateless_uniform([4000, random_view.resample.CROP_DRAWS, 2], (0, 1)),
        40,
        40,
        low,
        high,
    ).numpy()
    areas = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / 1600
    assert low - 1e-4 <= areas.min() <= low + 0.02
    # A crop of nearly the whole image fits only if it is nearly square.
    assert high - 0.05 <= areas.max() <= high + 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_views": 1}, "num_views must be at least 2.*num_views=1"),
        ({"num_local_views": -1}, "num_local_views=-1"),
        (
            {"local_views": random_view.Views(8)},
            "local_views needs num_local_views of at least 1, got 0",
        ),
    ],
)
def test_wrong_numbers_of_views_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_model(**options)


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(
        ValueError, match="crop_max_area must be from crop_min_area=0.2"
    ):
        random_view.Views(16, crop_min_area=0.2, crop_max_area=0.1)


def test_methods_of_two_views_refuse_more():
    from tfsimclr import MoCo

    with pytest.raises(ValueError, match="MoCo takes two views of each image"):
        MoCo(
            resnet.resnet(10, 0.125, "medium"),
            heads.ProjectionHead(2, 8),
            random_view.Views(16),
            num_views=3,
        )
