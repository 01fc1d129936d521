"""Losses of many views, hcl and sogclr against loops and against each other."""

import math

import numpy as np
import pytest
import references
import tensorflow as tf

from tfsimclr import losses
from tfsimclr.evaluation import metrics
from tfsimclr.losses import multi_view

pytestmark = pytest.mark.quick

HCL = {"beta": 1.0, "tau_plus": 0.1}
LOSSES = {"nt_xent": {}, "dcl": {}, "dclw": {}, "hcl": HCL}
by_loss = pytest.mark.parametrize(("name", "options"), LOSSES.items(), ids=LOSSES)


def views_of(count, n, d, seed=0, noise=0.5):
    """Returns `count` float32 batches [n, d], near each other."""
    rng = np.random.default_rng((seed, count, n, d))
    base = rng.normal(size=(n, d))
    views = base + noise * rng.normal(size=(count, n, d))
    return list(views.astype("float32"))


def value_and_gradients(function, z):
    z = [tf.convert_to_tensor(view) for view in z]
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = function(z)
    return loss, tape.gradient(loss, z)


@pytest.mark.promise("losses")
@by_loss
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("with_keys", [False, True])
def test_many_views_match_loops(name, options, count, temperature, with_keys):
    z = views_of(count, 4, 6)
    keys = views_of(count, 4, 6, seed=1) if with_keys else None
    fast = getattr(multi_view, name)(z, temperature, keys=keys, **options)
    slow = references.multi_view(z, temperature, name, keys, **options)
    assert fast.dtype == tf.float32 and fast.shape == ()
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-5)


@by_loss
def test_the_gradient_of_many_views_matches_central_differences(name, options):
    z = views_of(3, 2, 4)
    function = getattr(multi_view, name)
    _, fast = value_and_gradients(lambda z: function(z, 0.5, **options), z)
    slow = references.gradients(
        lambda *z: references.multi_view(z, 0.5, name, **options), *z
    )
    for one, other in zip(fast, slow, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["nt_xent", "dcl", "dclw"])
@pytest.mark.parametrize("with_keys", [False, True])
def test_two_views_are_the_loss_of_two_batches_bit_for_bit(name, with_keys):
    z = views_of(2, 9, 5)
    keys = views_of(2, 9, 5, seed=1) if with_keys else None
    many, of_many = value_and_gradients(
        lambda z: getattr(multi_view, name)(tf.stack(z), 0.2, keys=keys), z
    )
    two, of_two = value_and_gradients(
        lambda z: getattr(losses, name)(*z, 0.2, keys=keys), z
    )
    np.testing.assert_array_equal(many, two)
    np.testing.assert_array_equal(of_many, of_two)


@by_loss
@pytest.mark.parametrize("with_keys", [False, True])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_blocks_of_many_views_give_the_same(name, options, with_keys, jit_compile):
    z = views_of(3, 4, 5)
    keys = views_of(3, 4, 5, seed=1) if with_keys else None

    def function(z, rows):
        return getattr(multi_view, name)(z, 0.1, keys, rows, **options)

    whole, expected = value_and_gradients(lambda z: function(z, 0), z)
    blocked, gradients = tf.function(
        lambda *z: value_and_gradients(lambda z: function(z, 4), z),
        jit_compile=jit_compile,
    )(*map(tf.constant, z))
    np.testing.assert_allclose(blocked, whole, rtol=1e-5)
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.promise("losses")
@by_loss
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_many_half_precision_views_stay_finite(name, options, dtype, temperature):
    z = [tf.cast(view, dtype) for view in views_of(3, 6, 8)]
    z[0] *= [[0.0]] + [[1.0]] * 5  # a zero row
    loss, gradients = value_and_gradients(
        lambda z: getattr(multi_view, name)(z, temperature, **options), z
    )
    # In float64: the weights of hcl span 200 powers of e here.
    if temperature > 0.1:
        rows = [view.numpy().astype("float64") for view in z]
        slow = references.multi_view(rows, temperature, name, **options)
        np.testing.assert_allclose(loss, slow, rtol=1e-3, atol=1e-3)
    assert np.isfinite(float(loss))
    for gradient in gradients:
        assert gradient.dtype == dtype
        assert np.isfinite(gradient.numpy().astype("float64")).all()


@by_loss
@pytest.mark.parametrize(("count", "n"), [(2, 4), (5, 3)])
def test_equal_rows_of_many_views_are_at_chance(name, options, count, n):
    z = [np.full((n, 8), 0.3, "float32")] * count
    loss = getattr(multi_view, name)(z, 0.5, **options)
    chance = math.log(count * (n - 1) + (name in ("nt_xent", "hcl")))
    np.testing.assert_allclose(loss, chance, rtol=1e-5)
    if name == "nt_xent":
        assert losses.chance(n, count) == pytest.approx(chance)


@pytest.mark.parametrize(("name", "options"), [("nt_xent", {}), ("hcl", HCL)])
def test_a_batch_of_one_image_has_a_finite_loss(name, options):
    loss, gradients = value_and_gradients(
        lambda z: getattr(multi_view, name)(z, 0.5, **options), views_of(3, 1, 4)
    )
    assert np.isfinite(float(loss))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("with_keys", [False, True])
@pytest.mark.parametrize("block_rows", [0, 2, 12])
def test_top1_of_many_views_matches_loops(count, with_keys, block_rows):
    z = views_of(count, 6, 3, noise=0.8)
    keys = views_of(count, 6, 3, seed=1) if with_keys else None
    if with_keys:
        keys = [0.3 * key + view for key, view in zip(keys, z, strict=True)]
    fast = metrics.multi_view_top1(z, keys, block_rows)
    slow = references.multi_view_top1(z, keys)
    assert 0 < slow < 1
    np.testing.assert_allclose(fast, slow, rtol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_hcl_without_weights_and_debiasing_is_nt_xent(count):
    z = views_of(count, 8, 5)
    hcl, of_hcl = value_and_gradients(
        lambda z: multi_view.hcl(z, 0.1, beta=0.0, tau_plus=0.0), z
    )
    plain, expected = value_and_gradients(lambda z: multi_view.nt_xent(z, 0.1), z)
    np.testing.assert_allclose(hcl, plain, rtol=1e-5)
    for one, other in zip(of_hcl, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("tau_plus", [0.0, 0.05, 0.3])
def test_hcl_matches_loops(beta, tau_plus):
    z = views_of(2, 6, 5, noise=0.1)  # near enough for the lower bound of Ng
    fast = multi_view.hcl(z, 0.2, beta=beta, tau_plus=tau_plus)
    slow = references.multi_view(z, 0.2, "hcl", beta=beta, tau_plus=tau_plus)
    np.testing.assert_allclose(fast, slow, rtol=1e-4)


@pytest.mark.parametrize("count", [2, 3])
def test_sogclr_with_gamma_one_is_dcl(count):
    z = views_of(count, 6, 5)
    old = tf.constant(np.linspace(-3, 3, 6), tf.float32)  # without weight
    loss, gradients = value_and_gradients(
        lambda z: multi_view.sogclr(z, 0.2, log_means=old, gamma=1.0)[0], z
    )
    expected, of_dcl = value_and_gradients(lambda z: multi_view.dcl(z, 0.2), z)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for one, other in zip(gradients, of_dcl, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.promise("losses")
@pytest.mark.parametrize("count", [2, 3])
def test_sogclr_matches_loops_over_four_steps(count):
    rng = np.random.default_rng(0)
    batches = [
        (rng.permutation(7)[:3], views_of(count, 3, 4, seed=step)) for step in range(4)
    ]
    slow, means = references.sogclr(batches, 0.5, gamma=0.7, num_images=7)
    state = np.full(7, multi_view.UNSEEN, "float32")
    for (index, z), expected in zip(batches, slow, strict=True):
        new = []

        def function(z, index=index, new=new):
            loss, mean = multi_view.sogclr(
                z, 0.5, log_means=tf.constant(state[index]), gamma=0.7
            )
            new.append(mean)
            return loss

        _, gradients = value_and_gradients(function, z)
        state[index] = new[0]
        for one, other in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5)
    for value, mean in zip(state, means, strict=True):
        if mean is None:
            assert value == multi_view.UNSEEN
        else:
            np.testing.assert_allclose(math.exp(value), mean, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_sogclr_stays_finite_at_small_temperatures(temperature):
    z = [tf.cast(view, "float16") for view in views_of(3, 6, 8)]
    old = tf.constant([multi_view.UNSEEN, 100.0, -100.0, 0.0, 1.0, 2.0])
    loss, gradients = value_and_gradients(
        lambda z: multi_view.sogclr(z, temperature, log_means=old, gamma=0.9)[0], z
    )
    assert np.isfinite(float(loss))
    assert all(np.isfinite(g.numpy().astype("float64")).all() for g in gradients)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: multi_view.nt_xent(z[:1], 0.5), "at least two views, got .4, 3."),
        (lambda z: multi_view.nt_xent(z, 0.5, keys=z[:2]), "keys must have the shape"),
        (lambda z: multi_view.hcl(z, 0.5, beta=-1.0, tau_plus=0.0), "got beta=-1.0"),
        (lambda z: multi_view.hcl(z, 0.5, beta=1.0, tau_plus=1.0), "tau_plus=1.0"),
        (lambda z: multi_view.sogclr(z, 0.5, log_means=0, gamma=0), "got gamma=0"),
        (lambda z: multi_view.dcl(z, 0.5, None, 5), "must divide the 12 rows of all"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(views_of(3, 4, 3))


def test_regression_of_two_views_is_the_sum_of_both_directions():
    p, targets = views_of(2, 4, 3), views_of(2, 4, 3, seed=1)
    both = losses.regression_of_views(p, targets)
    one, other = (losses.regression(p[i], targets[1 - i]) for i in (0, 1))
    np.testing.assert_array_equal(both, one + other)


def test_regression_of_many_views_predicts_every_other_target():
    p, targets = views_of(4, 5, 3), views_of(2, 5, 3, seed=1)
    pairs = [
        float(losses.regression(p[i], targets[j]))
        for i in range(4)
        for j in range(2)
        if i != j
    ]
    np.testing.assert_allclose(
        losses.regression_of_views(p, targets), 2 * np.mean(pairs), rtol=1e-6
    )
