"""Gradient checkpointing: the backward pass computes each residual block again."""

import re

import keras
import tensorflow as tf

from tfsimclr.errors import UserError

_LAST_LAYER = re.compile(r"stage\d+_block\d+_relu")


class Rematerialized:
    """An encoder in training mode that stores only what passes between its blocks.

    The outputs and gradients are those of the encoder, and batch norm uses the
    statistics of the whole batch. The backward pass computes the activations of a block
    again when it needs them, which costs a second forward pass.

    Args:
        encoder: A `resnet.resnet`.

    Raises:
        UserError: If the encoder has no residual blocks.

    Source: Chen et al. 2016 (arXiv:1604.06174), section 4.
    """

    def __init__(self, encoder: keras.Model):
        blocks = [v.output for v in encoder.layers if _LAST_LAYER.fullmatch(v.name)]
        if not blocks:
            raise UserError(
                f"Gradient checkpointing needs an encoder with residual blocks, got "
                f"{encoder.name}. Leave --remat out."
            )
        ends = [encoder.inputs[0], *blocks, encoder.outputs[0]]
        self.segments = [
            keras.Model(first, last)
            for first, last in zip(ends[:-1], ends[1:], strict=True)
        ]

    def __call__(self, images):
        """Returns h of images `[n, H, W, 3]` in 0-1, in training mode."""
        x = images
        for segment in self.segments:
            x = _recomputed(segment, x)
        return x


def _recomputed(network, x):
    """Returns the output of a network in training mode; its activations are dropped."""
    learned, state = network.trainable_variables, network.non_trainable_variables
    # Keras variables would be assigned in the second pass too: the moving statistics
    # would move twice.
    before = [tf.convert_to_tensor(v.value) for v in state]

    @tf.recompute_grad
    def compute(x, *weights):
        values = [*zip(learned, weights, strict=True), *zip(state, before, strict=True)]
        with keras.StatelessScope(state_mapping=values) as scope:
            y = network(x, training=True)
        return y, [scope.get_current_value(v) for v in state]

    y, after = compute(x, *(tf.convert_to_tensor(v.value) for v in learned))
    for variable, value in zip(state, after, strict=True):
        variable.assign(tf.stop_gradient(value))
    return y
