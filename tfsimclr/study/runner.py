"""Runs a study: its runs as processes, up to `jobs` at a time, and a record of them."""

import collections
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any, BinaryIO

from tfsimclr import files
from tfsimclr.errors import UserError
from tfsimclr.settings import config as configs
from tfsimclr.settings import options
from tfsimclr.study import plan

COMMAND = [sys.executable, "-m", "tfsimclr.run"]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DISPLAY_SECONDS = 5.0  # between two updates of the progress display
POLL_SECONDS = 0.1  # between two checks whether a run has ended


class Study:
    """The runs of a study folder and their states, stored in study.json.

    In study.json the experiments stand under "rows", and a run's experiment under
    "row", as in version 0.1.

    Args:
        out: The study folder; it need not exist.
        settings: The flags given for every experiment; None takes those of the folder.

    Raises:
        UserError: If study.json cannot be read or the study has other settings.
    """

    def __init__(self, out: pathlib.Path, settings: dict | None = None):
        self.out = out
        self.state: dict[str, Any] = {
            "settings": settings or {},
            "rows": {},
            "runs": {},
        }
        path = out / "study.json"
        if path.exists():
            self.state = _read(path)
            before = self.state["settings"]
            settings = before if settings is None else settings
            if {**before, "cache_dir": ""} != {**settings, "cache_dir": ""}:
                raise UserError(
                    f"{out} holds a study of other settings: {plan.to_text(before)} "
                    f"there, {plan.to_text(settings)} here. "
                    "Give the same flags or another --out."
                )
        self.runs = {
            name: plan.Run(x["row"], out / name, configs.from_saved(x["config"]))
            for name, x in self.state["runs"].items()
        }

    @property
    def experiments(self) -> dict[str, dict]:
        """{name: {"group", "own", "feature", "runs"}}, as `plan.plan` returns them."""
        return self.state["rows"]

    def entry(self, run: plan.Run) -> dict:
        """Returns a run's {"row", "state", "message", "seconds", "config"}."""
        return self.state["runs"][run.name]

    def log(self, name: str) -> pathlib.Path:
        """Returns the file with the output of the run of this name."""
        return self.out / "logs" / f"{name}.txt"

    def add(self, experiments: dict[str, dict], runs: list[plan.Run]) -> None:
        """Adds a plan to the experiments and seeds of earlier calls."""
        for name, experiment in experiments.items():
            before = self.experiments.get(name, {"runs": {}})
            all_seeds = {**before["runs"], **experiment["runs"]}
            self.experiments[name] = {**experiment, "runs": all_seeds}
        for run in runs:
            self.runs[run.name] = run
            self.state["runs"][run.name] = {
                **{"row": run.experiment, "state": "waiting"},
                **{"message": "", "seconds": 0.0},
                **self.state["runs"].get(run.name, {}),
                "config": dataclasses.asdict(run.config),
            }

    def save(self) -> None:
        """Writes study.json."""
        text = json.dumps(self.state, indent=2) + "\n"
        files.write_atomically(self.out / "study.json", text.encode())

    def progress(
        self, runs: list[plan.Run], seconds: float = 0.0, jobs: int = 1
    ) -> str:
        """Returns the share that is done, and the time left at the mean pace so far.

        Args:
            runs: The runs of the study.
            seconds: Sum of the times since the start of the active runs.
            jobs: Number of runs at a time.
        """
        seconds += sum(x["seconds"] for x in self.state["runs"].values())
        epochs = sum(run.epochs_done() for run in self.runs.values())
        total = sum(run.config.epochs for run in runs)
        # A failed run counts as done: it is not started again by this call.
        done = sum(
            run.config.epochs
            if self.entry(run)["state"] == "failed"
            else run.epochs_done()
            for run in runs
        )
        text = f"{done / total:.0%} of the study"
        if epochs and seconds:
            left = seconds / epochs * (total - done) / jobs
            text += f", about {duration(left)} left"
        return text

    def execute(self, runs: list[plan.Run], jobs: int = 1) -> bool:
        """Runs everything that is not finished.

        A run that fails or is killed is recorded as failed, and the others continue.

        Args:
            runs: The runs, started in this order.
            jobs: Number of runs at a time.

        Returns:
            False if a signal stopped the study.
        """
        (self.out / "logs").mkdir(exist_ok=True)
        waiting = collections.deque(enumerate(runs, 1))
        slots = collections.deque(_slots(jobs))
        active: list[_Job] = []
        next_display = time.monotonic() + DISPLAY_SECONDS
        with _Children() as children:
            while active or (waiting and not children.stopped):
                while waiting and slots and not children.stopped:
                    number, run = waiting.popleft()
                    title = f"[{number}/{len(runs)}] {run.name}"
                    if run.result():
                        self.entry(run).update(state="finished", message="")
                        _print_line(f"{title}: finished before")
                    else:
                        active.append(
                            self._start(run, title, slots.popleft(), children)
                        )
                for job in [job for job in active if job.process.poll() is not None]:
                    active.remove(job)
                    slots.append(job.slot)
                    self._finish(job, children.stopped)
                    entry = self.entry(job.run)
                    text = f"{entry['state']} {entry['message']}".strip()
                    seconds = sum(job.seconds() for job in active)
                    progress = self.progress(runs, seconds, jobs)
                    _print_line(f"{job.title}: {text}; {progress}")
                if active and time.monotonic() >= next_display:
                    next_display = time.monotonic() + DISPLAY_SECONDS
                    self._display(active, runs, jobs)
                if active:
                    _wait(active[0].process)
            self.save()
            return not children.stopped

    def _start(self, run, title: str, slot: "Slot", children: "_Children") -> "_Job":
        _print_line(f"{title}: {run.state()}")
        self.entry(run).update(state="running", message="")
        self.save()
        # Only what differs from the default: a setting that a method or mode does not
        # use is refused even at its default.
        arguments = [
            f"--{name}={options.to_flag_value(getattr(run.config, name))}"
            for name in sorted(run.config.changed())
        ]
        with open(self.log(run.name), "ab") as log:
            process = children.start([*COMMAND, *arguments], log, slot)
        return _Job(run, title, slot, process, time.monotonic())

    def _finish(self, job: "_Job", stopped: bool) -> None:
        """Records the state of a run whose process has ended."""
        entry, code = self.entry(job.run), job.process.returncode
        entry["seconds"] += job.seconds()
        if code == 0 and job.run.result():
            entry["state"] = "finished"
        elif stopped:
            entry["state"] = "interrupted"
        else:
            entry.update(state="failed", message=self._reason(job.run, code))
        self.save()

    def _reason(self, run: plan.Run, code: int) -> str:
        """Returns why a run failed: the signal or the last line of its output."""
        if code < 0:
            return f"Ended by {signal.Signals(-code).name}."
        output = self.log(run.name).read_text(errors="replace").strip().splitlines()
        if code and output:
            return output[-1]
        return f"No scores in a result.json, exit code {code}."

    def _display(self, active: list["_Job"], runs: list[plan.Run], jobs: int) -> None:
        """Overwrites the last line of the terminal with the progress."""
        if not sys.stdout.isatty():
            return
        seconds = sum(job.seconds() for job in active)
        epochs = ", ".join(
            f"{job.run.name} epoch {job.run.epochs_done()} of {job.run.config.epochs}"
            for job in active
        )
        text = f"{self.progress(runs, seconds, jobs)}; {epochs}"
        width = os.get_terminal_size().columns
        if width and len(text) >= width:  # a wrapped line could not be overwritten
            text = text[: width - 4] + "..."
        print(f"\033[K{text}", end="\r", flush=True)


@dataclasses.dataclass(frozen=True)
class Slot:
    """The part of the machine that one of several runs at a time gets.

    Attributes:
        cores: Numbers of its processor cores, or None for all of them.
        variables: Environment variables for its process.
    """

    cores: frozenset[int] | None = None
    variables: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Job:
    """A run whose process is active."""

    run: plan.Run
    title: str
    slot: Slot
    process: subprocess.Popen
    start: float

    def seconds(self) -> float:
        return time.monotonic() - self.start


def share(items: list, parts: int) -> list[list]:
    """Returns `parts` lists that divide the items as evenly as possible.

    With fewer items than parts, each list has one item, and items are shared.
    """
    if not items:
        return [[] for _ in range(parts)]
    if len(items) < parts:
        return [[items[i % len(items)]] for i in range(parts)]
    bounds = [i * len(items) // parts for i in range(parts + 1)]
    return [items[bounds[i] : bounds[i + 1]] for i in range(parts)]


def _slots(jobs: int) -> list[Slot]:
    """Returns the parts of the machine for `jobs` runs at a time.

    One run at a time gets the whole machine and an unchanged environment. Otherwise the
    cores are divided, and the GPUs if there are several. A variable that the user has
    set is left as it is.
    """
    if jobs == 1:
        return [Slot()]
    can_bind = hasattr(os, "sched_setaffinity")  # Linux only
    cores = sorted(os.sched_getaffinity(0)) if can_bind else range(os.cpu_count() or 1)
    gpus = visible_gpus()
    slots = []
    for of_job, gpus_of_job in zip(
        share(list(cores), jobs), share(gpus, jobs), strict=True
    ):
        threads = str(len(of_job))
        variables = {
            "TF_NUM_INTRAOP_THREADS": threads,
            "TF_NUM_INTEROP_THREADS": threads,
            # TensorFlow otherwise reserves the whole memory of a GPU for one process.
            **({"TF_FORCE_GPU_ALLOW_GROWTH": "true"} if len(gpus) < jobs else {}),
        }
        variables = {k: v for k, v in variables.items() if k not in os.environ}
        if len(gpus) > 1:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus_of_job)
        slots.append(Slot(frozenset(of_job) if can_bind else None, variables))
    return slots


def visible_gpus() -> list[str]:
    """Returns the numbers or names of the NVIDIA GPUs that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip()]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split() if done.returncode == 0 else []


class _Children:
    """Starts processes, and passes the signals that end this program on to them.

    If the block raises, the processes are ended as well.

    Attributes:
        stopped: Whether a signal has arrived.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.processes: list[subprocess.Popen] = []

    def __enter__(self):
        # nohup and "&" ignore a signal; it stays ignored.
        handled = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        self.before = {s: signal.signal(s, self._handle) for s in handled}
        return self

    def __exit__(self, *error):
        self._terminate()
        for process in self.processes:
            process.wait()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def start(self, command: list[str], log: BinaryIO, slot: Slot) -> subprocess.Popen:
        """Returns a new process that writes its output to `log`."""
        before = os.sched_getaffinity(0) if slot.cores else None
        try:
            if slot.cores:  # a new process has the cores of the one that starts it
                os.sched_setaffinity(0, slot.cores)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **slot.variables},
                # Ctrl-C goes to every process of a session. In a session of its own the
                # run receives it once, from us.
                start_new_session=True,
            )
        finally:
            if before:
                os.sched_setaffinity(0, before)
        self.processes = [p for p in self.processes if p.poll() is None] + [process]
        if self.stopped:  # the signal came while the process was started
            process.terminate()
        return process

    def _terminate(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        active = sum(process.poll() is None for process in self.processes)
        print(f"\nStopping: waiting for {active} runs to save.", flush=True)
        self._terminate()


def _read(path: pathlib.Path) -> dict:
    """Returns the content of study.json, with today's names of the settings."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        state["settings"] = configs.rename_old(state["settings"])
        for entry in state["runs"].values():
            entry["config"] = configs.rename_old(entry["config"])
        for experiment in state["rows"].values():
            experiment["own"] = configs.rename_old(experiment["own"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it and give the command of the study "
            "again; finished runs are not repeated."
        ) from None
    return state


def _wait(process: subprocess.Popen) -> None:
    try:
        process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        pass


def _print_line(text: str) -> None:
    # Clears the progress display, which has no newline.
    clear = "\033[K" if sys.stdout.isatty() else ""
    print(f"{clear}{text}", flush=True)


def duration(seconds: float) -> str:
    """Returns "3 h 20 min", "20 min" or "40 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
