"""Batch norm in groups: as if each part of the batch lay on a device of its own."""

import keras
import numpy as np
import pytest

from tfsimclr import heads, norms, resnet

RANDOM = np.random.default_rng(0)
MAPS = RANDOM.normal(size=(12, 3, 5, 4)).astype("float32")
ROWS = RANDOM.normal(size=(12, 4)).astype("float32")


def layer(groups=1, **options):
    made = norms.SplitBatchNormalization(groups, momentum=0.8, epsilon=1e-3, **options)
    made.build((None, None, None, 4))
    # Not ones and zeros: a scale or an offset that is forgotten must show.
    if made.scale:
        made.gamma.assign([0.5, 1.0, 2.0, 3.0])
    if made.center:
        made.beta.assign([0.1, 0.2, 0.3, 0.4])
    return made


def keras_layer():
    made = keras.layers.BatchNormalization(momentum=0.8, epsilon=1e-3)
    made.build((None, None, None, 4))
    made.gamma.assign([0.5, 1.0, 2.0, 3.0])
    made.beta.assign([0.1, 0.2, 0.3, 0.4])
    return made


@pytest.mark.parametrize("training", [False, True])
def test_one_group_is_keras_s_layer(training):
    ours, theirs = layer(), keras_layer()
    outputs = [one(MAPS, training=training) for one in (ours, theirs)]
    np.testing.assert_allclose(*outputs, atol=1e-5)  # threads add in any order
    for one, other in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("groups", [2, 3, 4, 6])
@pytest.mark.parametrize("images", [MAPS, ROWS[:, None, None]])
def test_each_group_is_normalised_by_itself(groups, images):
    ours = layer(groups)
    got = ours(images, training=True)
    alone = [keras_layer() for _ in range(groups)]
    parts = np.split(images, groups)
    wanted = [one(x, training=True) for one, x in zip(alone, parts, strict=True)]
    np.testing.assert_allclose(got, np.concatenate(wanted), atol=1e-5)
    for name in ("moving_mean", "moving_variance"):
        average = np.mean([getattr(one, name).numpy() for one in alone], axis=0)
        np.testing.assert_allclose(getattr(ours, name), average, atol=1e-5)


def test_groups_mean_nothing_outside_of_training():
    ours, theirs = layer(3), layer()
    np.testing.assert_array_equal(ours(MAPS), theirs(MAPS))


def test_without_scale_and_offset():
    got = layer(3, scale=False, center=False)(MAPS, training=True)
    part = np.asarray(got)[:4]
    np.testing.assert_allclose(part.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(part.var((0, 1, 2)), 1, atol=1e-2)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_normalised_in_float32(policy):
    half = policy.removeprefix("mixed_")
    got = layer(3, dtype=policy)(keras.ops.cast(MAPS, half), training=True)
    assert got.dtype == half
    wanted = layer(3)(MAPS, training=True)
    tolerance = 0.01 if half == "float16" else 0.06
    np.testing.assert_allclose(keras.ops.cast(got, "float32"), wanted, atol=tolerance)


def test_a_batch_that_cannot_be_split_is_an_error():
    with pytest.raises(ValueError, match="5 groups do not divide a batch of 12"):
        layer(5)(MAPS, training=True)


def test_the_groups_of_a_network_are_set_and_saved(tmp_path):
    network = resnet.resnet(10, 0.125, "small")
    norms.split(network, 4)
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    found = [x.groups for x in loaded.layers if hasattr(x, "groups") and "bn" in x.name]
    assert len(found) == 12 and set(found) == {4}
    head = heads.ProjectionHead(2, 8, batch_norm=True)
    head.build((None, 16))
    norms.split(head, 4)
    x = RANDOM.normal(size=(12, 16)).astype("float32")
    other = x.copy()
    other[8:] += RANDOM.normal(size=(4, 16))  # of the last group alone
    before, after = (np.asarray(head(rows, training=True)[-1]) for rows in (x, other))
    np.testing.assert_array_equal(before[:6], after[:6])


def test_plain_batch_norm_cannot_be_split():
    network = keras.Sequential(
        [keras.layers.Dense(4), keras.layers.BatchNormalization(name="plain")]
    )
    network.build((None, 3))
    norms.split(network, 1)
    with pytest.raises(ValueError, match="plain normalises over the whole batch"):
        norms.split(network, 2)


@pytest.mark.parametrize(
    "n,groups", [(128, 16), (256, 16), (100, 10), (16, 4), (2, 2), (12, 4), (7, 7)]
)
def test_two_groups_share_one_row_at_most(n, groups):
    assert norms.fewest_groups(n) == groups
    order = norms.spread(n, groups)
    assert sorted(order) == list(range(n))
    size = n // groups
    first = [set(range(i, i + size)) for i in range(0, n, size)]
    second = [set(order[i : i + size]) for i in range(0, n, size)]
    assert max(len(a & b) for a in first for b in second) == 1
