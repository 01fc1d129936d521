"""SimCLR for small batches, in Keras and TensorFlow."""

__version__ = "0.1.0"
