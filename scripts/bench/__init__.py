"""Benchmarks of tfsimclr, one module each; `python scripts/bench --help`.

`harness.py` measures things in turn in processes of their own, `report.py` writes the
report, and `command_line.py` connects both with the benchmarks. The folder that has to
be on `sys.path` is `scripts/`, not this one: modules here such as `profile` would hide
those of the standard library.
"""
