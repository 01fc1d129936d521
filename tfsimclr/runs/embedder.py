"""The function that embeds images, made of a run, a SavedModel or a model in memory."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfsimclr import files
from tfsimclr.errors import UserError
from tfsimclr.networks.names import feature_names
from tfsimclr.runs import folder as run_folder
from tfsimclr.runs import loading
from tfsimclr.settings import flagfiles
from tfsimclr.training import checkpoints
from tfsimclr.views import random_view

# In the folder of a SavedModel, where TensorFlow keeps a user's own files.
DESCRIPTION = "assets.extra/tfsimclr.json"


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A trained network as a function of images.

    Attributes:
        function: Uint8 images `[n, H, W, 3]` -> the layers' features, float32 `[n, d]`
            each.
        layers: `{name: dimensions}`, in the order of the features.
        image_size: Side of the network's input in pixels.
        checksum: Identifies the weights.
    """

    function: Callable
    layers: dict[str, int]
    image_size: int
    checksum: str

    def features(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `{layer: float32 [n, d]}` of uint8 images `[n, H, W, 3]`."""
        if not len(images):
            return {
                name: np.zeros((0, d), np.float32) for name, d in self.layers.items()
            }
        outputs = self.function(tf.constant(images))
        return {
            name: output.numpy()
            for name, output in zip(self.layers, outputs, strict=True)
        }


def open_embedder(
    folder: str | os.PathLike, layers: Sequence[str] = ("h",), image_size=None
) -> Embedder:
    """Returns the embedder of a run folder, or of the folder of a SavedModel.

    Args:
        folder: A run folder, or a folder that `--mode=export` wrote.
        layers: Names of the layers: h, head_1, ..., z.
        image_size: Side of the network's input in pixels; only for a SavedModel of
            version 0.2 or older, which does not say it.

    Raises:
        UserError: If it is neither, has no checkpoint, or does not have the layers.
    """
    path = pathlib.Path(folder)
    if (path / "flags.txt").is_file():
        return of_run(path, layers)
    if (path / "saved_model.pb").is_file():
        return of_saved_model(path, layers, image_size)
    raise UserError(
        f"{path} is neither a run folder (it has no flags.txt) nor an exported model "
        "(it has no saved_model.pb). Name one with --workdir."
    )


def of_run(workdir: pathlib.Path, layers: Sequence[str] = ("h",)) -> Embedder:
    """Returns the embedder of a run's newest checkpoint; see `open_embedder`."""
    run_folder.read_flags(workdir / "flags.txt")  # refuses that of a newer version
    config = flagfiles.read_config(workdir / "flags.txt")
    _check_layers(layers, feature_names(config.proj_layers))
    return of_model(loading.model(config, workdir)[0], layers)


def of_model(model, layers: Sequence[str] = ("h",)) -> Embedder:
    """Returns the embedder of a method in memory, such as `SimCLR`.

    Raises:
        UserError: If the model does not have the layers.
    """
    size = model.views.image_size
    names = feature_names(model.head.num_layers)
    _check_layers(layers, names)
    chosen = [names.index(layer) for layer in layers]

    def outputs(images):
        view = random_view.plain_view(images, size)
        # The head is not computed where only h is asked for.
        if chosen == [0]:
            features = [model.encoder(view, training=False)]
        else:
            every = model(view, training=False)
            features = [every[i] for i in chosen]
        return [tf.cast(layer, tf.float32) for layer in features]

    return _embedder(outputs, layers, size, checkpoints.hash_weights(model))


def of_saved_model(
    path: pathlib.Path, layers: Sequence[str] = ("h",), image_size: int | None = None
) -> Embedder:
    """Returns the embedder of a SavedModel; see `open_embedder`."""
    try:
        loaded = tf.saved_model.load(str(path))
        serve = loaded.signatures["serving_uint8"]
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"{path} cannot be loaded as a model that --mode=export wrote: "
            f"{str(error).splitlines()[0][:200]}. Export the run again."
        ) from error
    _check_layers(layers, tuple(n for n in serve.structured_outputs if n != "logits"))
    described = _description(path)
    size = described.get("image_size") or image_size
    if not size:
        raise UserError(
            f"{path} does not say the size of its input. Add --image_size=<pixels> of "
            "its run, or export the run again."
        )
    # What an older version exported has no checksum of the weights: the files' then.
    data = sorted((path / "variables").glob("variables.data*"))
    checksum = described.get("model") or files.sha256(
        (path / "saved_model.pb").read_bytes(), *(p.read_bytes() for p in data)
    )

    def outputs(images):
        named = serve(images=images)
        return [named[layer] for layer in layers]

    made = _embedder(outputs, layers, size, checksum)
    # The function holds the loaded module, or its variables would be deleted.
    return dataclasses.replace(made, function=_Holding(made.function, loaded))


class _Holding:
    def __init__(self, function: Callable, owner):
        self.function = function
        self.owner = owner

    def __call__(self, images):
        return self.function(images)


def description(image_size: int, model) -> dict:
    """Returns what an export writes about itself, for `of_saved_model`."""
    return {"image_size": image_size, "model": checkpoints.hash_weights(model)}


def _embedder(outputs, layers, image_size: int, checksum: str) -> Embedder:
    traced = tf.function(outputs)
    functions: dict[tuple, Callable] = {}

    def function(images: tf.Tensor):
        # One trace for each size of images: where it is that of the network, nothing is
        # resized. Their number stays open, because the last batch is smaller.
        shape = (None, *images.shape[1:])
        if shape not in functions:
            spec = tf.TensorSpec(shape, tf.uint8, name="images")
            functions[shape] = traced.get_concrete_function(spec)
        return functions[shape](images)

    spec = tf.TensorSpec((None, image_size, image_size, 3), tf.uint8, name="images")
    shapes = traced.get_concrete_function(spec).output_shapes
    dims = {name: int(shape[-1]) for name, shape in zip(layers, shapes, strict=True)}
    return Embedder(function, dims, int(image_size), checksum)


def _check_layers(layers: Sequence[str], names: Sequence[str]) -> None:
    unknown = [layer for layer in layers if layer not in names]
    if unknown or not layers or len(set(layers)) < len(layers):
        raise UserError(
            f"--layers must name some of {', '.join(names)}, each once and with "
            f"commas between them, got {','.join(layers)!r}."
        )


def _description(path: pathlib.Path) -> dict:
    try:
        return json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
