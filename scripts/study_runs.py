"""The runs of a study: one process after the other, and a record of them."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import study_plan

from tfsimclr.settings import config as configs

COMMAND = [sys.executable, "-m", "tfsimclr.run"]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_EVERY = 5.0  # seconds, at a run that is going on


class Study:
    """The runs of a folder and what became of them, kept in study.json.

    Args:
        out: The folder; it need not exist.
        settings: The flags given for every row; None takes those of the folder.

    Raises:
        ValueError: If the folder holds a study of other settings.
    """

    def __init__(self, out: pathlib.Path, settings: dict | None = None):
        self.out = out
        self.state = {"settings": settings or {}, "rows": {}, "runs": {}}
        path = out / "study.json"
        if path.exists():
            self.state = json.loads(path.read_text(encoding="utf-8"))
            before = self.state["settings"]
            settings = before if settings is None else settings
            if {**before, "cache_dir": ""} != {**settings, "cache_dir": ""}:
                raise ValueError(
                    f"{out} holds a study of other settings: "
                    f"{study_plan.as_flags(before)} there, "
                    f"{study_plan.as_flags(settings)} here. "
                    "Give the same flags or another --out."
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
            runs_of_row = {**before["runs"], **row["runs"]}
            self.state["rows"][name] = {**row, "runs": runs_of_row}
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
                print(f"{head}: {run.state()}", flush=True)
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
            child = stop.start([*COMMAND, *run.config.lines()], log)
            while child.poll() is None:
                try:
                    child.wait(LOOK_EVERY)
                except subprocess.TimeoutExpired:
                    if sys.stdout.isatty():
                        text = self.progress(runs, time.monotonic() - start)
                        epoch = f"epoch {run.epochs_done()} of {run.config.epochs}"
                        # Written over by whatever is printed next.
                        print(f"\033[K{head}: {epoch}; {text}", end="\r", flush=True)
        entry = self.entry(run)
        entry["seconds"] += time.monotonic() - start
        if child.returncode == 0 and run.result():
            entry["state"] = "finished"
        elif stop.asked:
            entry["state"] = "interrupted"
        else:
            entry.update(state="failed", message=self._reason(run, child.returncode))

    def _reason(self, run, code: int) -> str:
        if code < 0:
            return f"Ended by {signal.Signals(-code).name}."
        said = self.log(run.name).read_text(errors="replace").strip().splitlines()
        return (
            said[-1]
            if code and said
            else f"No scores in a result.json, exit code {code}."
        )


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
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
