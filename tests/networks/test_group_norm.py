"""Group norm with weight standardisation: formulas, independence, exports."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsimclr import SimCLR
from tfsimclr.networks import heads, norms, resnet, standardization
from tfsimclr.networks.portable import portable
from tfsimclr.views import random_view

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((6, 16, 16, 3)).astype("float32")


def encoder(**options):
    keras.utils.set_random_seed(1)
    settings = {"depth": 10, "width": 0.25, "stem": "medium", "norm": "group"}
    return resnet.resnet(**{**settings, **options})


@pytest.mark.quick
def test_standardised_kernels_match_numpy():
    kernel = RANDOM.normal(3.0, 2.0, (3, 3, 5, 4)).astype("float32")
    fast = standardization.standardize(kernel)
    for filter_ in range(4):
        one = kernel[..., filter_].astype("float64")
        slow = (one - one.mean()) / np.sqrt(one.var() * one.size)
        np.testing.assert_allclose(fast[..., filter_], slow, atol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 1), (16, 1), (64, 4), (512, 32), (40, 2), (48, 3)]
)
def test_groups_have_about_sixteen_channels(channels, groups):
    assert norms.group_norm(channels, "gn").groups == groups


@pytest.mark.quick
def test_group_norm_matches_numpy():
    layer = norms.group_norm(32, "gn")
    x = RANDOM.normal(2.0, 3.0, (2, 4, 4, 32)).astype("float32")
    groups = x.astype("float64").reshape(2, 4, 4, 2, 16)
    mean = groups.mean(axis=(1, 2, 4), keepdims=True)
    slow = (groups - mean) / np.sqrt(groups.var(axis=(1, 2, 4), keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer(x), slow.reshape(x.shape), atol=1e-5)


def test_an_image_does_not_see_the_other_images_of_its_batch():
    network = encoder()
    head = heads.ProjectionHead(2, 8, batch_norm=True, norm="group")
    head.build(network.output_shape)
    assert not any("batch_normalization" in v.path for v in network.variables)
    assert len(network.variables) == len(network.trainable_variables)

    def z(images):
        return head(network(images, training=True), training=True)[-1]

    together = z(IMAGES)
    alone = tf.concat([z(IMAGES[i : i + 1]) for i in range(6)], axis=0)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    plain = encoder(norm="batch")
    apart = plain(IMAGES[:1], training=True) - plain(IMAGES, training=True)[:1]
    assert np.abs(apart).max() > 0.1


@pytest.mark.parametrize("selective_kernel", [False, True])
@pytest.mark.parametrize("depth", [10, 50])
def test_a_portable_copy_gives_the_same_features(selective_kernel, depth):
    network = encoder(depth=depth, selective_kernel=selective_kernel, width=0.125)
    copy = portable(network)
    own = [
        layer for layer in copy.layers if type(layer).__module__.startswith("tfsimclr")
    ]
    assert not own
    h, expected = copy(255 * IMAGES)["h"], network(IMAGES)
    # A deep untrained network amplifies rounding: the last bit of the images changes
    # its h by up to 8e-4. The copy must not differ by more than that.
    last_bit = network(np.nextafter(IMAGES, np.float32(2))) - expected
    tolerance = max(1e-5, 4 * np.abs(last_bit).max())
    assert tolerance < 0.005
    np.testing.assert_allclose(h, expected, atol=tolerance)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_trains_and_survives_saving(precision, jit_compile, tmp_path):
    keras.config.set_dtype_policy(precision)
    head = heads.ProjectionHead(2, 8, batch_norm="hidden", norm="group")
    model = SimCLR(encoder(), head, random_view.Views(16))
    optimizer = keras.optimizers.SGD(0.05)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    model.compile(optimizer=optimizer, jit_compile=jit_compile)
    images = (255 * IMAGES).astype("uint8")
    before = [v.numpy() for v in model.trainable_variables]
    history = model.fit(images, batch_size=6, epochs=2, shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert history.history["skipped_steps"] == [0, 0]
    for old, variable in zip(before, model.trainable_variables, strict=True):
        assert np.abs(variable.numpy() - old).max() > 0, variable.path
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.head.norm == "group"
    np.testing.assert_array_equal(
        loaded.features(images)["z"], model.features(images)["z"]
    )


@pytest.mark.parametrize("loss", ["dcl", "sogclr"])
def test_micro_batches_are_the_whole_batch(loss):
    """Many views, some of them local, of 12 images at once and 4 at a time."""
    # In float64: float32's rounding puts an activation on the other side of a ReLU.
    keras.config.set_dtype_policy("float64")
    images = RANDOM.integers(0, 256, (12, 20, 20, 3)).astype("uint8")
    after = []
    for size in (0, 4):
        model = SimCLR(
            encoder(width=0.125),
            heads.ProjectionHead(2, 8, batch_norm="hidden", norm="group"),
            random_view.Views(16),
            num_views=3,
            num_local_views=2,
            loss=loss,
            num_images=12 if loss == "sogclr" else None,
            microbatch_size=size,
        )
        model.compile(optimizer=keras.optimizers.SGD(0.1))
        model.fit(images, np.arange(12), batch_size=12, epochs=2, verbose=0)
        after.append([v.numpy() for v in model.variables])
    for whole, pieces in zip(*after, strict=True):
        np.testing.assert_allclose(pieces, whole, atol=1e-6)


@pytest.mark.quick
def test_unknown_norms_are_refused():
    with pytest.raises(ValueError, match="norm must be one of .'batch', 'group'"):
        encoder(norm="layer")
    with pytest.raises(ValueError, match="norm must be one of .'batch', 'group'"):
        heads.ProjectionHead(norm="layer")
