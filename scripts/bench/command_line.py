"""Measures how fast tfsimclr is, beside what it could be.

python scripts/bench.py step --torch_python=<a Python that has torch>
python scripts/bench.py all

Writes a JSON per benchmark to --out, and of all that lie there the report <out>.md.
"""

import argparse
import importlib
import pathlib
import sys
import time

import bench_report
import bench_tools

# Benchmark -> the module, and its function that measures.
BENCHMARKS = {
    "views": ("bench_views_rows", "measure"),
    "step": ("bench_step", "measure"),
    "gpu": ("bench_gpu", "measure"),
    "overhead": ("bench_overhead", "measure"),
    "starvation": ("bench_overhead", "starvation"),
    "nt_xent": ("bench_loss", "measure"),
    "evaluate": ("bench_evaluate", "measure"),
    "start": ("bench_runs", "measure"),
    "growth": ("bench_runs", "growth"),
    "plan": ("bench_plan", "measure"),
    "profile": ("bench_profile", "measure"),
}
SIZES = ("full", "tiny")


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    names = list(BENCHMARKS) if options.what == "all" else [options.what]
    failed = []
    for name in names:
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        try:
            result = measured(name, options)
        except (RuntimeError, ValueError, OSError) as error:
            # The others of `all` can still be had.
            failed.append(f"{name}: {' '.join(str(error).split())}")
            continue
        seconds = time.monotonic() - start
        command = described(name, options)
        bench_tools.save(options.out, name, result, command, seconds)
        print(bench_report.section(bench_report.read(options.out, name)), flush=True)
    report = options.out.with_suffix(".md")
    report.write_text(bench_report.render(options.out, tuple(BENCHMARKS)))
    print(f"Report: {report}")
    if failed:
        sys.exit("bench: " + "\n".join(failed))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=(*BENCHMARKS, "all"))
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path(__file__).resolve().parent.parent / "results" / "bench",
        help="Folder of the JSON files (results/bench).",
    )
    parser.add_argument("--pairs", type=int, default=5, help="Rounds that count (5).")
    parser.add_argument(
        "--torch_python", default="", help="A Python that has torch and torchvision."
    )
    parser.add_argument(
        "--size", choices=SIZES, default="full", help="tiny tests the programs only."
    )
    options = parser.parse_args(arguments)
    if options.pairs < 1:
        parser.error(f"--pairs must be at least 1, got {options.pairs}.")
    return options


def measured(name: str, options) -> dict:
    """Returns the rows and words of one benchmark."""
    module, function = BENCHMARKS[name]
    result = getattr(importlib.import_module(module), function)(options)
    return {**result, "size": options.size}


def described(name: str, options) -> str:
    """Returns the command that measures it again, without paths of this machine."""
    parts = [f"python scripts/bench.py {name}"]
    parts += [f"--pairs={options.pairs}"] if options.pairs != 5 else []
    parts += [f"--size={options.size}"] if options.size != "full" else []
    parts += ["--torch_python=..."] if options.torch_python else []
    return " ".join(parts)


if __name__ == "__main__":
    main()
