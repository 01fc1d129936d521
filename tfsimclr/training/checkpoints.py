"""Checkpoints that are whole or not there: one file each, checksum in its name."""

import errno
import io
import json
import pathlib
import re
import sys

import numpy as np

from tfsimclr import files
from tfsimclr.errors import UserError

_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.npz$")


def save(
    folder: pathlib.Path, step: int, arrays: dict[str, np.ndarray], meta: dict, keep=2
) -> pathlib.Path:
    """Writes `step-<step>-<checksum>.npz` and deletes all but the newest.

    The checksum is the beginning of the file's SHA-256.

    Args:
        folder: Created if need be.
        step: Of the run; orders the checkpoints.
        arrays: What to save.
        meta: JSON-serialisable; comes back from `latest` unchanged.
        keep: How many checkpoints stay.

    Raises:
        OSError: If the disk is full or not writable; older checkpoints are whole then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(folder)
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    named: dict = {**arrays, "meta_json": text}
    np.savez(buffer, **named)
    content = buffer.getvalue()
    # In the name, so that file and checksum appear in one rename.
    path = folder / f"step-{step:09d}-{files.sha256(content)[:16]}.npz"
    files.write_atomically(path, content)
    others = [other for other in _files(folder) if other != path]
    # The same or a later step is of a line given up: damaged, or just saved again.
    kept = [other for other in others if _step(other) < step][: keep - 1]
    for other in others:
        if other not in kept:
            other.unlink()
    return path


def load_latest(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], dict] | None:
    """Returns arrays and meta of the newest whole checkpoint, or None if none is.

    A damaged one is named on stderr and passed over for the one before.
    """
    paths = _files(folder)
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            content = b""  # lies on a bad place of the disk
        if files.sha256(content)[:16] != _NAME.match(path.name)[2]:
            rest = "none is left" if path == paths[-1] else "trying the one before"
            print(
                f"Checkpoint {path} is damaged (its checksum differs) and passed over; "
                f"{rest}.",
                file=sys.stderr,
            )
            continue
        with np.load(io.BytesIO(content)) as archive:
            arrays = dict(archive)
        meta = json.loads(arrays.pop("meta_json").tobytes())
        return arrays, meta
    return None


def variables_of(model) -> dict:
    """Returns every variable of a compiled model, its optimizer and its metrics.

    Keys carry the position and no name: Keras numbers the layers of a process, so a
    second model of the same settings has variables of other names.
    """
    groups = {"model": model.variables, "metrics": model.metrics_variables}
    if _optimizer(model) is not None:
        groups["optimizer"] = model.optimizer.variables
    return {
        f"{group}/{position}": variable
        for group, variables in groups.items()
        for position, variable in enumerate(variables)
    }


def get_state(model) -> dict[str, np.ndarray]:
    """Returns the values of `variables_of(model)`."""
    variables = variables_of(model).items()
    return {key: variable.numpy() for key, variable in variables}


def restore(model, arrays: dict[str, np.ndarray]) -> None:
    """Sets the variables of a model from `state_of` an equal one.

    Without an optimizer (a model for evaluation) only the model's own are set.

    Raises:
        UserError: If a variable is missing or has another shape.
    """
    groups = ("model/",) if _optimizer(model) is None else ("model/", "optimizer/")
    own = {k: v for k, v in variables_of(model).items() if k.startswith(groups)}
    saved = [key for key in arrays if key.startswith(groups)]
    if len(saved) != len(own):
        raise UserError(
            f"The checkpoint does not fit the model: it holds {len(saved)} variables, "
            f"the model has {len(own)}. It comes from other settings or another "
            "version; use another --workdir."
        )
    for key, variable in own.items():
        if key not in arrays or arrays[key].shape != tuple(variable.shape):
            found = arrays[key].shape if key in arrays else "nothing"
            raise UserError(
                f"The checkpoint does not fit the model: {key} should be "
                f"{tuple(variable.shape)}, found {found}. It comes from other settings "
                "or another version; use another --workdir."
            )
    for key, variable in own.items():
        variable.assign(arrays[key])


def restore_metrics(model, arrays: dict[str, np.ndarray]) -> None:
    """Sets the accumulators of the metrics, which `fit` resets at each epoch."""
    for key, variable in variables_of(model).items():
        if key.startswith("metrics/"):
            variable.assign(arrays[key])


def hash_weights(model) -> str:
    """Returns a checksum of all weights, moving averages included."""
    return files.sha256(*(variable.numpy() for variable in model.variables))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints of a folder, newest first."""
    paths = [path for path in folder.glob("step-*.npz") if _NAME.match(path.name)]
    return sorted(paths, reverse=True)


def _step(path: pathlib.Path) -> int:
    return int(_NAME.match(path.name)[1])


def _optimizer(model):
    return getattr(model, "optimizer", None)  # absent before `compile`
