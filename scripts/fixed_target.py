"""BYOL's own small experiment: learning from a network that knows nothing.

python scripts/fixed_target.py --out=runs/fixed_target

Trains a network to predict what another one, untrained and never changed, makes of the
other view, and compares its features with the untrained network's: they are better.
Other flags are those of `python -m tfsimclr.run`; the same command goes on where it was
stopped. Source: Grill et al. 2020 (arXiv:2006.07733), section 2.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ROOT / "flags" / "methods" / "byol_fixed_target.flags"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="Run folder.")
    options, others = parser.parse_known_args(arguments)
    out = options.out.expanduser().absolute()
    command = [sys.executable, "-m", "tfsimclr.run", f"--flagfile={FLAGS}", *others]
    done = subprocess.run([*command, f"--workdir={out}"])
    if done.returncode:
        sys.exit(done.returncode)
    print(compared(json.loads((out / "result.json").read_text("utf-8"))))


def compared(result: dict) -> str:
    """Returns the scores of the untrained and of the trained network as a table."""
    scores = result["features"]
    if not scores:
        return "No labels, so nothing can be compared."
    lines = ["| features of | linear top-1, % | kNN, % |", "| --- | --- | --- |"]
    for name, label in (
        ("pixels", "the pixels"),
        ("random_h", "the fixed random network"),
        ("h", "the network that predicts it"),
    ):
        top1, knn = (100 * scores[name][measure] for measure in ("top1", "knn"))
        lines.append(f"| {label} | {top1:.2f} | {knn:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
