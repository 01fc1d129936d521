"""Export of a trained network: a SavedModel, and the encoder in other formats."""

import json
import pathlib

import keras
import tensorflow as tf

from tfsimclr import files, resolve
from tfsimclr.modes import encoder_files
from tfsimclr.networks import portable
from tfsimclr.networks.names import feature_names
from tfsimclr.runs import classifiers, embedder, loading
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints
from tfsimclr.views import random_view

# TensorFlow Serving's folder for a user's own files inside a SavedModel.
CLASS_NAMES = "assets.extra/class_names.txt"


class Exported(tf.Module):
    """A network with its own preprocessing and named outputs.

    Loaded again, the module has `variables` and, if there are logits of known classes,
    `class_names()`, which returns the names as a string tensor `[classes]`.

    Args:
        model: The trained model, float32.
        image_size: Side to which images are resized, in pixels.
        names: Names of the model's outputs.
        classifier: `(feature name, kernel [d, classes], bias [classes])`, which makes
            the output `logits`, or None.
        class_names: Names of the classes in the order of the logits; may be empty.
    """

    # In place of tf.Module's property: an attribute is saved, a property is not.
    variables: list | None = None

    def __init__(self, model, image_size, names, classifier=None, class_names=()):
        super().__init__()
        self.model = model
        encoder = model.encoder
        self.encoder = keras.Model(
            encoder.inputs[0], [encoder.outputs[0], portable.feature_map(encoder)]
        )
        self.image_size = image_size
        self.names = names
        self.feature = classifier and classifier[0]
        self.class_list = list(class_names)
        if classifier is not None:
            self.kernel, self.bias = map(tf.Variable, classifier[1:])
        if self.class_list:
            self.class_names = tf.function(
                lambda: tf.constant(self.class_list), input_signature=[]
            )
        # TensorFlow does not see the variables inside Keras's. TensorFlow Lite freezes
        # only those that it sees, and gives wrong outputs without them.
        own = [] if classifier is None else [self.kernel, self.bias]
        self.variables = [*(variable.value for variable in model.variables), *own]

    def outputs(self, images):
        """Returns name -> output of images `[n, H, W, 3]` in 0-255."""
        # A loaded SavedModel does not check: four-channel images would be reshaped.
        images = tf.ensure_shape(images, [None, None, None, 3])
        view = random_view.plain_view(images, self.image_size)
        h, feature_map = self.encoder(view, training=False)
        layers = self.model.head(h, training=False)
        named = dict(zip(self.names, layers, strict=True))
        named[portable.FEATURE_MAP] = feature_map
        if self.feature is not None:
            named["logits"] = tf.matmul(named[self.feature], self.kernel) + self.bias
        return {name: tf.identity(value, name) for name, value in named.items()}


def export(config: Config, dataset, workdir: pathlib.Path) -> None:
    """Writes the run's network in the formats of `--formats`.

    `saved_model/` has the whole network; `exported/` has the encoder alone, in files
    for other programs (`encoder_files`).

    Args:
        config: Resolved settings.
        dataset: The data, or None if it is gone; only its class names are used, for a
            run that an older version evaluated.
        workdir: The run folder.

    Raises:
        UserError: If the folder has no checkpoint, its classifier is damaged, or a
            format does not suit the encoder.
        OSError: If it cannot be written; an older export is unchanged then.
    """
    formats = resolve.export_formats(config)
    model, meta = loading.model(config, workdir)
    if "saved_model" in formats:
        _write_saved_model(config, dataset, workdir, model)
    others = tuple(name for name in formats if name != "saved_model")
    if others:
        folder = workdir / "exported"
        weights = checkpoints.hash_weights(model)
        encoder_files.write(
            folder, model.encoder, others, config, weights, int(model.step)
        )
        names = ", ".join(encoder_files.FILES[name] for name in others)
        print(f"Exported {folder}: {names}.")
        if "safetensors" in others:
            print(encoder_files.torch_hint(config))


def _write_saved_model(config, dataset, workdir, model) -> None:
    """Writes `saved_model/` of a run.

    Signature `serving_default`: `images` `[n, H, W, 3]` float32 in 0-255 (NumPy uint8
    arrays are converted) -> `h` `[n, d]`, `head_1`, ..., `z`, `feature_map`
    `[n, H', W', c]`, of which h is the average, and, if the run was evaluated with
    labels, `logits` `[n, classes]`. Signature `serving_uint8` takes uint8 tensors. With
    logits the class names are in `class_names()` of the loaded module, and in
    `assets.extra/class_names.txt`, one a line.
    """
    names = feature_names(config.proj_layers)
    classifier = loading.classifier(workdir, model)
    class_names = loading.class_names(workdir) if classifier else ()
    if classifier and not class_names and dataset is not None:
        class_names = dataset.class_names
    path = workdir / "saved_model"
    write(path, Exported(model, config.image_size, names, classifier, class_names))
    outputs = [*names, portable.FEATURE_MAP, *(["logits"] if classifier else [])]
    print(f"Exported {path}: {', '.join(outputs)}.")


def export_classifier(folder: pathlib.Path) -> pathlib.Path:
    """Writes `saved_model/` of a fine-tuned or distilled network; returns its path.

    Signatures and class names are those of `export`; the outputs are `h`, the layers of
    the head, and `logits`. An existing SavedModel is left as it is.

    Args:
        folder: Folder of the fine-tuning, or the run folder of the student.

    Raises:
        UserError: If the folder has no checkpoint.
        OSError: If it cannot be written; an older export is unchanged then.
    """
    path = folder / "saved_model"
    if path.exists():
        return path
    model, meta = classifiers.load(folder)
    names = (*classifiers.layers(meta), "logits")
    size, class_names = model.views.image_size, meta["class_names"]
    write(path, Exported(model, size, names, class_names=class_names))
    print(f"Exported {path}: {', '.join([*names, portable.FEATURE_MAP])}.")
    return path


def write(path: pathlib.Path, module: Exported) -> None:
    """Writes a SavedModel so that it is complete or absent.

    Raises:
        OSError: If it cannot be written; an older one is unchanged then.
    """
    signatures = {}
    for name, dtype in (("serving_default", tf.float32), ("serving_uint8", tf.uint8)):
        spec = tf.TensorSpec([None, None, None, 3], dtype, name="images")
        signatures[name] = tf.function(module.outputs, input_signature=[spec])
    with files.atomic_folder(path) as folder:
        tf.saved_model.save(module, str(folder), signatures=signatures)
        described = folder / embedder.DESCRIPTION
        described.parent.mkdir(exist_ok=True)
        content = embedder.description(module.image_size, module.model)
        described.write_text(json.dumps(content) + "\n", encoding="utf-8")
        if module.class_list:
            names = folder / CLASS_NAMES
            names.write_text("\n".join(module.class_list) + "\n", encoding="utf-8")
