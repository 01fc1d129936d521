"""Runs the paper's rows on one data set: every row and seed in a run folder of its own.

python scripts/study.py --flagfile=flags/study/textures.flags --seeds=3 --out=runs/study

All other flags are those of `python -m tfsimclr.run` and hold for every row, unless the
row's own file says otherwise. The same command goes on where it was stopped.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl import flags

from tfsimclr import config as configs
from tfsimclr import run as command_line
from tfsimclr import runfolder

PAPER_ROWS = str(pathlib.Path(__file__).resolve().parent.parent / "flags" / "paper")
RUN = [sys.executable, "-m", "tfsimclr.run"]
SET_BY_STUDY = ("mode", "seed", "workdir")
# Two runs that differ in these only are one: all features are scored by either.
NOT_COMPARED = (
    *("mode", "workdir", "cache_dir", "feature"),
    *("keep_checkpoints", "checkpoint_minutes"),
)
LOOK_EVERY = 5.0  # seconds, at a run that is going


@dataclasses.dataclass
class Run:
    """One pretraining with its evaluation; `row` is the first row that needs it."""

    row: str
    folder: pathlib.Path
    config: configs.Config

    @property
    def name(self) -> str:
        return self.folder.name

    def epochs_done(self) -> int:
        with contextlib.suppress(OSError):
            lines = (self.folder / "history.csv").read_text().splitlines()
            return min(max(len(lines) - 1, 0), self.config.epochs)
        return 0

    def is_finished(self) -> bool:
        """Whether result.json is that of the whole run, with these settings."""
        try:
            result = json.loads((self.folder / "result.json").read_text())
            done, found = result["pretrain"]["epochs"], result["config"]
        except (OSError, ValueError, KeyError):
            return False
        asked = {k: v for k, v in compared(self.config) if v not in (None, "auto")}
        return done >= self.config.epochs and asked.items() <= found.items()


def compared(config: configs.Config) -> tuple:
    """Returns the settings by which runs are told apart, as (name, value) pairs."""
    values = dataclasses.asdict(config)
    return tuple((k, v) for k, v in values.items() if k not in NOT_COMPARED)


def parsed(lines: list[str]) -> flags.FlagValues:
    """Returns the flag values of lines like `--epochs=3`."""
    values = flags.FlagValues()
    configs.define_flags(values)
    values.set_gnu_getopt(True)
    rest = values(["study", *lines])[1:]
    if rest:
        raise ValueError(f"Expected flags only (--name=value), got {rest}.")
    return values


def base_and_own(path: pathlib.Path) -> tuple[list[str], list[str]]:
    """Returns what a row takes from elsewhere and what its own folder says of it."""
    base, own = [], []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        name, _, value = line.strip().lstrip("-").partition("=")
        if name == "flagfile":
            inner = path.parent / os.path.expanduser(value)
            if inner.parent.resolve() == path.parent.resolve():
                inner_base, inner_own = base_and_own(inner)
                base, own = base + inner_base, own + inner_own
            else:
                base += command_line.expanded([f"--flagfile={inner}"])
        elif line.strip().startswith("-"):
            own.append(line.strip())
    return base, own


def row_files(places: str) -> dict[str, pathlib.Path]:
    """Returns {row name: flagfile} of folders or files, divided by commas."""
    files = []
    for place in map(pathlib.Path, places.split(",")):
        found = sorted(place.glob("*.flags")) if place.is_dir() else [place]
        if not found or not found[0].is_file():
            raise ValueError(f"--rows: {place} is no flagfile and no folder of such.")
        files += found
    rows = {path.stem: path for path in files}
    if len(rows) < len(files):
        raise ValueError("--rows: two rows have the same name, rename one of the files.")
    return rows


def plan(rows, overrides: list[str], seeds: int, out: pathlib.Path, known=()):
    """Returns ({row: its entry in study.json}, [Run]), all rows of a seed together.

    Args:
        rows: {name: flagfile}. A value that the file (or another in its folder) sets
            wins over `overrides`, which win over what it includes from elsewhere.
        overrides: Flags for every row.
        seeds: How many; 0, 1, ...
        out: Where the run folders are.
        known: Runs that exist, to be shared where their settings are the same.
    """
    entries = {}
    for name, path in rows.items():
        command_line.expanded([f"--flagfile={path}"])  # refuses what is no flagfile
        base, own = base_and_own(path)
        entries[name] = {
            "group": path.resolve().parent.name,
            "own": own,
            "lines": base + overrides + own,
            "runs": {},
        }
    known = {compared(run.config): run for run in known}
    runs = {}
    for seed in range(seeds):
        for name, entry in entries.items():
            folder = out / f"{name}-seed{seed}"
            lines = [*entry["lines"], f"--seed={seed}", f"--workdir={folder}"]
            try:
                config = configs.from_flags(parsed(lines)).with_optimizer_defaults()
            except ValueError as error:
                raise ValueError(f"{rows[name]}: {error}") from None
            run = known.setdefault(compared(config), Run(name, folder, config))
            runs[run.name] = run
            entry["runs"][str(seed)] = run.name
            entry["feature"] = config.feature
    for entry in entries.values():
        del entry["lines"]
    return entries, list(runs.values())


class Study:
    """The runs of a folder and what is known of them, kept in study.json."""

    def __init__(self, out: pathlib.Path, overrides: dict):
        self.out = out
        self.state = {"overrides": overrides, "rows": {}, "runs": {}}
        if (out / "study.json").exists():
            self.state = json.loads((out / "study.json").read_text())
            before = self.state["overrides"]
            ours, theirs = ({**x, "cache_dir": 0} for x in (overrides, before))
            if ours != theirs:
                raise ValueError(
                    f"{out} holds a study of other settings: {before} there, "
                    f"{overrides} here. Give the same flags or another --out."
                )
        self.runs = {
            name: Run(x["row"], out / name, configs.Config(**x["config"]))
            for name, x in self.state["runs"].items()
        }

    def add(self, rows: dict, runs: list[Run]) -> None:
        for name, row in rows.items():
            before = self.state["rows"].get(name, {"runs": {}})
            row["runs"] = {**before["runs"], **row["runs"]}
            self.state["rows"][name] = row
        for run in runs:
            self.runs[run.name] = run
            entry = self.state["runs"].setdefault(
                run.name, {"row": run.row, "state": "waiting", "seconds": 0.0}
            )
            entry["config"] = dataclasses.asdict(run.config)

    def save(self) -> None:
        partial = self.out / ".study.json"
        partial.write_text(json.dumps(self.state, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.out / "study.json")

    def progress(self, runs: list[Run], extra_seconds: float = 0.0) -> str:
        """Returns how much is done, and the time left at the pace so far."""
        spent = extra_seconds + sum(x["seconds"] for x in self.state["runs"].values())
        timed = sum(run.epochs_done() for run in self.runs.values())
        total = sum(run.config.epochs for run in runs)
        done = sum(run.epochs_done() for run in runs)
        text = f"{done / total:.0%} of the study"
        if not timed or not spent:
            return text
        return f"{text}, about {duration(spent / timed * (total - done))} left"

    def execute(self, runs: list[Run]) -> bool:
        """Runs what is not finished; returns False if a signal stopped it."""
        (self.out / "logs").mkdir(exist_ok=True)
        with _Stop() as stop:
            for number, run in enumerate(runs, 1):
                if stop.asked:
                    return False
                entry = self.state["runs"][run.name]
                head = f"[{number}/{len(runs)}] {run.name}"
                if run.is_finished():
                    entry.update(state="finished", message="")
                    print(f"{head}: finished before", flush=True)
                    continue
                done = run.epochs_done()
                print(f"{head}: {'resumed after epoch ' + str(done) if done else 'started'}")
                entry.update(state="running", message="")
                self.save()
                self._one(run, entry, head, runs, stop)
                self.save()
                note = f" ({entry['message']})" if entry["message"] else ""
                print(f"{head}: {entry['state']}{note}; {self.progress(runs)}", flush=True)
            return not stop.asked

    def _one(self, run, entry, head, runs, stop) -> None:
        log = self.out / "logs" / f"{run.name}.txt"
        start = time.monotonic()
        with open(log, "ab") as file:
            # A session of its own: Ctrl-C reaches it through us, once.
            child = stop.watch(
                subprocess.Popen(
                    [*RUN, *run.config.lines()],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
            code = None
            while code is None:
                try:
                    code = child.wait(LOOK_EVERY)
                except subprocess.TimeoutExpired:
                    if sys.stdout.isatty():
                        so_far = self.progress(runs, time.monotonic() - start)
                        epoch = f"epoch {run.epochs_done()} of {run.config.epochs}"
                        print(f"\r\033[K{head}: {epoch}; {so_far}", end="", flush=True)
        if sys.stdout.isatty():
            print("\r\033[K", end="")
        entry["seconds"] += time.monotonic() - start
        if code == 0 and run.is_finished():
            entry["state"] = "finished"
        elif stop.asked:
            entry["state"] = "interrupted"
        else:
            said = log.read_text(errors="replace").strip().splitlines()
            entry["state"] = "failed"
            entry["message"] = said[-1] if said else f"exit code {code}"


