"""The command `python scripts/bench`, its records and its report."""

import importlib
import json
import pathlib
import subprocess
import sys
import types

import pytest
from bench import command_line, harness, report

pytestmark = pytest.mark.quick

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_row_has_the_median_and_the_range():
    row = harness.row("x", "y", [3.0, 1.0, 10.0], least=2.0)
    assert (row["low"], row["median"], row["high"], row["rounds"]) == (1, 3, 10, 3)
    assert report.meets_target(row) is True
    assert report.meets_target(harness.row("x", "y", [1.0], least=2.0)) is False
    assert report.meets_target(harness.row("x", "y", [3.0], 1.0, 2.0)) is False
    assert report.meets_target(harness.row("x", "y", [3.0])) is None


def result(**more):
    rows = [
        harness.row("ours", "theirs", [1.1, 1.3, 1.2], least=1.0),
        harness.row("waste", "all", [0.3], most=0.08, form="{:+.1%}"),
    ]
    return {"rows": rows, "paragraphs": ["Because."], **more}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Returns a function: arguments -> exit code, with two fake benchmarks.

    `fake.results` has what each returns or raises; `fake.out` is the folder.
    """
    results = {"one": result(), "two": result(skipped=["no such device."])}
    for name in results:

        def measure(options, name=name):
            if isinstance(results[name], Exception):
                raise results[name]
            return dict(results[name])

        module = types.ModuleType(f"bench.{name}")
        monkeypatch.setattr(module, "measure", measure, raising=False)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(command_line, "BENCHMARKS", tuple(results))

    def call(*arguments):
        try:
            command_line.main([*arguments, f"--out={tmp_path / 'bench'}"])
        except SystemExit as stop:
            return stop.code
        return 0

    call.results, call.out = results, tmp_path / "bench"
    call.report = lambda: (tmp_path / "bench.md").read_text()
    return call


def test_one_benchmark_is_repeated_and_the_others_stay(fake):
    assert fake("all") == 0
    before = (fake.out / "two.json").read_bytes()
    fake.results["one"]["paragraphs"] = ["Because of something else."]
    assert fake("one", "--pairs=7") == 0
    assert (fake.out / "two.json").read_bytes() == before
    record = json.loads((fake.out / "one.json").read_text())
    assert record["command"] == "python scripts/bench one --pairs=7"
    assert record["machine"]["cores"] >= 1 and record["machine"]["cpu"]
    assert {"python", "numpy"} <= set(record["versions"])
    assert record["commit"] is None or len(record["commit"]) >= 7
    text = fake.report()
    assert "Because of something else." in text and "--pairs=7" in text
    assert "Skipped: no such device." in text


def test_the_report_has_the_targets_and_the_measurements(fake):
    assert fake("one") == 0
    text = fake.report()
    assert "| ours | theirs | >= 1.00x | 1.20x | 1.10x to 1.30x | 3 |" in text
    assert "| waste | all | <= +8.0% | +30.0% (short of it) |  | 1 |" in text
    assert "Not measured yet: two." in text
    record = json.loads((fake.out / "one.json").read_text())
    for part in (record["date"], record["machine"]["cpu"], record["versions"]["numpy"]):
        assert part in text


def test_a_benchmark_that_fails_does_not_stop_the_others(fake):
    fake.results["one"] = RuntimeError("the worker\nended")
    code = fake("all")
    assert code == "bench: one: the worker ended"
    assert "## two" in fake.report() and "Not measured yet: one." in fake.report()


def test_the_report_is_written_even_if_every_benchmark_fails(fake):
    fake.results["one"] = RuntimeError("the worker ended")
    assert fake("one") == "bench: one: the worker ended"
    assert "Not measured yet: one, two." in fake.report()


def test_local_paths_do_not_get_into_the_report(fake):
    assert fake("one", "--torch_python=/somewhere/bin/python") == 0
    assert "--torch_python=..." in fake.report()
    assert "/somewhere" not in fake.report() + (fake.out / "one.json").read_text()


def test_the_report_says_that_tiny_sizes_are_not_results(fake):
    assert fake("one", "--size=tiny") == 0
    assert "Sizes: tiny." in fake.report()


@pytest.mark.parametrize("arguments", [["three"], ["one", "--pairs=0"]])
def test_bad_arguments_are_refused(fake, arguments, capsys):
    assert fake(*arguments) == 2
    assert not fake.out.exists()


def test_every_benchmark_of_the_list_exists():
    for name in command_line.BENCHMARKS:
        assert callable(importlib.import_module(f"bench.{name}").measure)


def test_committed_records_are_readable():
    folder = ROOT / "results" / "bench"
    names = sorted(path.stem for path in folder.glob("*.json"))
    assert names and set(names) <= set(command_line.BENCHMARKS)
    text = report.render(folder, command_line.BENCHMARKS)
    for name in names:
        assert f"## {name}" in text and f"`python scripts/bench {name}" in text
    assert "bench.py" not in text


def test_the_command_runs_outside_of_the_checkout(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "python scripts/bench step" in done.stdout
    assert all(name in done.stdout for name in command_line.BENCHMARKS)
