"""What every benchmark shares: measuring in turn, child programs, results as JSON.

The standard library alone: the PyTorch child runs where nothing of ours is installed.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn")
FAST_TYPES = {"avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16"}
HERE = pathlib.Path(__file__).resolve().parent


def rounds(works: dict, count: int, warm: int = 1) -> dict[str, list[dict]]:
    """Does every work once a round, one after the other; returns what each took.

    Args:
        works: Name -> callable that returns {"wall": seconds, "cpu": seconds, ...}.
        count: Rounds that count.
        warm: Rounds before them that do not.
    """
    taken: dict = {name: [] for name in works}
    for number in range(warm + count):
        for name, work in works.items():
            took = work()
            if number >= warm:
                taken[name].append(took)
    return taken


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
    """Returns a line of the report.

    Args:
        what: That was measured.
        against: What it was compared with.
        values: One a round; their median is the result.
        least: Wanted at least.
        most: Wanted at most.
        form: How a value is written.
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


def timed(work) -> dict:
    """Returns what a call took, and what it says about itself."""
    wall, cpu = time.perf_counter(), time.process_time()
    said = work() or {}
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, **said}


class Child:
    """A program that works whenever told; when it is not, it takes no time.

    Args:
        command: Of a program that ends in `serve`.
        environment: Variables above those of this process.

    Raises:
        RuntimeError: If it ends; the message has its last words.
    """

    def __init__(self, command: list[str], environment: dict | None = None):
        self.command = command
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **(environment or {})},
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def ready(self) -> dict:
        """Waits until it is ready; returns what it says about itself."""
        return self._answer()

    def __call__(self) -> dict:
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            words = self._log.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(
                f"{' '.join(self.command)} ended with {self._process.returncode}: "
                f"{' '.join(words[-3:])}"
            )
        return json.loads(line)


def serve(prepare) -> None:
    """The other side of `Child`: prepares, then works once for every line it is sent.

    Args:
        prepare: Returns (work, what to say when ready).
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    work, about = prepare()
    print(json.dumps(about), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(timed(work)), file=answers, flush=True)


def tensorflow_child(work: str, **settings) -> Child:
    """Returns a child that does a work of bench_child.py, on the CPU unless told."""
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **settings.pop("environment", {})}
    if not settings.get("gpu"):
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
    command = [sys.executable, str(HERE / "bench_child.py"), work, json.dumps(settings)]
    return Child(command, environment)


def machine() -> dict:
    """Returns the processor, how many of its cores are ours, and its fast types."""
    about = {"model name": platform.processor() or platform.machine(), "flags": ""}
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        name, _, value = line.partition(":")
        about[name.strip()] = value.strip()
    return {
        "cpu": about["model name"],
        "cores": len(os.sched_getaffinity(0)),
        "fast_types": sorted(set(about["flags"].split()) & FAST_TYPES),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def save(folder: pathlib.Path, name: str, result: dict, command: str, seconds: float):
    """Writes one benchmark's JSON, with where and when it was made."""
    from tfsimclr.runs import results  # brings TensorFlow along

    about = {
        "benchmark": name,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds),
        "machine": machine(),
        "versions": {**versions(), **result.pop("versions", {})},
        "commit": results.git_commit(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.json"
    partial.write_text(json.dumps({**about, **result}, indent=2) + "\n")
    os.replace(partial, folder / f"{name}.json")
