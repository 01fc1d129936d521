"""result.json: the settings, versions, cost and scores of a run."""

import csv
import dataclasses
import functools
import io
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf

from tfsimclr import __version__, files
from tfsimclr.runs import hardware
from tfsimclr.settings.config import Config


def content(config: Config, meta: dict, scores: dict) -> dict:
    """Returns the content of result.json.

    Args:
        config: Resolved settings.
        meta: Meta of the checkpoint that was scored.
        scores: Scores of every feature, or empty without labels.
    """
    rates = [row["images_per_second"] for row in meta["rows"]]
    rate = float(np.median(rates)) if rates else None
    reported = scores.get(config.feature)
    return {
        "config": dataclasses.asdict(config),
        "versions": {
            "tfsimclr": __version__,
            "python": sys.version.split()[0],
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
        "seed": config.seed,
        "git_commit": git_commit(),
        "device": hardware.gpu_name() or "CPU",
        "hardware": hardware.describe(),
        "pretrain": {
            "epochs": len(meta["rows"]),
            "steps": meta["step"],
            "seconds": meta["seconds"],
            "images_per_second": rate,
            "views_per_second": rate and rate * config.total_views,
            "peak_memory_bytes": meta["peak_memory_bytes"],
        },
        "features": scores,
        "feature": config.feature,
        "top1": reported["top1"] if reported else None,
    }


def git_commit() -> str | None:
    """Returns the commit of the checkout this file lies in, or None outside one.

    It ends in `-dirty` if files differ from it, other than those under results/, which
    measurements write.
    """
    here = pathlib.Path(__file__)
    git = ["git", "-C", str(here.parent)]
    run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=10)
    try:
        # Installed into an environment inside some other repository we are not tracked.
        run([*git, "ls-files", "--error-unmatch", here.name], check=True)
        done = run([*git, "describe", "--always", "--abbrev=12"], check=True)
        code = ["--", ":(top)", ":(top,exclude)results"]
        changed = run([*git, "diff", "--quiet", "HEAD", *code]).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() + "-dirty" * bool(changed)


def read(path: pathlib.Path) -> dict:
    """Returns the content of a result.json; empty if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_confusion(path: pathlib.Path, matrix: np.ndarray, class_names) -> None:
    """Writes a confusion matrix as CSV: a row per label, a column per prediction.

    Args:
        path: The file.
        matrix: Counts `[classes, classes]`, from `metrics.confusion_matrix`.
        class_names: Name of each class.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", *class_names])
    for name, row in zip(class_names, matrix, strict=True):
        writer.writerow([name, *row.tolist()])
    files.write_atomically(path, text.getvalue().encode(errors="replace"))


def write(path: pathlib.Path, result: dict) -> None:
    """Writes result.json atomically."""
    text = json.dumps(result, indent=2) + "\n"
    files.write_atomically(path, text.encode())
