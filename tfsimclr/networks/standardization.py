"""Convolutions with standardised kernels, which group normalisation follows."""

import keras


@keras.saving.register_keras_serializable("tfsimclr")
class StandardizedConv2D(keras.layers.Conv2D):
    """A convolution whose kernels have mean 0 and variance 1 / fan-in.

    Each output channel's kernel is standardised in every call, in float32.

    Differs: the paper's kernels have variance 1. Divided by the fan-in, the output has
    about the variance of the input, which float16 needs. The normalisation that follows
    removes the factor.

    The arguments are those of `keras.layers.Conv2D`, with channels last.

    Source: Qiao et al. 2019 (arXiv:1903.10520), equations 4 and 5.
    """

    def convolution_op(self, inputs, kernel):
        kernel = standardize(keras.ops.cast(kernel, self.variable_dtype))
        kernel = keras.ops.cast(kernel, self.compute_dtype)
        return super().convolution_op(inputs, kernel)


def standardize(kernel):
    """Returns a kernel `[h, w, c, filters]` standardised over all but the last axis."""
    mean, variance = keras.ops.moments(kernel, axes=(0, 1, 2), keepdims=True)
    fan_in = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
    return (kernel - mean) * keras.ops.rsqrt((variance + 1e-10) * fan_in)
