"""Runs a study; see `python scripts/study.py --help`."""

import pathlib

from tfsimclr.study import command

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / "flags" / "paper"

if __name__ == "__main__":
    command.main(EXPERIMENTS)
