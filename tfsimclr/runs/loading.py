"""The trained model of a run and its linear classifier, read from the run folder."""

import dataclasses
import io
import pathlib

import numpy as np

from tfsimclr import build, files
from tfsimclr.errors import UserError
from tfsimclr.networks.initial_weights import InitialWeights
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints


def model(config: Config, workdir: pathlib.Path):
    """Returns the model of the newest checkpoint, in float32, and its meta.

    Float32 whatever the precision of the training: the scores are then those of the
    exported model, and do not depend on the machine's fast types.

    Raises:
        UserError: If the folder has no undamaged checkpoint.
    """
    checkpoint = checkpoints.load_latest(workdir / "checkpoints")
    if checkpoint is None:
        raise UserError(
            f"{workdir} has no checkpoint to evaluate or export. "
            "Run with --mode=pretrain or --mode=all first."
        )
    arrays, meta = checkpoint
    network = untrained(config, meta.get("num_images", 1))
    checkpoints.restore(network, arrays)
    return network, meta


def untrained(
    config: Config, num_images: int = 1, weights: InitialWeights | None = None
):
    """Returns the model as it was before its first step, in float32.

    Args:
        config: Resolved.
        num_images: Images of the training, which only --loss=sogclr needs.
        weights: Weights that the encoder starts from, or None for random ones.
    """
    config = dataclasses.replace(config, precision="float32")
    return build.method(config, num_images=num_images, weights=weights)


def save_classifier(
    workdir: pathlib.Path, network, feature: str, layer, class_names=()
) -> None:
    """Writes the linear classifier of a feature, which the export reads.

    Args:
        workdir: The run folder.
        network: The model whose features the classifier was trained on.
        feature: Name of the feature.
        layer: The trained Dense layer.
        class_names: Names of the classes in the order of the logits.
    """
    kernel, bias = layer.get_weights()
    content = io.BytesIO()
    np.savez(
        content,
        model=checkpoints.hash_weights(network),
        feature=feature,
        kernel=kernel,
        bias=bias,
        class_names=np.array(class_names, dtype=np.str_),
    )
    files.write_atomically(_classifier_path(workdir), content.getvalue())


def classifier(workdir: pathlib.Path, network):
    """Returns `(feature, kernel, bias)` of this very model's classifier, or None.

    Raises:
        UserError: If the file is damaged.
    """
    arrays = _load_classifier(workdir)
    # The features of a later checkpoint are not those that the classifier learned.
    if not arrays or str(arrays["model"]) != checkpoints.hash_weights(network):
        return None
    return str(arrays["feature"]), arrays["kernel"], arrays["bias"]


def class_names(workdir: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the classifier's classes; none if version 0.1.0 saved it."""
    return tuple(str(name) for name in _load_classifier(workdir).get("class_names", ()))


def _load_classifier(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    path = _classifier_path(workdir)
    if not path.exists():
        return {}
    try:
        with np.load(path) as archive:
            arrays = dict(archive)
        if arrays.keys() >= {"model", "feature", "kernel", "bias"}:
            return arrays
        raise KeyError("an array is missing")
    except Exception as error:  # many types; the format has checksums of its own
        raise UserError(
            f"{path} is damaged. Write it again by --mode=evaluate or --mode=all."
        ) from error


def _classifier_path(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / "features" / "classifier.npz"
