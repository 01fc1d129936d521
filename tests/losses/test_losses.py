"""NT-Xent and one-sided InfoNCE against loops, closed forms and TensorFlow Addons."""

import math
import pathlib

import numpy as np
import pytest
import references
import tensorflow as tf

from tfsimclr import losses

pytestmark = pytest.mark.quick

ADDONS = pathlib.Path(__file__).parents[1] / "data" / "addons_0_23_0.npz"
NAMES = ["nt_xent", "dcl", "dclw", "info_nce"]
CONTRASTIVE = NAMES[:3]
TEMPERATURES = [0.01, 0.1, 0.5, 1.0]


def pair(n, d, seed=0):
    """Returns two float32 batches [n, d], the second near the first."""
    rng = np.random.default_rng((seed, n, d))
    z_a = rng.normal(size=(n, d))
    z_b = z_a + 0.5 * rng.normal(size=(n, d))
    return z_a.astype("float32"), z_b.astype("float32")


def value_and_gradients(function, z_a, z_b, temperature):
    z_a, z_b = tf.convert_to_tensor(z_a), tf.convert_to_tensor(z_b)
    with tf.GradientTape() as tape:
        tape.watch([z_a, z_b])
        loss = function(z_a, z_b, temperature)
    return loss, tape.gradient(loss, [z_a, z_b])


@pytest.mark.promise("nt-xent")
@pytest.mark.parametrize("n,d", [(1, 4), (2, 1), (2, 7), (5, 16), (13, 3), (32, 8)])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_matches_loops(n, d, temperature):
    z_a, z_b = pair(n, d)
    fast = losses.nt_xent(z_a, z_b, temperature)
    slow = references.nt_xent(z_a, z_b, temperature)
    assert fast.dtype == tf.float32
    assert fast.shape == ()
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_of_any_float_type_is_computed_in_float32(dtype, temperature):
    z_a, z_b = (tf.cast(z, dtype) for z in pair(6, 16))
    fast = losses.nt_xent(z_a, z_b, temperature)
    slow = references.nt_xent(z_a.numpy(), z_b.numpy(), temperature)
    assert fast.dtype == tf.float32
    # Sums in half precision would differ by 1e-3 or more.
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.promise("nt-xent")
@pytest.mark.parametrize("n", [1, 2, 4, 128])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_nt_xent_of_equal_rows_is_chance(n, temperature):
    z = np.full((n, 8), 0.3, "float32")
    loss = losses.nt_xent(z, z, temperature)
    np.testing.assert_allclose(loss, math.log(2 * n - 1), rtol=1e-5, atol=1e-6)


def test_chance_is_a_python_float():
    assert isinstance(losses.chance(128), float)
    assert losses.chance(128) == pytest.approx(5.5413, abs=1e-4)
    assert losses.chance(256) == pytest.approx(6.2363, abs=1e-4)
    assert losses.chance(1) == 0.0


@pytest.mark.promise("nt-xent")
@pytest.mark.parametrize("n", [2, 3, 16])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_has_2n_minus_2_negatives(n, temperature):
    z = 3.0 * np.eye(n, 16, dtype="float32")
    loss = losses.nt_xent(z, z, temperature)
    expected = math.log1p((2 * n - 2) * math.exp(-1 / temperature))
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)
    if temperature >= 0.5:  # below it the other count gives the same float32
        other_view_only = math.log1p((n - 1) * math.exp(-1 / temperature))
        assert abs(float(loss) - other_view_only) > 0.05


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_counts_negatives_of_the_same_view(temperature):
    n = 5
    z_a = np.tile(np.eye(1, n + 1, dtype="float32"), (n, 1))  # every row e_0
    z_b = np.eye(n, n + 1, k=1, dtype="float32")  # orthonormal, orthogonal to e_0
    of_a = math.log((n - 1) + n * math.exp(-1 / temperature)) + 1 / temperature
    of_b = math.log(2 * n - 1)
    loss = losses.nt_xent(z_a, z_b, temperature)
    np.testing.assert_allclose(loss, (of_a + of_b) / 2, rtol=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_of_opposite_views(temperature):
    n = 4
    z = np.eye(n, dtype="float32")
    expected = 1 / temperature + math.log(
        2 * n - 2 + math.exp(-1 / temperature)
    )  # log(1 + (2n - 2) exp(1 / T)) without the overflow
    loss = losses.nt_xent(z, -z, temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_nt_xent_of_one_pair_is_zero_with_zero_gradient():
    z_a, z_b = pair(1, 6)
    loss, gradients = value_and_gradients(losses.nt_xent, z_a, -z_b, 0.1)
    assert abs(float(loss)) < 1e-6
    for gradient in gradients:
        np.testing.assert_allclose(gradient, np.zeros((1, 6)), atol=1e-6)


def test_nt_xent_is_symmetric_in_the_views():
    z_a, z_b = pair(9, 5)
    first, second = losses.nt_xent(z_a, z_b, 0.2), losses.nt_xent(z_b, z_a, 0.2)
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_nt_xent_ignores_the_order_of_the_pairs():
    z_a, z_b = pair(9, 5)
    order = np.random.default_rng(1).permutation(9)
    first = losses.nt_xent(z_a, z_b, 0.2)
    second = losses.nt_xent(z_a[order], z_b[order], 0.2)
    np.testing.assert_allclose(first, second, rtol=1e-5)
    unpaired = losses.nt_xent(z_a, z_b[np.roll(np.arange(9), 1)], 0.2)
    assert float(unpaired) > float(first) + 0.5


def test_nt_xent_ignores_the_length_of_the_rows():
    z_a, z_b = pair(8, 6)
    scale = np.random.default_rng(2).uniform(1e-3, 1e3, size=(2, 8, 1))
    scale = scale.astype("float32")
    first = losses.nt_xent(z_a, z_b, 0.1)
    second = losses.nt_xent(z_a * scale[0], z_b * scale[1], 0.1)
    np.testing.assert_allclose(first, second, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n,d", [(2, 3), (4, 5)])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_gradient_matches_central_differences(name, n, d, temperature):
    # Random pairs: the gradient of similar views vanishes at a small temperature.
    z_a, z_b = np.random.default_rng(3).normal(size=(2, n, d)).astype("float32")
    _, fast = value_and_gradients(getattr(losses, name), z_a, z_b, temperature)
    slow = references.gradients(
        lambda a, b: getattr(references, name)(a, b, temperature), z_a, z_b
    )
    assert max(np.abs(gradient).max() for gradient in slow) > 0.01
    for fast_one, slow_one in zip(fast, slow, strict=True):
        np.testing.assert_allclose(fast_one, slow_one, rtol=1e-4, atol=2e-5)


@pytest.mark.promise("nt-xent")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_small_temperatures_and_large_rows_stay_finite(name, dtype, scale):
    z_a, z_b = (tf.cast(scale * z, dtype) for z in pair(16, 8))
    loss, gradients = value_and_gradients(getattr(losses, name), z_a, z_b, 0.01)
    slow = getattr(references, name)(z_a.numpy(), z_b.numpy(), 0.01)
    np.testing.assert_allclose(loss, slow, rtol=1e-4, atol=1e-4)
    for gradient in gradients:
        assert gradient.dtype == dtype
        assert np.isfinite(gradient.numpy().astype("float64")).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows", [[2], [0, 1, 2, 3]])
def test_zero_rows_stay_finite(name, dtype, rows):
    z_a, z_b = pair(4, 6)
    z_a[rows] = 0
    if len(rows) == 4:
        z_b[rows] = 0
    z_a, z_b = tf.cast(z_a, dtype), tf.cast(z_b, dtype)
    loss, gradients = value_and_gradients(getattr(losses, name), z_a, z_b, 0.5)
    slow = getattr(references, name)(z_a.numpy(), z_b.numpy(), 0.5)
    np.testing.assert_allclose(loss, slow, rtol=1e-4)
    for gradient in gradients:
        assert np.isfinite(gradient.numpy().astype("float64")).all()


def largest_output(function, *shapes):
    """Returns the largest number of elements of any tensor in a graph."""

    @tf.function(input_signature=[tf.TensorSpec(shape) for shape in shapes])
    def traced(z_a, z_b):
        return value_and_gradients(function, z_a, z_b, 0.5)

    definition = traced.get_concrete_function().graph.as_graph_def(add_shapes=True)
    nodes = list(definition.node)
    for inner in definition.library.function:
        nodes.extend(inner.node_def)
    sizes = []
    for node in nodes:
        for shape in node.attr["_output_shapes"].list.shape:
            if shape.unknown_rank:
                continue
            sizes.append(math.prod(dimension.size for dimension in shape.dim))
    return max(sizes)


def test_nt_xent_makes_no_tensor_of_pairs_times_dimensions():
    n, d = 8, 5

    def broadcasting(z_a, z_b, temperature):
        z = tf.concat([z_a, z_b], axis=0)
        return tf.reduce_sum(z[:, None] * z[None]) / temperature

    assert largest_output(broadcasting, (n, d), (n, d)) == (2 * n) ** 2 * d
    assert n * d < largest_output(losses.nt_xent, (n, d), (n, d)) <= (2 * n) ** 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_losses_compile(name, jit_compile):
    z_a, z_b = pair(6, 8)
    function = getattr(losses, name)
    compiled = tf.function(value_and_gradients, jit_compile=jit_compile)
    loss, gradients = compiled(function, tf.constant(z_a), tf.constant(z_b), 0.1)
    eager, eager_gradients = value_and_gradients(function, z_a, z_b, 0.1)
    np.testing.assert_allclose(loss, eager, rtol=1e-5)
    for first, second in zip(gradients, eager_gradients, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_losses_take_batches_of_unknown_size(name):
    function = getattr(losses, name)
    unknown = tf.TensorSpec([None, 8])
    compiled = tf.function(
        lambda a, b: function(a, b, 0.5), input_signature=[unknown, unknown]
    )
    for n in (2, 5):
        z_a, z_b = pair(n, 8)
        slow = getattr(references, name)(z_a, z_b, 0.5)
        np.testing.assert_allclose(compiled(z_a, z_b), slow, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0, 0.0, -0.5])
def test_temperature_must_be_positive(name, temperature):
    with pytest.raises(ValueError, match=rf"temperature.*{temperature}"):
        getattr(losses, name)(*pair(4, 3), temperature)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape_a,shape_b",
    [
        ((4, 3), (5, 3)),
        ((4, 3), (4, 2)),
        ((4,), (4,)),
        ((4, 3, 2), (4, 3, 2)),
        ((), ()),
        ((4, 3), (4, 3, 1)),
    ],
)
def test_projections_must_be_two_equal_matrices(name, shape_a, shape_b):
    with pytest.raises(ValueError) as error:
        getattr(losses, name)(
            np.ones(shape_a, "float32"), np.ones(shape_b, "float32"), 0.5
        )
    received = [str(shape_a), str(list(shape_a)), str(shape_b), str(list(shape_b))]
    assert any(text in str(error.value) for text in received)


@pytest.mark.parametrize("n,d", [(1, 4), (2, 7), (5, 16), (13, 3)])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_info_nce_matches_loops(n, d, temperature):
    query, key = pair(n, d)
    fast = losses.info_nce(query, key, temperature)
    assert fast.dtype == tf.float32
    assert fast.shape == ()
    slow = references.info_nce(query, key, temperature)
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-4)


def test_info_nce_is_one_sided():
    n, temperature = 5, 0.5
    query = np.tile(np.eye(1, n, dtype="float32"), (n, 1))  # every row e_0
    key = np.eye(n, dtype="float32")
    # All queries equal the key of row 0, the positive of query 0 only.
    spread = math.log(math.exp(1 / temperature) + n - 1)
    expected = spread - 1 / temperature / n
    loss = losses.info_nce(query, key, temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    swapped = losses.info_nce(key, query, temperature)
    np.testing.assert_allclose(swapped, math.log(n), rtol=1e-5)


def test_info_nce_matches_npairs_loss_of_tensorflow_addons():
    with np.load(ADDONS) as saved:
        query, key = saved["npairs_queries"], saved["npairs_keys"]
        temperature = float(saved["npairs_temperature"])
        expected = float(saved["npairs_loss"])
    # Addons does not normalise rows, so the stored rows have length one.
    np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(key, axis=1), 1, rtol=1e-5)
    loss = losses.info_nce(query, key, temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    swapped = losses.info_nce(key, query, temperature)
    assert abs(float(swapped) - expected) > 1e-3  # the data tells the sides apart


@pytest.mark.promise("losses")
@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("n,d", [(2, 7), (5, 16), (13, 3)])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("with_keys", [False, True])
def test_contrastive_losses_match_loops(name, n, d, temperature, with_keys):
    z_a, z_b = pair(n, d)
    keys = pair(n, d, seed=1) if with_keys else None
    fast = getattr(losses, name)(z_a, z_b, temperature, keys=keys)
    slow = getattr(references, name)(z_a, z_b, temperature, keys=keys)
    assert fast.dtype == tf.float32
    assert fast.shape == ()
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dcl", "dclw"])
@pytest.mark.parametrize("n", [2, 4, 128])
def test_decoupled_loss_of_equal_rows_has_one_candidate_less(name, n):
    z = np.full((n, 8), 0.3, "float32")
    loss = getattr(losses, name)(z, z, 0.5)
    np.testing.assert_allclose(loss, math.log(2 * n - 2), rtol=1e-5, atol=1e-6)


def test_decoupling_keeps_the_pull_of_pairs_that_agree():
    """The gradient of NT-Xent vanishes for close positives, that of dcl does not."""
    z_a, _ = pair(2, 8)
    z_b = z_a + 0.01 * pair(2, 8, seed=1)[0]
    sizes = {}
    for name in ("nt_xent", "dcl"):
        _, gradients = value_and_gradients(getattr(losses, name), z_a, z_b, 0.05)
        sizes[name] = np.abs(gradients[0]).max()
    assert sizes["dcl"] > 10 * sizes["nt_xent"]


def test_dclw_of_pairs_that_agree_alike_is_dcl():
    z_a, _ = pair(6, 8)
    equal = losses.dclw(z_a, z_a, 0.5)
    np.testing.assert_allclose(equal, losses.dcl(z_a, z_a, 0.5), rtol=1e-6)
    other = np.concatenate([-z_a[:1], z_a[1:]])
    assert abs(losses.dclw(z_a, other, 0.5) - losses.dcl(z_a, other, 0.5)) > 0.1


@pytest.mark.promise("losses")
@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("block_rows", [1, 4, 12, 24])
@pytest.mark.parametrize("with_keys", [False, True])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_blocks_give_the_same_loss_and_gradient(
    name, block_rows, with_keys, jit_compile
):
    batches = [tf.constant(z) for z in (*pair(12, 5), *pair(12, 5, seed=1))]

    def gradients(*batches, rows):
        with tf.GradientTape() as tape:
            tape.watch(batches)
            loss = getattr(losses, name)(
                *batches[:2],
                0.1,
                keys=batches[2:] if with_keys else None,
                block_rows=rows,
            )
        return loss, tape.gradient(loss, batches, unconnected_gradients="zero")

    loss, expected = gradients(*batches, rows=0)
    blocks = tf.function(
        lambda *batches: gradients(*batches, rows=block_rows), jit_compile=jit_compile
    )
    blocked_loss, blocked = blocks(*batches)
    np.testing.assert_allclose(blocked_loss, loss, rtol=1e-6)
    for one, other in zip(blocked, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert all(np.abs(one).max() > 0 for one in blocked[: 4 if with_keys else 2])


def test_blocks_make_no_square_matrix():
    n, d, rows = 64, 8, 16

    def blocked(z_a, z_b, temperature):
        return losses.nt_xent(z_a, z_b, temperature, block_rows=rows)

    dense = largest_output(losses.nt_xent, (n, d), (n, d))
    assert dense == (2 * n) ** 2
    assert largest_output(blocked, (n, d), (n, d)) < dense


def test_blocks_must_divide_the_rows():
    with pytest.raises(ValueError, match="block_rows must divide the 12 rows.*got 5"):
        losses.nt_xent(*pair(6, 4), 0.5, block_rows=5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_info_nce_of_a_queue_matches_loops(temperature):
    query, key = pair(5, 16)
    queue = references.unit_rows(pair(9, 16, seed=2)[0])
    fast = losses.info_nce(query, key, temperature, tf.constant(queue, tf.float32))
    slow = references.info_nce_of_queue(query, key, queue, temperature)
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-4)


def test_regression_is_twice_one_minus_the_cosine():
    z_a, z_b = pair(6, 4)
    cosine = np.sum(references.unit_rows(z_a) * references.unit_rows(z_b), axis=1)
    np.testing.assert_allclose(
        losses.regression(z_a, 7 * z_b), np.mean(2 - 2 * cosine), rtol=1e-5
    )
