"""What all benchmarks share: rounds of measurements, worker processes, JSON records.

Imports only the standard library: a worker may run in an environment that has PyTorch
and nothing of ours.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn")
# Processor features that decide how fast low precision is.
FAST_TYPES = {"avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16"}
SCRIPTS = pathlib.Path(__file__).resolve().parent.parent


def measure_rounds(tasks: dict, count: int, warm_up: int = 1) -> dict[str, list[dict]]:
    """Runs every task once per round, one after the other; returns their timings.

    Measuring in turn (A B A B ...) exposes all tasks to the same disturbances.

    Args:
        tasks: Name -> callable that returns {"wall": seconds, "cpu": seconds, ...}.
        count: Rounds that are measured.
        warm_up: Rounds before them that are not.

    Returns:
        Name -> the timing of every measured round.
    """
    timings: dict = {name: [] for name in tasks}
    for number in range(warm_up + count):
        for name, task in tasks.items():
            timing = task()
            if number >= warm_up:
                timings[name].append(timing)
    return timings


def ratios(upper: list[dict], lower: list[dict], clock: str = "wall") -> list[float]:
    """Returns upper / lower of every round."""
    return [a[clock] / b[clock] for a, b in zip(upper, lower, strict=True)]


def row(
    what: str,
    against: str,
    values: list[float],
    least: float | None = None,
    most: float | None = None,
    form: str = "{:.2f}x",
) -> dict:
    """Returns one row of the report's table.

    Args:
        what: What was measured.
        against: What it was compared with.
        values: One per round; the result is their median.
        least: Smallest value that meets the target, or None.
        most: Largest value that meets the target, or None.
        form: Format string of a value.
    """
    return {
        "what": what,
        "against": against,
        "least": least,
        "most": most,
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "rounds": len(values),
        "form": form,
    }


def time_call(task) -> dict:
    """Returns the seconds that a call takes, updated by the dict that it returns."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    reported = task() or {}
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return {"wall": wall, "cpu": cpu, **reported}


def cpu_seconds() -> float:
    """Returns the processor time of this process and of its children that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def python_command(module: str, *arguments: str, python: str = sys.executable):
    """Returns the command that runs a module of this package.

    It needs `environment()`, so that Python finds the package.
    """
    return [python, "-m", f"bench.{module}", *arguments]


def environment(variables: dict | None = None) -> dict[str, str]:
    """Returns this process's environment with `scripts/` on the module path."""
    path = filter(None, (str(SCRIPTS), os.environ.get("PYTHONPATH")))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **(variables or {})}


class Worker:
    """A process that performs its task once per call, and waits in between.

    Args:
        command: Command of a program that calls `serve`.
        variables: Environment variables in addition to those of this process.

    Raises:
        RuntimeError: If the process ends early; the message has its last output.
    """

    def __init__(self, command: list[str], variables: dict | None = None):
        self.command = command
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(variables),
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        # Closing writes what an earlier call could not.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def ready(self) -> dict:
        """Waits until the task is prepared; returns what the worker reports then."""
        return self._answer()

    def __call__(self) -> dict:
        # If the process has ended, `_answer` says why.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(
                f"{' '.join(self.command)} ended with {self._process.returncode}: "
                f"{' '.join(lines[-3:])}"
            )
        return json.loads(line)


def serve(prepare) -> None:
    """The worker's side of `Worker`: prepares, then runs the task once per input line.

    Args:
        prepare: Returns (task, what to report when ready).
    """
    answers = answer_channel()
    task, reported = prepare()
    print(json.dumps(reported), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(time_call(task)), file=answers, flush=True)


def answer_channel():
    """Returns the standard output as a file and sends all other output to stderr.

    What libraries print must not be mistaken for an answer.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def tensorflow_worker(task: str, **settings) -> Worker:
    """Returns a worker for one of worker.TASKS.

    Args:
        task: Name of the task.
        **settings: Of the task; also `environment`, variables of the process, and
            `gpu`, whether it may use a GPU (no).
    """
    variables = {"TF_CPP_MIN_LOG_LEVEL": "3", **settings.pop("environment", {})}
    if not settings.get("gpu"):
        variables["CUDA_VISIBLE_DEVICES"] = "-1"
    return Worker(python_command("worker", task, json.dumps(settings)), variables)


@contextlib.contextmanager
def workers(started: dict):
    """Waits until all workers are ready; yields what they report; ends them.

    Args:
        started: Name -> Worker.
    """
    try:
        yield {name: worker.ready() for name, worker in started.items()}
    finally:
        for worker in started.values():
            worker.__exit__()


def machine() -> dict:
    """Returns the processor's name, the number of usable cores, and its fast types."""
    processor = {"model name": platform.processor() or platform.machine(), "flags": ""}
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        name, _, value = line.partition(":")
        processor[name.strip()] = value.strip()
    return {
        "cpu": processor["model name"],
        "cores": len(os.sched_getaffinity(0)),
        "fast_types": sorted(set(processor["flags"].split()) & FAST_TYPES),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of those PACKAGES that are installed."""
    numbers = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            numbers[package] = importlib.metadata.version(package)
    return numbers


def save(folder: pathlib.Path, name: str, result: dict, command: str, seconds: float):
    """Writes one benchmark's JSON record, with date, machine, versions and commit."""
    from tfsimclr import files
    from tfsimclr.runs import results  # imports TensorFlow

    record = {
        "benchmark": name,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds),
        "machine": machine(),
        "versions": {**versions(), **result.pop("versions", {})},
        "commit": results.git_commit(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**record, **result}, indent=2) + "\n"
    files.write_atomically(folder / f"{name}.json", text.encode())
