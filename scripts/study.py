"""Runs the paper's rows on one data set: every row and seed in a run folder of its own.

python scripts/study.py --flagfile=flags/study/textures.flags --seeds=3 --out=runs/study

Other flags are those of `python -m tfsimclr.run`. They hold for every row, unless the
row's own file says otherwise. The same command goes on where it was stopped.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import study_plan
from absl import flags

from tfsimclr import config as configs
from tfsimclr import run as command_line
from tfsimclr import runfolder

PAPER = pathlib.Path(__file__).resolve().parent.parent / "flags" / "paper"
RUN = [sys.executable, "-m", "tfsimclr.run"]
SET_BY_STUDY = ("mode", "seed", "workdir")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_EVERY = 5.0  # seconds, at a run that is going on


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
        finished = conduct(options, command_line.expanded(others))
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
    study = Study(out, settings)
    files = study_plan.row_files(options.rows)
    rows, runs = study_plan.plan(
        files, overrides, options.seeds, out, study.runs.values()
    )
    print(described(rows, runs, settings), flush=True)
    if options.dry_run:
        return True
    out.mkdir(parents=True, exist_ok=True)
    with runfolder.lock(out):
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
    lines = ["For every row: " + as_flags(settings)]
    for name, value in settings.items():
        above = [row for row, entry in rows.items() if name in entry["own"]]
        if above:
            lines.append(f"Not --{name}={value}, but their own: {', '.join(above)}.")
    by_name = {run.name: run for run in runs}
    for row, entry in rows.items():
        lines.append(f"{row}: {as_flags(entry['own'])}")
        for name in entry["runs"].values():
            run = by_name.get(name)
            if run is None:
                continue
            shared = "" if run.row == row else f", shared with {run.row}"
            lines.append(f"  {name}: {state_of(run)}{shared}")
    epochs = sum(run.config.epochs for run in runs)
    lines.append(f"{len(rows)} rows, {len(runs)} runs, {epochs} epochs in all.")
    return "\n".join(lines)


def as_flags(settings: dict) -> str:
    return " ".join(f"--{k}={v}" for k, v in settings.items()) or "nothing of its own"


def state_of(run: study_plan.Run) -> str:
    if run.result():
        return "finished"
    done = run.epochs_done()
    return f"to go on after epoch {done} of {run.config.epochs}" if done else "to do"


class Study:
    """The runs of a folder and what became of them, kept in study.json.

    Args:
        out: The folder; it need not exist.
        settings: The flags given for every row.

    Raises:
        ValueError: If the folder holds a study of other settings.
    """

    def __init__(self, out: pathlib.Path, settings: dict):
        self.out = out
        self.state = {"settings": settings, "rows": {}, "runs": {}}
        path = out / "study.json"
        if path.exists():
            self.state = json.loads(path.read_text(encoding="utf-8"))
            before = self.state["settings"]
            if {**before, "cache_dir": ""} != {**settings, "cache_dir": ""}:
                raise ValueError(
                    f"{out} holds a study of other settings: {as_flags(before)} there, "
                    f"{as_flags(settings)} here. Give the same flags or another --out."
                )
        self.runs = {
            name: study_plan.Run(x["row"], out / name, configs.Config(**x["config"]))
            for name, x in self.state["runs"].items()
        }

    def entry(self, run: study_plan.Run) -> dict:
        return self.state["runs"][run.name]

    def log(self, name: str) -> pathlib.Path:
        return self.out / "logs" / f"{name}.txt"

    def add(self, rows: dict, runs: list) -> None:
        """Adds rows and runs to those of earlier calls: more seeds, more rows."""
        for name, row in rows.items():
            before = self.state["rows"].get(name, {"runs": {}})
            self.state["rows"][name] = {**row, "runs": {**before["runs"], **row["runs"]}}
        for run in runs:
            self.runs[run.name] = run
            entry = {"row": run.row, "state": "waiting", "message": "", "seconds": 0.0}
            entry.update(self.state["runs"].get(run.name, {}))
            entry["config"] = dataclasses.asdict(run.config)
            self.state["runs"][run.name] = entry

    def save(self) -> None:
        partial = self.out / ".study.json"
        partial.write_text(json.dumps(self.state, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.out / "study.json")

    def progress(self, runs: list, seconds: float = 0.0) -> str:
        """Returns how much is done, and the time left at the pace of all runs so far.

        Args:
            runs: Those of the study.
            seconds: That the run going on has taken.
        """
        seconds += sum(x["seconds"] for x in self.state["runs"].values())
        epochs = sum(run.epochs_done() for run in self.runs.values())
        total = sum(run.config.epochs for run in runs)
        # A failed run is not waited for.
        done = sum(
            run.config.epochs
            if self.entry(run)["state"] == "failed"
            else run.epochs_done()
            for run in runs
        )
        text = f"{done / total:.0%} of the study"
        if epochs and seconds:
            text += f", about {duration(seconds / epochs * (total - done))} left"
        return text

    def execute(self, runs: list) -> bool:
        """Runs what is not finished; returns False if a signal stopped it."""
        (self.out / "logs").mkdir(exist_ok=True)
        with Stop() as stop:
            for number, run in enumerate(runs, 1):
                if stop.asked:
                    break
                head = f"[{number}/{len(runs)}] {run.name}"
                entry = self.entry(run)
                if run.result():
                    entry.update(state="finished", message="")
                    print(f"{head}: finished before", flush=True)
                    continue
                print(f"{head}: {state_of(run)}", flush=True)
                entry.update(state="running", message="")
                self.save()
                self._execute_one(run, head, runs, stop)
                self.save()
                what = f"{entry['state']} {entry['message']}".strip()
                print(f"{head}: {what}; {self.progress(runs)}", flush=True)
            self.save()
        return not stop.asked

    def _execute_one(self, run, head: str, runs: list, stop: "Stop") -> None:
        start = time.monotonic()
        with open(self.log(run.name), "ab") as log:
            child = stop.start([*RUN, *run.config.lines()], log)
            while child.poll() is None:
                try:
                    child.wait(LOOK_EVERY)
                except subprocess.TimeoutExpired:
                    if sys.stdout.isatty():
                        text = self.progress(runs, time.monotonic() - start)
                        epoch = f"epoch {run.epochs_done()} of {run.config.epochs}"
                        print(f"\r\033[K{head}: {epoch}; {text}", end="\r", flush=True)
        entry = self.entry(run)
        entry["seconds"] += time.monotonic() - start
        if child.returncode == 0 and run.result():
            entry["state"] = "finished"
        elif stop.asked:
            entry["state"] = "interrupted"
        else:
            said = self.log(run.name).read_text(errors="replace").strip().splitlines()
            message = said[-1] if said else f"Exit code {child.returncode}."
            entry.update(state="failed", message=message)


class Stop:
    """Passes the signals that end a program on to the run that is going on."""

    def __init__(self):
        self.asked = False
        self.child = None

    def __enter__(self):
        # nohup and "&" have a signal ignored; so it stays.
        heard = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        self.before = {s: signal.signal(s, self._handle) for s in heard}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def start(self, command: list[str], log) -> subprocess.Popen:
        # In a session of its own, Ctrl-C reaches it through us only: once.
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if self.asked:
            self.child.terminate()
        return self.child

    def _handle(self, number, frame):
        self.asked = True
        print("\nStopping: the run saves its state.", flush=True)
        if self.child and self.child.poll() is None:
            self.child.terminate()


def duration(seconds: float) -> str:
    """Returns "3 h 20 min", "20 min" or "40 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


if __name__ == "__main__":
    main()
