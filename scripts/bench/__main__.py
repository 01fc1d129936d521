"""The command `python scripts/bench <benchmark>`."""

import os
import sys

# Python puts this folder first, where `profile` would hide the standard library's.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from bench import command_line  # noqa: E402  (after the path)

command_line.main()
