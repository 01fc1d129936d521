"""Measures of the features during training, which show a collapse early."""

import tensorflow as tf

from tfsimclr.evaluation import metrics


class FeatureHealth:
    """Measures h and z of a model on two fixed views of a sample of images.

    Args:
        sample: uint8 images `[n, H, W, 3]`.
    """

    # A seed of the views that no step of a run has.
    STEP = 2**31 - 1

    def __init__(self, sample):
        self.sample = sample
        self._layers = None

    def measure(self, model) -> dict[str, float]:
        """Returns the measures by the name of their column in history.csv."""
        if self._layers is None:
            # Called eagerly, Keras keeps every feature map until the last layer is
            # done, which is more memory than a training step of a small batch takes.
            self._layers = tf.function(lambda view: model(view, training=False))
        layers_a, layers_b = map(self._layers, model.two_views(self.sample, self.STEP))
        z_a, z_b = layers_a[-1], layers_b[-1]
        values = {
            "alignment": metrics.alignment(z_a, z_b),
            "uniformity": metrics.uniformity(z_a),
            "feature_std": metrics.feature_std(layers_a[0]),
            "effective_rank": metrics.effective_rank(layers_a[0]),
            "z_std": metrics.feature_std(z_a),
            "z_effective_rank": metrics.effective_rank(z_a),
        }
        return {name: float(value) for name, value in values.items()}
