"""BYOL's experiment with a fixed, untrained target network.

python scripts/fixed_target.py --out=runs/fixed_target

Trains a network to predict the projections of an untrained target network that never
changes, and compares the linear top-1 of both networks' features. The trained features
are better, although the target has learned nothing. Other flags are those of
`python -m tfsimclr.run`. The same command resumes a run that was stopped.

Source: Grill et al. 2020 (arXiv:2006.07733), section 2.
"""

import argparse
import json
import pathlib
import subprocess
import sys


def main(flagfile: pathlib.Path, arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        flagfile: The settings of the experiment.
        arguments: The command line; None takes that of the program.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="Run folder.")
    options, others = parser.parse_known_args(arguments)
    out = options.out.expanduser().absolute()
    command = [sys.executable, "-m", "tfsimclr.run", f"--flagfile={flagfile}", *others]
    done = subprocess.run([*command, f"--workdir={out}"])
    if done.returncode:
        sys.exit(done.returncode)
    print(comparison(json.loads((out / "result.json").read_text("utf-8"))))


def comparison(result: dict) -> str:
    """Returns the scores of the untrained and the trained network as Markdown."""
    scores = result["features"]
    if not scores:
        return "The data set has no labels, so there are no scores to compare."
    lines = ["| features of | linear top-1, % | k-NN, % |", "| --- | --- | --- |"]
    for name, label in (
        ("pixels", "the pixels"),
        ("random_h", "the fixed, untrained network"),
        ("h", "the trained network"),
    ):
        top1, knn = (100 * scores[name][measure] for measure in ("top1", "knn"))
        lines.append(f"| {label} | {top1:.2f} | {knn:.2f} |")
    return "\n".join(lines)
