"""Measures how fast tfsimclr is, compared with alternatives and with its own limits.

python scripts/bench step --torch_python=<a Python that has torch>
python scripts/bench all

Writes one JSON file per benchmark to --out, and a report on all files in that folder
to <out>.md.
"""

import argparse
import importlib
import pathlib
import sys
import time

from bench import harness, report

# Modules of this package, in the order of the report.
BENCHMARKS = (
    "views",
    "step",
    "processor",
    "gpu",
    "overhead",
    "starvation",
    "nt_xent",
    "evaluate",
    "start",
    "growth",
    "plan",
    "memory",
    "profile",
    "peer",
)
SIZES = ("full", "tiny")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    names = list(BENCHMARKS) if options.benchmark == "all" else [options.benchmark]
    failures = []
    for name in names:
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        try:
            result = measure(name, options)
        except (RuntimeError, ValueError, OSError) as error:
            # With `all`, the other benchmarks still run.
            failures.append(f"{name}: {' '.join(str(error).split())}")
            continue
        seconds = time.monotonic() - start
        command = command_of(name, options)
        harness.save(options.out, name, result, command, seconds)
        print(report.section(report.read(options.out, name)), flush=True)
    path = options.out.with_suffix(".md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.render(options.out, BENCHMARKS), encoding="utf-8")
    print(f"Report: {path}")
    if failures:
        sys.exit("bench: " + "\n".join(failures))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("benchmark", choices=(*BENCHMARKS, "all"))
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=harness.SCRIPTS.parent / "results" / "bench",
        help="Folder for the JSON files (default: results/bench).",
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=5,
        help="Rounds that are measured; every round runs each task once (default: 5).",
    )
    parser.add_argument(
        "--torch_python",
        default="",
        help="Python interpreter that has torch, torchvision and, for peer, lightly "
        "(default: the one that runs this command).",
    )
    parser.add_argument(
        "--data_dir",
        default="",
        help="Folder of at least 10,000 JPEGs of 32 px for peer, for example CIFAR-10 "
        "(default: peer skips that size).",
    )
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="full",
        help="tiny only tests that the benchmark works (default: full).",
    )
    options = parser.parse_args(arguments)
    if options.pairs < 1:
        parser.error(f"--pairs must be at least 1, got {options.pairs}.")
    return options


def measure(name: str, options) -> dict:
    """Returns the rows and paragraphs of one benchmark."""
    module = importlib.import_module(f"bench.{name}")
    return {**module.measure(options), "size": options.size}


def command_of(name: str, options) -> str:
    """Returns the command that repeats a measurement, without local paths."""
    parts = [f"python scripts/bench {name}"]
    parts += [f"--pairs={options.pairs}"] if options.pairs != 5 else []
    parts += [f"--size={options.size}"] if options.size != "full" else []
    parts += ["--torch_python=..."] if options.torch_python else []
    parts += ["--data_dir=..."] if options.data_dir else []
    return " ".join(parts)
