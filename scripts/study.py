"""Runs the paper's rows on one data set: every row and seed in a run folder of its own.

python scripts/study.py --flagfile=flags/study/textures.flags --seeds=3 --out=runs/study

Other flags are those of `python -m tfsimclr.run`. They hold for every row, unless the
row's own file says otherwise. The same command goes on where it was stopped.
"""

import argparse
import pathlib
import sys

import study_plan
import study_runs
from absl import flags

from tfsimclr import run
from tfsimclr.runs import folder as run_folder

PAPER = pathlib.Path(__file__).resolve().parent.parent / "flags" / "paper"
SET_BY_STUDY = ("mode", "seed", "workdir")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="Folder.")
    parser.add_argument("--seeds", type=int, default=3, help="How many per row (3).")
    parser.add_argument(
        "--rows",
        default=str(PAPER),
        help="Flagfiles, one a row, or folders of them, divided by commas. Default: "
        "flags/paper. The learning rates of LARS: flags/paper,flags/study/rates.",
    )
    parser.add_argument("--dry_run", action="store_true", help="Print the plan only.")
    options, others = parser.parse_known_args(arguments)
    try:
        finished = conduct(options, run.expanded(others))
    except (ValueError, OSError, flags.Error) as error:
        sys.exit(f"study: {' '.join(str(error).split())}")
    if not finished:
        sys.exit(1)


def conduct(options, overrides: list[str]) -> bool:
    """Plans and executes a study; returns whether every run is finished."""
    settings = study_plan.given(overrides)
    for name in SET_BY_STUDY:
        if name in settings:
            raise ValueError(f"--{name} is set by the study; see --seeds and --out.")
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}.")
    out = options.out.expanduser().absolute()
    study = study_runs.Study(out, settings)
    files = study_plan.row_files(options.rows)
    rows, runs = study_plan.plan(
        files, overrides, options.seeds, out, study.runs.values()
    )
    print(described(rows, runs, settings), flush=True)
    if options.dry_run:
        return True
    out.mkdir(parents=True, exist_ok=True)
    with run_folder.lock(out):
        study.add(rows, runs)
        study.save()
        if not study.execute(runs):
            print("Stopped. The same command goes on from here.", file=sys.stderr)
            return False
    failed = [run.name for run in runs if study.entry(run)["state"] == "failed"]
    print(f"{len(runs) - len(failed)} of {len(runs)} runs finished. Tables: ", end="")
    print(f"python scripts/tables.py {options.out}")
    for name in failed:
        log, message = study.log(name), study.state["runs"][name]["message"]
        print(f"Failed: {name}: {message} See {log}.", file=sys.stderr)
    return not failed


def described(rows: dict, runs: list, settings: dict) -> str:
    """Returns the plan in words."""
    lines = ["For every row: " + study_plan.as_flags(settings)]
    for name, value in settings.items():
        above = [row for row, entry in rows.items() if name in entry["own"]]
        if above:
            lines.append(f"Not --{name}={value}, but their own: {', '.join(above)}.")
    by_name = {run.name: run for run in runs}
    for row, entry in rows.items():
        lines.append(f"{row}: {study_plan.as_flags(entry['own'])}")
        for name in entry["runs"].values():
            run = by_name.get(name)
            if run is None:
                continue
            shared = "" if run.row == row else f", shared with {run.row}"
            lines.append(f"  {name}: {run.state()}{shared}")
    epochs = sum(run.config.epochs for run in runs)
    lines.append(f"{len(rows)} rows, {len(runs)} runs, {epochs} epochs in all.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
