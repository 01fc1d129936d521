"""Runs a study: every experiment and seed in a run folder of its own.

python scripts/study.py --flagfile=flags/study/textures.flags --seeds=3 --out=runs/study

An experiment is a flagfile. Other flags are those of `python -m tfsimclr.run`; they
hold for every experiment, unless its own flagfile sets them. The same command continues
a study that was stopped, and repeats the runs that failed.
"""

import argparse
import pathlib
import sys

from tfsimclr.errors import UserError
from tfsimclr.runs import folder as run_folder
from tfsimclr.settings import flagfiles
from tfsimclr.study import plan, runner

SET_BY_STUDY = ("mode", "seed", "workdir")


def main(default_experiments: pathlib.Path, arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        default_experiments: Folder of the flagfiles to run without --experiments.
        arguments: The command line; None takes that of the program.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="Folder of the study."
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="Seeds per experiment (default: 3)."
    )
    parser.add_argument(
        *("--experiments", "--rows"),
        default=str(default_experiments),
        help="Flagfiles, or folders of flagfiles, separated by commas; one experiment "
        "per flagfile. Default: flags/paper. With LARS's learning rates: "
        "flags/paper,flags/study/rates. --rows is the old name.",
    )
    parser.add_argument(
        "--vary",
        help="A setting and its values, such as batch_size=16,32,64: each flagfile is "
        "one experiment for every value. The tables then have one row a flagfile and "
        "one column a value.",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="Runs at a time (default: 1). The processor cores are divided among them, "
        "and so are the GPUs if there are several. Memory is not divided: every run "
        "needs all that it needs alone.",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="Print the plan and stop."
    )
    options, others = parser.parse_known_args(arguments)
    try:
        succeeded = run_study(options, flagfiles.expand(others))
    except (UserError, OSError) as error:
        sys.exit(f"study: {' '.join(str(error).split())}")
    if not succeeded:
        sys.exit(1)


def run_study(options: argparse.Namespace, overrides: list[str]) -> bool:
    """Plans and runs a study; returns whether every run is finished.

    Args:
        options: The options of the study.
        overrides: Flags for every experiment.

    Raises:
        UserError: If an option or a flag is invalid.
    """
    settings = plan.settings_in(overrides)
    vary = None if options.vary is None else plan.parse_vary(options.vary)
    for name in SET_BY_STUDY:
        if name in settings or (vary and name == vary[0]):
            raise UserError(f"--{name} is set by the study; see --seeds and --out.")
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            raise UserError(
                f"--{name} must be at least 1, got {getattr(options, name)}."
            )
    out = options.out.expanduser().absolute()
    study = runner.Study(out, settings)
    flag_files = plan.experiment_files(options.experiments)
    experiments, runs = plan.plan(
        flag_files, overrides, options.seeds, out, study.runs.values(), vary
    )
    print(describe(experiments, runs, settings), flush=True)
    if options.dry_run:
        return True
    out.mkdir(parents=True, exist_ok=True)
    with run_folder.lock(out):
        study.add(experiments, runs)
        study.save()
        if not study.execute(runs, options.jobs):
            print("Stopped. The same command continues the study.", file=sys.stderr)
            return False
    failed = [run.name for run in runs if study.entry(run)["state"] == "failed"]
    print(f"{len(runs) - len(failed)} of {len(runs)} runs finished. Tables: ", end="")
    print(f"python scripts/tables.py {options.out}")
    for name in failed:
        log, message = study.log(name), study.state["runs"][name]["message"]
        print(f"Failed: {name}: {message} See {log}.", file=sys.stderr)
    return not failed


def describe(experiments: dict, runs: list[plan.Run], settings: dict) -> str:
    """Returns the plan as text."""
    lines = ["For every experiment: " + plan.to_text(settings)]
    for name, value in settings.items():
        others = [key for key, entry in experiments.items() if name in entry["own"]]
        if others:
            lines.append(
                f"--{name}={value} does not hold for the experiments that set it "
                f"themselves: {', '.join(others)}."
            )
    by_name = {run.name: run for run in runs}
    for key, entry in experiments.items():
        lines.append(f"{key}: {plan.to_text(entry['own'])}")
        for name in entry["runs"].values():
            run = by_name.get(name)
            if run is None:
                continue
            shared = "" if run.experiment == key else f", shared with {run.experiment}"
            lines.append(f"  {name}: {run.state()}{shared}")
    epochs = sum(run.config.epochs for run in runs)
    lines.append(
        f"{len(experiments)} experiments, {len(runs)} runs, {epochs} epochs in total."
    )
    return "\n".join(lines)
