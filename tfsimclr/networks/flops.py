"""The computing of a graph: multiply-adds of its convolutions and matrix products."""

import math

import tensorflow as tf

_PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
_CONVOLUTIONS = ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter")


def multiply_adds(function, *specs: tf.TensorSpec) -> int:
    """Returns the multiply-adds of one call; FLOPs are twice as many.

    What costs memory traffic rather than computing (batch norm, activations, pooling)
    is not counted, nor is what runs in a loop.

    Args:
        function: Of tensors; traced here, not run.
        *specs: Of its arguments, all sizes known.
    """
    graph = tf.function(function).get_concrete_function(*specs).graph
    return sum(_of_operation(operation) for operation in _needed(graph))


def _needed(graph) -> set:
    """Returns the operations that the outputs depend on; the others never run."""
    found: set = set()
    waiting = [tensor.op for tensor in graph.outputs]
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [tensor.op for tensor in operation.inputs]
    return found


def _of_operation(operation) -> int:
    if operation.type in _PRODUCTS:
        left, out = operation.inputs[0].shape, operation.outputs[0].shape
        name = "transpose_a" if operation.type == "MatMul" else "adj_x"
        return out.num_elements() * left[-2 if operation.get_attr(name) else -1]
    if operation.type not in _CONVOLUTIONS:
        return 0
    # Every output pixel of the forward convolution meets its kernel once, in either
    # gradient as well.
    image, kernel = operation.outputs[0].shape, operation.inputs[1].shape
    if operation.type == "Conv2DBackpropInput":
        image = operation.inputs[2].shape
    if operation.type == "Conv2DBackpropFilter":
        image, kernel = operation.inputs[2].shape, operation.outputs[0].shape
    return image.num_elements() * math.prod(kernel[:3])
