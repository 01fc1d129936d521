"""Where the time of an epoch goes, by TensorFlow's profiler and cProfile.

python -m bench.profile <settings as JSON>     with scripts/ on PYTHONPATH
"""

import collections
import cProfile
import io
import json
import pathlib
import pstats
import subprocess
import sys
import tempfile

from bench import harness, training_tasks

CASES = {
    "full": {
        "stem": "medium",
        "size": 32,
        "batch": 128,
        "images": 4000,
        "width": 0.25,
        "steps": 31,
        "resident": False,
    },
    "tiny": {
        "stem": "medium",
        "size": 16,
        "batch": 8,
        "images": 64,
        "width": 0.125,
        "steps": 4,
        "resident": False,
    },
}
# Part -> words in the name of an operation; the first part that matches counts.
PARTS = {
    "optimizer": ("sgd", "adam", "lars"),
    "head": ("projection_head",),
    "encoder": ("encoder", "stage", "stem"),
    "moving statistics and other operations of the encoder's batch norms": ("_bn",),
}
OTHER = "views, loss, records"
NATIVE = "TensorFlow's own calls"


def measure(options) -> dict:
    done = subprocess.run(
        harness.python_command("profile", json.dumps(CASES[options.size])),
        capture_output=True,
        text=True,
        env=harness.environment(),
    )
    if done.returncode:
        raise RuntimeError(f"The profile failed: {done.stderr.strip()[-500:]}")
    measured = json.loads(done.stdout.splitlines()[-1])
    tables = {
        "Part": shares(measured["parts"], 6),
        "Operation": shares(measured["operations"], 12),
        "Function of the host": shares(measured["host"], 8, measured["wall"]),
    }
    paragraphs = [summary(measured)]
    return {"rows": [], "tables": tables, "paragraphs": paragraphs, "clock": "wall"}


def shares(seconds: dict, count: int, total: float = 0.0) -> list[list[str]]:
    """Returns the `count` largest as rows [name, milliseconds, share of the total]."""
    total = total or sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])[:count]
    return [[name, f"{1e3 * s:.0f} ms", f"{s / total:.1%}"] for name, s in ordered]


def summary(measured: dict) -> str:
    parts, operations = measured["parts"], measured["operations"]
    total, wall = sum(parts.values()), measured["wall"]
    convolutions = sum(s for name, s in operations.items() if "Conv2D" in name)
    native = measured["host"].get(NATIVE, 0.0)
    return (
        f"One epoch of {measured['steps']} steps of the quarter-width ResNet-18 in "
        f"`fit`: {wall:.1f} s. Of the operations' time (summed over the threads that "
        f"ran them) {convolutions / total:.0%} is convolutions, "
        f"{parts.get('encoder', 0.0) / total:.0%} the encoder as a whole, "
        f"{parts.get(OTHER, 0.0) / total:.0%} {OTHER}, "
        f"{parts.get('optimizer', 0.0) / total:.0%} the optimizer. The host spends "
        f"{native / wall:.0%} of the time in TensorFlow's own calls; the rest is "
        "Python code of Keras's `fit` and its callbacks."
    )


def profile(settings: dict) -> dict:
    """Returns seconds of an epoch by part, by operation and by function of the host."""
    import tensorflow as tf

    task, _ = training_tasks.fit(settings)
    task()
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        task()
        tf.profiler.experimental.stop()
        trace = next(pathlib.Path(folder).glob("**/*.xplane.pb"))
        operations, parts = operation_seconds(trace)
    host = cProfile.Profile()
    timing = harness.time_call(lambda: host.runcall(task) and None)
    return {
        "operations": operations,
        "parts": parts,
        "host": host_seconds(host),
        "wall": timing["wall"],
        "steps": settings["steps"] + 1,
    }


def operation_seconds(path: pathlib.Path) -> tuple[dict, dict]:
    """Returns seconds by kind of operation and by part, of a TensorBoard profile."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.ParseFromString(path.read_bytes())
    operations: dict = collections.Counter()
    parts: dict = collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                path_of_operation, _, kind = name.rpartition(":")
                if not path_of_operation or " " in name or "::" in name:
                    continue  # a function of the runtime, not an operation
                seconds = event.duration_ps / 1e12
                operations[kind.removeprefix("_MklNative")] += seconds
                parts[part_of(path_of_operation)] += seconds
    return dict(operations), dict(parts)


def part_of(name: str) -> str:
    """Returns the part of the step to which an operation belongs, by its name."""
    for part, words in PARTS.items():
        if any(word in name.lower() for word in words):
            return part
    return OTHER


def host_seconds(profiled: cProfile.Profile) -> dict[str, float]:
    """Returns each Python function's own seconds; TensorFlow's calls are one entry."""
    seconds: dict = collections.Counter()
    stats = pstats.Stats(profiled, stream=io.StringIO()).stats  # type: ignore
    for (file, _, function), row in stats.items():
        native = "pywrap" in function or "pywrap" in file or "TFE_Py" in function
        name = NATIVE if native else f"{pathlib.Path(file).name}: {function}"
        seconds[name] += row[2]
    return dict(seconds)


if __name__ == "__main__":
    print(json.dumps(profile(json.loads(sys.argv[1]))))
