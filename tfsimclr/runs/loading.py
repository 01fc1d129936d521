"""What a run has learned, read back from its folder."""

import dataclasses
import io
import pathlib

import numpy as np

from tfsimclr import build, files
from tfsimclr.errors import UserError
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints


def model(config: Config, workdir: pathlib.Path):
    """Returns the model of the newest checkpoint, in float32, and its meta.

    Float32 whatever the training used: the numbers reported are those of the exported
    model, and no test image depends on the machine's fast types.

    Raises:
        UserError: If the folder has no checkpoint.
    """
    found = checkpoints.load_latest(workdir / "checkpoints")
    if found is None:
        raise UserError(
            f"{workdir} has no checkpoint to evaluate or export. "
            "Run with --mode=pretrain or --mode=all first."
        )
    arrays, meta = found
    network = untrained(config)
    checkpoints.restore(network, arrays)
    return network, meta


def untrained(config: Config):
    """Returns the model as it was before its first step, in float32."""
    return build.method(dataclasses.replace(config, precision="float32"))


def save_classifier(workdir: pathlib.Path, network, feature: str, layer) -> None:
    """Keeps the linear classifier of a feature for the export."""
    kernel, bias = layer.get_weights()
    content = io.BytesIO()
    np.savez(
        content,
        model=checkpoints.hash_weights(network),
        feature=feature,
        kernel=kernel,
        bias=bias,
    )
    path = workdir / "features" / "classifier.npz"
    files.write_atomically(path, content.getvalue())


def classifier(workdir: pathlib.Path, network):
    """Returns the `(feature, kernel, bias)` kept for this very model, or None.

    Raises:
        UserError: If it is damaged.
    """
    path = workdir / "features" / "classifier.npz"
    if not path.exists():
        return None
    try:
        with np.load(path) as archive:
            # The features of a later checkpoint are not those the classifier learned.
            if str(archive["model"]) != checkpoints.hash_weights(network):
                return None
            return str(archive["feature"]), archive["kernel"], archive["bias"]
    except Exception as error:  # a dozen kinds; the format has checksums of its own
        raise UserError(
            f"{path} is damaged. Make it again: --mode=evaluate, or --mode=all."
        ) from error
