"""Export of a run as a SavedModel that needs nothing but TensorFlow."""

import os
import pathlib
import tempfile

import tensorflow as tf

from tfsimclr import augment, trained
from tfsimclr.config import Config
from tfsimclr.names import feature_names


class Exported(tf.Module):
    """The network with its own preprocessing and named outputs.

    Args:
        model: The trained model, float32.
        image_size: Side to which images are resized.
        names: Of the model's outputs.
        classifier: `(feature name, kernel, bias)` for `logits`, or None.
    """

    def __init__(self, model, image_size: int, names, classifier=None):
        super().__init__()
        self.model = model
        self.image_size = image_size
        self.names = names
        self.classifier = classifier
        if classifier is not None:
            _, kernel, bias = classifier
            self.kernel, self.bias = tf.Variable(kernel), tf.Variable(bias)

    def outputs(self, images):
        # A loaded SavedModel does not check: four-channel images would be reshaped.
        images = tf.ensure_shape(images, [None, None, None, 3])
        layers = self.model(augment.plain_view(images, self.image_size), training=False)
        named = dict(zip(self.names, layers, strict=True))
        if self.classifier is not None:
            feature = named[self.classifier[0]]
            named["logits"] = tf.matmul(feature, self.kernel) + self.bias
        return {name: tf.identity(value, name) for name, value in named.items()}


def export(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Writes `saved_model/` of a run, whole or not at all, and returns its path.

    Signature `serving_default`: `images` `[n, H, W, 3]` float32 in 0-255 (NumPy uint8
    arrays are converted) -> `h` `[n, d]`, `head_1`, ..., `z` and, where labels existed,
    `logits` `[n, classes]`. Signature `serving_uint8` takes uint8 tensors.

    Args:
        config: Resolved.
        workdir: The run folder.

    Raises:
        ValueError: If the folder has no checkpoint.
    """
    model, _ = trained.model(config, workdir)
    names = feature_names(config.proj_layers)
    classifier = trained.classifier(workdir, model)
    module = Exported(model, config.image_size, names, classifier)
    signatures = {}
    for name, dtype in (("serving_default", tf.float32), ("serving_uint8", tf.uint8)):
        spec = tf.TensorSpec([None, None, None, 3], dtype, name="images")
        signatures[name] = tf.function(module.outputs, input_signature=[spec])
    path = workdir / "saved_model"
    with tempfile.TemporaryDirectory(prefix=".saved_model-", dir=workdir) as partial:
        fresh = pathlib.Path(partial) / "new"
        tf.saved_model.save(module, str(fresh), signatures=signatures)
        if path.exists():
            os.replace(path, pathlib.Path(partial) / "old")
        os.replace(fresh, path)
    print(f"Exported {path}: {', '.join(names)}{', logits' if classifier else ''}.")
    return path
