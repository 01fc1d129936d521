"""Counts the multiply-adds of convolutions and matrix products in a graph."""

import math

import tensorflow as tf

_PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")


def multiply_adds(function, *specs: tf.TensorSpec) -> int:
    """Returns the multiply-adds of one call of a function; FLOPs are twice as many.

    Operations that are limited by memory traffic (batch norm, activations, pooling) are
    not counted, nor are operations inside loops.

    Args:
        function: A function of tensors; it is traced, not run.
        *specs: Specs of its arguments, with all sizes known.
    """
    graph = tf.function(function).get_concrete_function(*specs).graph
    return sum(_of_operation(operation) for operation in _needed(graph))


def _needed(graph) -> set:
    """Returns the operations that the outputs depend on; only those are run."""
    needed: set = set()
    waiting = [tensor.op for tensor in graph.outputs]
    while waiting:
        operation = waiting.pop()
        if operation not in needed:
            needed.add(operation)
            waiting += [tensor.op for tensor in operation.inputs]
    return needed


def _of_operation(operation) -> int:
    if operation.type in _PRODUCTS:
        left, out = operation.inputs[0].shape, operation.outputs[0].shape
        name = "transpose_a" if operation.type == "MatMul" else "adj_x"
        return out.num_elements() * left[-2 if operation.get_attr(name) else -1]
    kind = operation.type.removesuffix("BackpropInput").removesuffix("BackpropFilter")
    if kind not in _CONVOLUTIONS:
        return 0
    # A convolution and each of its two gradients multiply every output pixel of the
    # forward convolution with the whole kernel once.
    image, kernel = operation.outputs[0].shape, operation.inputs[1].shape
    if operation.type.endswith("BackpropInput"):
        image = operation.inputs[2].shape
    if operation.type.endswith("BackpropFilter"):
        image, kernel = operation.inputs[2].shape, operation.outputs[0].shape
    # [height, width, in, out]; a depthwise kernel gets one channel in.
    return image.num_elements() * math.prod(kernel[: 3 if kind == "Conv2D" else 2])
