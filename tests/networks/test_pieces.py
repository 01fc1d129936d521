"""A batch in pieces against one tape over the same pieces, and against one batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsimclr.networks import heads, norms, pieces

ROWS = 16


class Network:
    """A small encoder and head whose weights can be set back."""

    def __init__(self, policy="float32"):
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(0)
        images = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3, strides=2, use_bias=False)(images)
        x = keras.layers.ReLU()(norms.SplitBatchNormalization()(x))
        encoder = keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))
        head = heads.ProjectionHead(2, dim=8, batch_norm=True)
        head.build(encoder.output_shape)
        self.layers = [encoder, head]
        self.learned = [v for n in self.layers for v in n.trainable_variables]
        self.state = [v for n in self.layers for v in n.non_trainable_variables]
        self.first = [v.numpy() for v in self.state]
        dtype = keras.config.dtype_policy().variable_dtype
        x = tf.random.stateless_uniform([ROWS, 8, 8, 3], [0, 1], dtype="float64")
        self.x = tf.cast(x, dtype)

    def __call__(self, x):
        encoder, head = self.layers
        return head(encoder(x, training=True), training=True)[-1]

    def rows(self, index, count):
        rows = tf.gather(self.x, index * count + tf.range(count))
        return tf.ensure_shape(rows, [count, *self.x.shape[1:]])

    def in_pieces(self, num_pieces):
        count = ROWS // num_pieces
        z = pieces.in_pieces(
            lambda index: self(self.rows(index, count)), self.layers, num_pieces
        )
        return tf.reshape(z, [ROWS, -1])

    def one_by_one(self, num_pieces):
        count = ROWS // num_pieces
        parts = [self(self.rows(i, count)) for i in range(num_pieces)]
        return tf.concat(parts, axis=0)

    def step(self, project, jit_compile=False):
        """Returns loss, gradients and moving statistics after one call."""
        for variable, value in zip(self.state, self.first, strict=True):
            variable.assign(value)

        @tf.function(jit_compile=jit_compile)
        def compute():
            with tf.GradientTape() as tape:
                z = tf.cast(project(), self.x.dtype)
                loss = tf.reduce_mean(tf.matmul(z, z, transpose_b=True) ** 2)
            return loss, tape.gradient(loss, self.learned)

        loss, gradients = compute()
        state = [v.numpy() for v in self.state]
        return loss.numpy(), [g.numpy() for g in gradients], state


def assert_close(a, b, **tolerance):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("num_pieces", [1, 4])
def test_pieces_equal_one_tape_over_the_same_pieces(policy, num_pieces):
    network = Network(policy)
    loss, gradients, _ = network.step(lambda: network.in_pieces(num_pieces))
    expected = network.step(lambda: network.one_by_one(num_pieces))
    np.testing.assert_equal(loss, expected[0])
    largest = max(np.abs(g).max() for g in expected[1])
    # The sum over the pieces is in another order; in half precision the tape casts the
    # gradient of each piece as well.
    share = {"float32": 1e-6, "mixed_bfloat16": 0.02, "mixed_float16": 0.002}[policy]
    assert_close(gradients, expected[1], atol=share * largest)
    assert largest > 0


def test_one_piece_is_the_plain_step():
    network = Network()
    one, plain = (
        network.step(project)
        for project in (lambda: network.in_pieces(1), lambda: network(network.x))
    )
    np.testing.assert_equal(one[0], plain[0])
    assert_close(one[1], plain[1], rtol=1e-5, atol=1e-5)
    assert_close(one[2], plain[2], rtol=1e-6)


def test_pieces_equal_batch_norm_over_sub_batches_in_float64():
    """The one assignment of the statistics is what SplitBatchNormalization does."""
    network = Network("float64")
    result = network.step(lambda: network.in_pieces(4))
    for layer in network.layers:
        norms.set_bn_groups(layer, 4)
    expected = network.step(lambda: network(network.x))
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-12)
    assert_close(result[1], expected[1], rtol=1e-9, atol=1e-11)
    assert_close(result[2], expected[2], rtol=1e-12, atol=1e-15)
    moved = [np.abs(a - b).max() for a, b in zip(result[2], network.first, strict=True)]
    assert min(moved) > 0


def test_pieces_are_the_same_under_xla():
    network = Network()
    plain = network.step(lambda: network.in_pieces(4))
    compiled = network.step(lambda: network.in_pieces(4), jit_compile=True)
    np.testing.assert_allclose(compiled[0], plain[0], rtol=1e-4)
    largest = max(np.abs(g).max() for g in plain[1])
    assert_close(compiled[1], plain[1], atol=1e-3 * largest)


def test_the_graph_does_not_grow_with_the_number_of_pieces():
    network = Network()

    def nodes(num_pieces):
        def gradients():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(network.in_pieces(num_pieces))
            return tape.gradient(loss, network.learned)

        graph = tf.function(gradients).get_concrete_function().graph.as_graph_def()
        functions = graph.library.function
        return len(graph.node) + sum(len(f.node_def) for f in functions)

    assert abs(nodes(16) - nodes(2)) < 0.01 * nodes(2)


def test_structures_and_variables_that_are_not_used():
    """An unused output has no gradient, an unused variable a gradient of zero."""
    dense = keras.layers.Dense(3)
    dense.build((None, 2))
    other = keras.layers.Dense(1)
    other.build((None, 2))

    def call(index):
        x = tf.ones([4, 2]) * tf.cast(index + 1, tf.float32)
        return {"y": dense(x), "unused": x}

    with tf.GradientTape() as tape:
        outputs = pieces.in_pieces(call, [dense, other], 3)
        loss = tf.reduce_sum(outputs["y"])
    assert outputs["y"].shape == (3, 4, 3) and outputs["unused"].shape == (3, 4, 2)
    of_dense, of_other = tape.gradient(loss, [dense.kernel, other.kernel])
    np.testing.assert_allclose(of_dense, np.full([2, 3], 4 * (1 + 2 + 3)))
    np.testing.assert_allclose(of_other, np.zeros([2, 1]))
