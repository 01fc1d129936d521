"""Networks called on a batch piece by piece, with the gradient of the whole batch."""

import keras
import tensorflow as tf

from tfsimclr.distribution import replicas


def in_pieces(call, networks, num_pieces: int):
    """Returns the outputs of every piece of a batch, in the memory of one piece.

    The gradient of a loss on the outputs is that of the loss on the whole batch, but no
    activations are stored: the forward pass keeps only the outputs, and the backward
    pass computes each piece again and multiplies by the gradient of its outputs. So a
    contrastive loss has all the negatives of the batch, which gradient accumulation has
    not. It costs a second forward pass.

    The variables that `call` assigns in training, the moving statistics of batch norm,
    start every piece at the value before the batch. The mean of the values after the
    pieces is assigned once.

    Args:
        call: Function of a piece's index (scalar int32) -> a tensor or a nested
            structure of tensors of static shape. It may read tensors of the caller,
            which get no gradient; of variables it may use those of `networks`.
        networks: The layers that `call` calls, built.
        num_pieces: Number of pieces, at least 1.

    Returns:
        The structure that `call` returns, each tensor with a new first axis of
        `num_pieces`.

    Source: Gao et al. 2021 (arXiv:2101.06983), section 3.
    """
    learned = _unique(v for n in networks for v in n.trainable_variables)
    state = _unique(v for n in networks for v in n.non_trainable_variables)
    # Read here, so that `call` computes with tensors: a function with a gradient of its
    # own must not capture variables.
    weights = [tf.convert_to_tensor(v.value) for v in learned]
    before = [tf.convert_to_tensor(v.value) for v in state]
    assigned: set[int] = set()

    def compute(index, weights, before):
        values = [*zip(learned, weights, strict=True), *zip(state, before, strict=True)]
        scope = keras.StatelessScope(state_mapping=values)
        # Replicas cannot meet in a loop.
        with scope, replicas.separate_batch_norm():
            outputs = call(index)
            after = [scope.get_current_value(v) for v in state]
        assigned.update(i for i, v in enumerate(state) if after[i] is not before[i])
        return outputs, after

    # One graph that the loop calls, whatever the number of pieces.
    compute_forward = tf.function(compute, autograph=False).get_concrete_function(
        tf.TensorSpec([], tf.int32), *(_specs(tensors) for tensors in (weights, before))
    )
    structure = compute_forward.structured_outputs[0]

    @tf.custom_gradient
    def outputs_and_state(*weights):
        specs = tf.nest.flatten(structure)
        arrays = [
            tf.TensorArray(s.dtype, size=num_pieces, element_shape=s.shape)
            for s in specs
        ]

        def add_piece(index, arrays, sums):
            outputs, after = compute_forward(index, list(weights), before)
            outputs = tf.nest.flatten(outputs)
            arrays = [a.write(index, o) for a, o in zip(arrays, outputs, strict=True)]
            return index + 1, arrays, [s + a for s, a in zip(sums, after, strict=True)]

        _, arrays, sums = _loop(num_pieces, add_piece, arrays, _zeros(before))

        def gradient(*upstream):
            upstream = upstream[: len(specs)]

            def add_gradient(index, sums):
                with tf.GradientTape() as tape:
                    tape.watch(weights)
                    outputs, _ = compute(index, weights, before)
                gradients = tape.gradient(
                    tf.nest.flatten(outputs),
                    weights,
                    [u[index] for u in upstream],
                    unconnected_gradients="zero",
                )
                return index + 1, [s + g for s, g in zip(sums, gradients, strict=True)]

            return _loop(num_pieces, add_gradient, _zeros(weights))[1]

        means = [s / tf.cast(num_pieces, s.dtype) for s in sums]
        return [*(array.stack() for array in arrays), *means], gradient

    results = outputs_and_state(*weights)
    count = len(results) - len(state)
    for i in sorted(assigned):
        state[i].assign(tf.stop_gradient(results[count + i]))
    return tf.nest.pack_sequence_as(structure, results[:count])


def _loop(count, body, *values):
    return tf.while_loop(
        lambda index, *_: index < count,
        body,
        (tf.constant(0), *values),
        parallel_iterations=1,
        maximum_iterations=count,
    )


def _unique(variables) -> list:
    return list({id(v): v for v in variables}.values())


def _specs(tensors) -> list:
    return [tf.TensorSpec(t.shape, t.dtype) for t in tensors]


def _zeros(tensors) -> list:
    return [tf.zeros_like(t) for t in tensors]
