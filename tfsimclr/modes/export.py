"""Export of a run as a SavedModel that needs nothing but TensorFlow."""

import pathlib

import tensorflow as tf

from tfsimclr import files
from tfsimclr.networks.names import feature_names
from tfsimclr.runs import classifiers, loading
from tfsimclr.settings.config import Config
from tfsimclr.views import random_view


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
        layers = self.model(
            random_view.plain_view(images, self.image_size), training=False
        )
        named = dict(zip(self.names, layers, strict=True))
        if self.classifier is not None:
            feature = named[self.classifier[0]]
            named["logits"] = tf.matmul(feature, self.kernel) + self.bias
        return {name: tf.identity(value, name) for name, value in named.items()}


def export(config: Config, dataset, workdir: pathlib.Path) -> pathlib.Path:
    """Writes `saved_model/` of a run, whole or not at all, and returns its path.

    Signature `serving_default`: `images` `[n, H, W, 3]` float32 in 0-255 (NumPy uint8
    arrays are converted) -> `h` `[n, d]`, `head_1`, ..., `z` and, where labels existed,
    `logits` `[n, classes]`. Signature `serving_uint8` takes uint8 tensors.

    Args:
        config: Resolved.
        dataset: Not needed.
        workdir: The run folder.

    Raises:
        ValueError: If the folder has no checkpoint, or its classifier is damaged.
        OSError: If it cannot be written; an older export is whole then.
    """
    model, _ = loading.model(config, workdir)
    names = feature_names(config.proj_layers)
    classifier = loading.classifier(workdir, model)
    path = workdir / "saved_model"
    write(path, Exported(model, config.image_size, names, classifier))
    print(f"Exported {path}: {', '.join(names)}{', logits' if classifier else ''}.")
    return path


def export_classifier(folder: pathlib.Path) -> pathlib.Path:
    """Writes `saved_model/` of a fine-tuned or distilled network; returns its path.

    As `export`, with the outputs `h`, the layers of the head that it has, and `logits`.
    One that is there is left as it is.

    Args:
        folder: That of the fine-tuning, or the run folder of the student.

    Raises:
        ValueError: If the folder has no checkpoint.
        OSError: If it cannot be written; an older export is whole then.
    """
    path = folder / "saved_model"
    if path.exists():
        return path
    model, meta = classifiers.load(folder)
    names = (*classifiers.layers(meta), "logits")
    write(path, Exported(model, model.views.image_size, names))
    print(f"Exported {path}: {', '.join(names)}.")
    return path


def write(path: pathlib.Path, module: Exported) -> None:
    """Writes a SavedModel, whole or not at all.

    Raises:
        OSError: If it cannot be written; an older one is whole then.
    """
    signatures = {}
    for name, dtype in (("serving_default", tf.float32), ("serving_uint8", tf.uint8)):
        spec = tf.TensorSpec([None, None, None, 3], dtype, name="images")
        signatures[name] = tf.function(module.outputs, input_signature=[spec])
    with files.atomic_folder(path) as folder:
        tf.saved_model.save(module, str(folder), signatures=signatures)
