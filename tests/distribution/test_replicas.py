"""What replicas exchange in a step, and the parts of a batch that each of them gets."""

import numpy as np
import pytest
import tensorflow as tf

from tfsimclr.data import batches
from tfsimclr.distribution import replicas, strategies
from tfsimclr.errors import UserError
from tfsimclr.networks import norms
from tfsimclr.resolve import check_devices
from tfsimclr.settings.config import Config
from tfsimclr.training import fit
from tfsimclr.views import pending, random_view
from tfsimclr.views.random_view import Rows, Views

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def two():
    return strategies.mirrored(["CPU:0", "CPU:1"])


def run(strategy, function, *values):
    """Returns what a function returns on every replica; value i goes to replica i."""
    per_replica = [
        strategy.experimental_distribute_values_from_function(
            lambda context, rows=rows: rows[context.replica_id_in_sync_group]
        )
        for rows in values
    ]
    results = tf.function(lambda *args: strategy.run(function, args))(*per_replica)
    unpacked = strategy.experimental_local_results(results)
    return [tf.nest.map_structure(lambda x: x.numpy(), one) for one in unpacked]


def rows(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_gathered_rows_are_those_of_the_whole_batch_in_order(two):
    x = rows(2, 3, 4)
    for result in run(two, replicas.gather, tf.constant(x)):
        np.testing.assert_array_equal(result, x.reshape(6, 4))
    index = np.arange(6).reshape(2, 3)
    for result in run(two, replicas.gather, tf.constant(index)):
        np.testing.assert_array_equal(result, range(6))


def test_the_total_gradient_through_gather_is_that_of_one_device(two):
    x, w = rows(2, 3, 4), tf.constant(rows(4, 5, seed=1))

    def loss(z):  # of all pairs, so that every row matters to every other
        return tf.reduce_logsumexp(tf.matmul(z, z, transpose_b=True))

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(w)
            value = loss(replicas.gather(x @ w)) / replicas.count()
        return replicas.total([tape.gradient(value, w), None])[0]

    with tf.GradientTape() as tape:
        tape.watch(w)
        value = loss(x.reshape(6, 4) @ w)
    expected = tape.gradient(value, w).numpy()
    for result in run(two, gradient, tf.constant(x)):
        np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_are_those_of_all_values_also_far_from_zero(two, offset):
    x = rows(2, 50, 3) + np.float32(offset)

    def moments(x):
        return replicas.combined_moments(*tf.nn.moments(x, axes=[0]))

    every = x.reshape(100, 3).astype(np.float64)
    for mean, variance in run(two, moments, tf.constant(x)):
        np.testing.assert_allclose(mean, every.mean(0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(variance, every.var(0), rtol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_batch_norm_is_that_of_the_whole_batch_or_of_each_part(two, dtype):
    x = rows(2, 8, 3, 3, 4) * 3 + 1
    whole = x.reshape(16, 3, 3, 4)
    layer = norms.SplitBatchNormalization(dtype=dtype)
    groups = norms.SplitBatchNormalization(groups=2, dtype=dtype)
    with two.scope():
        shared = norms.SplitBatchNormalization(dtype=dtype)
        separate = norms.SplitBatchNormalization(dtype=dtype)
        for made in (layer, groups, shared, separate):
            made.build(whole.shape)

    def call(x):
        with replicas.separate_batch_norm():
            alone = separate(x, training=True)
        return shared(x, training=True), alone

    results = run(two, call, tf.constant(x))
    expected = [made(whole, training=True) for made in (layer, groups)]
    tolerance = 1e-5 if dtype == "float32" else 0.04
    for position, one in enumerate(expected):
        result = np.concatenate([result[position] for result in results])
        np.testing.assert_allclose(
            result.astype(np.float32), tf.cast(one, tf.float32), atol=tolerance
        )
    for one, other in ((layer, shared),):
        for a, b in zip(one.variables, other.variables, strict=True):
            np.testing.assert_allclose(replicas.local_value(b), a, atol=1e-5)


def test_without_replicas_nothing_is_added_to_the_graph():
    @tf.function
    def step(x):
        before = len(tf.compat.v1.get_default_graph().get_operations())
        assert replicas.gather(x) is x
        assert replicas.mean([x, None]) == [x, None]
        assert replicas.total([x, None]) == [x, None]
        assert replicas.combined_moments(x, x) == (x, x)
        assert replicas.log_value(x) is x
        assert (replicas.count(), replicas.index()) == (1, 0)
        assert not replicas.batch_norm_is_shared()
        assert len(tf.compat.v1.get_default_graph().get_operations()) == before
        return x

    step(tf.zeros([2, 2]))
    with strategies.mirrored(["CPU:0", "CPU:1"]).scope():
        assert replicas.count() == 1  # where models are made, not in a step


@pytest.mark.parametrize("is_pending", [False, True])
def test_an_image_has_the_view_that_it_has_on_one_device(is_pending):
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), np.uint8)
    views, seed = Views(10, blur=0.5), tf.constant([3, 4])
    whole = views(images, seed)
    draws = random_view._draws(seed, random_view.CROP, 8, [6, 2], None)
    for part in range(4):
        own = Rows(part * 2 + tf.range(2), 8)
        piece = images[part * 2 : part * 2 + 2]
        of_part = random_view._draws(seed, random_view.CROP, 2, [6, 2], own)
        np.testing.assert_array_equal(of_part, draws[part * 2 : part * 2 + 2])
        if is_pending:
            view = pending.PendingView(views, tf.constant(piece), seed, own)
            made = pending.make_rows(view, tf.range(2))
        else:
            made = views(piece, seed, own)
        # The products of smaller batches may round differently.
        np.testing.assert_allclose(made, whole[part * 2 : part * 2 + 2], atol=1e-6)


@pytest.mark.parametrize("num_parts,machines", [(2, 1), (4, 1), (4, 2)])
def test_the_parts_of_the_batches_are_those_of_one_device(num_parts, machines):
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    labels = np.arange(40)
    settings = {"batch_size": 8, "seed": 5, "start_step": 3, "stop_step": 12}
    whole = list(batches.training_batches(images, labels=labels, **settings))
    here = num_parts // machines
    of_machines = [
        batches.training_batches(
            images,
            labels=labels,
            parts=range(i * here, (i + 1) * here),
            num_parts=num_parts,
            **settings,
        )
        for i in range(machines)
    ]
    assert of_machines[0].element_spec[0].shape == (8 // num_parts, 1, 1, 1)
    assert of_machines[0].cardinality() == tf.data.INFINITE_CARDINALITY
    parts = [iter(dataset) for dataset in of_machines]
    for step in range(9):
        own = [next(part) for part in parts for _ in range(here)]
        for position in range(2):
            joined = np.concatenate([part[position] for part in own])
            np.testing.assert_array_equal(joined, whole[step][position])


def test_a_strategy_hands_out_parts_for_training_and_whole_batches_otherwise(two):
    images = np.arange(24, dtype=np.uint8).reshape(24, 1, 1, 1)
    whole = list(batches.training_batches(images, 8, 0, 0, 3))
    parts = iter(fit.training_batches(two, images, 8, 0, 0, 3))
    for batch in whole:
        joined = np.concatenate(two.experimental_local_results(next(parts)))
        np.testing.assert_array_equal(joined, batch)
    held_out = batches.validation_batches(images, 8)
    for one, both in zip(held_out, fit.on_all_replicas(two, held_out), strict=True):
        for other in two.experimental_local_results(both):
            np.testing.assert_array_equal(other, one)


def test_a_batch_that_the_devices_do_not_divide_is_refused(two):
    with pytest.raises(UserError, match="batch_size=9 must be a multiple of the 2"):
        batches.training_batches(np.zeros([20, 1, 1, 3]), 9, 0, 0, 1, num_parts=2)


def resolved(**settings):
    return Config(**{"batch_size": 16, "bn_groups": 1, **settings})


@pytest.mark.parametrize(
    "settings,devices,message",
    [
        ({}, 3, "--batch_size=16 must be a multiple of the 3 devices.*Use 15"),
        ({"microbatch_size": 8}, 4, "--microbatch_size=8 must divide the 4.*Use 4"),
        ({"bn_groups": 2}, 4, "--bn_groups=2 must be a multiple of the 4"),
        ({"remat": True}, 2, "--remat works on one device, got 2"),
        ({"sync_batch_norm": False}, 1, "means nothing on one device"),
        ({"sync_batch_norm": False, "norm": "group"}, 2, "means nothing to --norm"),
        ({"sync_batch_norm": False, "bn_groups": 4}, 2, "means nothing to --bn_groups"),
        (
            {"sync_batch_norm": False, "microbatch_size": 4},
            2,
            "means nothing to --microbatch_size",
        ),
    ],
)
def test_settings_that_do_not_suit_the_devices_are_refused(settings, devices, message):
    with pytest.raises(UserError, match=message):
        check_devices(resolved(**settings), devices)


def test_settings_that_suit_the_devices_are_not():
    for settings, devices in (
        ({}, 4),
        ({"microbatch_size": 4, "bn_groups": 4}, 2),
        ({"sync_batch_norm": False}, 2),
        ({"sync_batch_norm": False, "mode": "evaluate"}, 1),
        ({"mode": "finetune"}, 3),
    ):
        check_devices(resolved(**settings), devices)


def test_strategies_by_name(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    make = strategies.make.__wrapped__
    with pytest.raises(UserError, match="strategy must be one of"):
        make("pipeline")
    with pytest.raises(UserError, match="needs the environment variable TF_CONFIG"):
        make("multi_worker")
    assert make("none") is None
    if not tf.config.list_physical_devices("GPU"):
        assert make("auto") is None
        # The tests' logical CPUs (conftest.py).
        assert strategies.num_replicas(make("mirrored")) == 4
    assert strategies.num_replicas(None) == 1
    assert strategies.is_chief(None) and strategies.is_chief(make("mirrored"))
