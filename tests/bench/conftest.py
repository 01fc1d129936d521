"""Puts `scripts/` on the module path, so that tests can import the benchmarks."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
