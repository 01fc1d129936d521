"""Checkpoints: one file each, complete or absent, with its checksum in the name."""

import errno
import io
import json
import pathlib
import re
import sys

import numpy as np

from tfsimclr import files
from tfsimclr.distribution import workers
from tfsimclr.distribution.replicas import local_value
from tfsimclr.errors import UserError
from tfsimclr.networks.names import NUMBER, stable_paths

_FILE_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.npz$")
# The arrays of a checkpoint that are text: the meta, and the names of the variables.
_META = "meta_json"
_NAMES = "names_json"


def save(
    folder: pathlib.Path, step: int, arrays: dict[str, np.ndarray], meta: dict, keep=2
) -> pathlib.Path:
    """Writes `step-<step>-<checksum>.npz` and deletes all but the newest checkpoints.

    The checksum is the first 16 digits of the file's SHA-256.

    Args:
        folder: Folder of the checkpoints; created if missing.
        step: Step of the run, which orders the checkpoints.
        arrays: What to save.
        meta: JSON-serialisable; `load_latest` returns it unchanged.
        keep: How many checkpoints stay, this one included.

    Raises:
        OSError: If the disk is full or not writable; older checkpoints stay then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(folder)
    content = to_bytes(arrays, meta)
    # In the name, so that file and checksum appear in one rename.
    path = folder / f"step-{step:09d}-{files.sha256(content)[:16]}.npz"
    files.write_atomically(path, content)
    others = [other for other in _paths(folder) if other != path]
    # A checkpoint of the same or a later step was damaged, or has just been replaced.
    earlier = [other for other in others if _step(other) < step][: keep - 1]
    for other in others:
        if other not in earlier:
            other.unlink()
    return path


def load_latest(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], dict] | None:
    """Returns the arrays and meta of the newest undamaged checkpoint, or None.

    For a damaged checkpoint it prints a warning and tries the one before.
    """
    paths = _paths(folder)
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            content = b""  # a damaged sector of the disk
        if files.sha256(content)[:16] != _FILE_NAME.match(path.name)[2]:
            action = "none is left" if path == paths[-1] else "trying the one before"
            print(
                f"Checkpoint {path} is damaged (its checksum differs) and is skipped; "
                f"{action}.",
                file=sys.stderr,
            )
            continue
        return from_bytes(content)
    return None


def load_latest_of_chief(folder: pathlib.Path):
    """Returns what `load_latest` does on the chief; all workers have to call it.

    The chief alone needs the folder: it sends the checkpoint to the others.
    """
    if workers.watchdog() is None:
        return load_latest(folder)
    checkpoint = load_latest(folder) if workers.is_chief() else None
    content = workers.bytes_of_chief(to_bytes(*checkpoint) if checkpoint else b"")
    return from_bytes(content) if content else None


def to_bytes(arrays: dict[str, np.ndarray], meta: dict) -> bytes:
    """Returns the content of a checkpoint file."""
    buffer = io.BytesIO()
    named: dict = {**arrays, _META: _to_array(meta)}
    np.savez(buffer, **named)
    return buffer.getvalue()


def from_bytes(content: bytes) -> tuple[dict[str, np.ndarray], dict]:
    """Returns arrays and meta of the content of a checkpoint file."""
    with np.load(io.BytesIO(content)) as archive:
        arrays = dict(archive)
    return arrays, pop_meta(arrays)


def is_checkpoint(arrays) -> bool:
    """Returns whether the arrays of an `.npz` file are those of a checkpoint."""
    return _META in arrays


def pop_meta(arrays: dict[str, np.ndarray]) -> dict:
    """Removes the meta from the arrays of a checkpoint file and returns it."""
    return _from_array(arrays.pop(_META))


def saved_names(arrays: dict[str, np.ndarray]) -> dict[str, str] | None:
    """Returns the names of a checkpoint's variables, or None in version 0.1.

    Returns:
        As `names_of`.
    """
    return _from_array(arrays[_NAMES]) if _NAMES in arrays else None


def variables_of(model) -> dict:
    """Returns every variable of a compiled model, its optimizer and its metrics.

    Returns:
        Key -> variable. A key is "model/<position>", "optimizer/<position>" or
        "metrics/<position>".
    """
    metrics = getattr(model, "metric_trackers", {}).values() or model.metrics
    groups = {
        "model": model.variables,
        "metrics": [variable for metric in metrics for variable in metric.variables],
    }
    if _optimizer(model) is not None:
        groups["optimizer"] = model.optimizer.variables
    return {
        f"{group}/{position}": variable
        for group, variables in groups.items()
        for position, variable in enumerate(variables)
    }


def names_of(model) -> dict[str, str]:
    """Returns a name for every variable of a model and its optimizer.

    The name is the model's attribute that holds the variable, then the variable's path.
    Keras numbers the layers of a process, so that the paths differ from model to model;
    here layers of one name and one parent are numbered from 1.

    Returns:
        Key of `variables_of` -> name, e.g. "encoder: stage1_block1_1_conv/kernel".
    """
    attribute: dict[int, str] = {}
    for name, part in vars(model).items():
        if not name.startswith("_"):
            for variable in getattr(part, "variables", ()):
                attribute.setdefault(id(variable), name)
    variables = variables_of(model)
    of_model = {k: v for k, v in variables.items() if k.startswith("model/")}
    stable = stable_paths([variable.path for variable in of_model.values()])
    names: dict[str, str] = {}
    name_of_path: dict[str, str] = {}
    for key, variable in of_model.items():
        path, part = stable[variable.path], attribute.get(id(variable))
        # A variable of the model itself has the name of the model's class before it.
        names[key] = f"{part}: {path}" if part else path.split("/", 1)[-1]
        # Online networks come before their averages, which have the same paths.
        name_of_path.setdefault(variable.path.replace("/", "_"), names[key])
    longest_first = sorted(name_of_path, key=len, reverse=True)
    for key, variable in variables.items():
        if key.startswith("optimizer/"):
            owner, slot = variable.path.split("/", 1)
            path = next((p for p in longest_first if slot.startswith(p + "_")), None)
            if path is not None:  # momentum and the like, named after a variable
                slot = f"{slot.removeprefix(path + '_')} of {name_of_path[path]}"
            names[key] = f"{NUMBER.sub('', owner)}: {slot}"
    return names


def get_state(model) -> dict[str, np.ndarray]:
    """Returns the values of `variables_of(model)`, and the names of the variables."""
    values = {key: local_value(v) for key, v in variables_of(model).items()}
    return {_NAMES: _to_array(names_of(model)), **values}


def restore(model, arrays: dict[str, np.ndarray]) -> None:
    """Sets the variables of a model to the values that `get_state` returned.

    Without an optimizer (a model for evaluation) only the model's variables are set.

    Args:
        model: A model of the same settings.
        arrays: From `get_state`. Checkpoints of version 0.1.0 hold no names; only the
            shapes of their variables are compared.

    Raises:
        UserError: If a variable is missing or has another shape or name; the model is
            unchanged then.
    """
    groups = ("model/",) if _optimizer(model) is None else ("model/", "optimizer/")
    variables = {k: v for k, v in variables_of(model).items() if k.startswith(groups)}
    saved = [key for key in arrays if key.startswith(groups)]
    if len(saved) != len(variables):
        raise _misfit(
            f"it holds {len(saved)} variables, the model has {len(variables)}"
        )
    for key, variable in variables.items():
        if key not in arrays or arrays[key].shape != tuple(variable.shape):
            shape = arrays[key].shape if key in arrays else "nothing"
            raise _misfit(f"{key} should be {tuple(variable.shape)}, got {shape}")
    if _NAMES in arrays:
        saved_names, names = _from_array(arrays[_NAMES]), names_of(model)
        for key in variables:
            if saved_names.get(key) != names[key]:
                raise _misfit(
                    f"{key} should be {names[key]!r}, got {saved_names.get(key)!r}"
                )
    for key, variable in variables.items():
        variable.assign(arrays[key])


def restore_metrics(model, arrays: dict[str, np.ndarray]) -> None:
    """Sets the sums of the metrics, which `fit` resets at the start of each epoch."""
    group = "metrics/"
    variables = [v for key, v in variables_of(model).items() if key.startswith(group)]
    # Checkpoints of version 0.2 and before begin with two variables of Keras's own.
    unused = sum(key.startswith(group) for key in arrays) - len(variables)
    for position, variable in enumerate(variables):
        variable.assign(arrays[f"{group}{position + unused}"])


def hash_weights(model) -> str:
    """Returns a checksum of all weights, moving averages included."""
    return files.sha256(*(local_value(variable) for variable in model.variables))


def _misfit(difference: str) -> UserError:
    return UserError(
        f"The checkpoint does not fit the model: {difference}. It was written with "
        "other settings or by another version of tfsimclr; use another --workdir."
    )


def _paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints of a folder, newest first."""
    paths = folder.glob("step-*.npz")
    return sorted((p for p in paths if _FILE_NAME.match(p.name)), reverse=True)


def _step(path: pathlib.Path) -> int:
    return int(_FILE_NAME.match(path.name)[1])


def _optimizer(model):
    return getattr(model, "optimizer", None)  # absent before `compile`


def _to_array(content: dict) -> np.ndarray:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


def _from_array(array: np.ndarray) -> dict:
    return json.loads(array.tobytes())
