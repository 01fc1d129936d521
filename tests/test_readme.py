"""The README: its commands parse, its Python runs, its tables are true."""

import importlib.util
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from absl import flags

from tfsimclr import run
from tfsimclr.settings import config as configs

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    command.strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    for command in line.split("&&")
    if "tfsimclr.run" in command
]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_commands_are_found():
    assert len(COMMANDS) >= 4
    assert COMMANDS[0].endswith("tfsimclr.run --optimizer=lars --proj_layers=4")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    python, module, name, *arguments = shlex.split(command)
    assert (python, module, name) == ("python", "-m", "tfsimclr.run")
    values = flags.FlagValues()
    configs.define_flags(values)
    values(run.expanded(["run", *arguments]))
    assert configs.from_flags(values).batch_size <= 256


def test_the_notebook_block_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = next(b for language, b in BLOCKS if "resnet.resnet(" in b)
    assert "epochs=40" in block
    random = np.random.default_rng(0)
    names = {
        "images": random.integers(0, 256, (3, 24, 24, 3)).astype("uint8"),
        "z_a": random.normal(size=(4, 8)).astype("float32"),
        "z_b": random.normal(size=(4, 8)).astype("float32"),
    }
    exec(block, names)
    assert list(names["features"]) == ["h", "head_1", "head_2", "head_3", "z"]
    assert names["features"]["h"].shape == (3, 512)
    assert np.isfinite(float(names["loss"]))
    assert (tmp_path / "run.keras").exists()


def test_table_of_flags_is_that_of_the_program():
    assert script("flags_table").table() in README


def test_numbers_of_the_results_stand_in_their_flagfiles():
    rows = re.findall(r"^\| \[?`(flags/[^`]+)`.*\|$", README, re.MULTILINE)
    assert rows
    for path in rows:
        header = (ROOT / path).read_text(encoding="utf-8").split("\n--")[0]
        line = next(x for x in README.splitlines() if f"`{path}`" in x and "|" in x)
        numbers = re.findall(r"\d+\.\d+(?= %)", line)
        assert numbers, f"no number in the row of {path}"
        for number in numbers:
            assert number in header, f"{number} is not in the header of {path}"


def test_pictures_and_results_that_the_readme_names_exist():
    named = re.findall(r"\]\((results/[^)]+)\)", README)
    assert any(name.endswith(".png") for name in named)
    for name in named:
        assert (ROOT / name).exists(), name
    result = json.loads((ROOT / "results/quickstart/result.json").read_text())
    assert f"{100 * result['top1']:.1f} %" in README
