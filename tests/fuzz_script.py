"""The module `scripts/fuzz.py`: `from fuzz_script import script`."""

import importlib.util
import pathlib

PATH = pathlib.Path(__file__).resolve().parents[1] / "scripts" / "fuzz.py"
_spec = importlib.util.spec_from_file_location("fuzz_script_module", PATH)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)
