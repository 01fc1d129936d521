"""Runs BYOL's fixed-target experiment; see `python scripts/fixed_target.py --help`."""

import pathlib

from tfsimclr.study import fixed_target

FLAGS = pathlib.Path(__file__).resolve().parents[1] / "flags" / "methods"

if __name__ == "__main__":
    fixed_target.main(FLAGS / "byol_fixed_target.flags")
