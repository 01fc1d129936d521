"""Where the time of an epoch goes: TensorFlow's profiler and cProfile.

python scripts/bench_profile.py <settings as JSON>     what bench.py runs
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

import bench_tools

CASES = {
    "full": {
        **{"stem": "medium", "size": 32, "batch": 128, "images": 4000, "width": 0.25},
        **{"steps": 31, "resident": False},
    },
    "tiny": {
        **{"stem": "medium", "size": 16, "batch": 8, "images": 64, "width": 0.125},
        **{"steps": 4, "resident": False},
    },
}
# By words in an operation's name, the first that fits.
PARTS = {
    "optimizer": ("sgd", "adam", "lars"),
    "head": ("projection_head",),
    "encoder": ("encoder", "stage", "stem"),
    "moving statistics and others of the encoder's batch norms": ("_bn",),
}
REST = "views, loss, records"


def measure(options) -> dict:
    command = [sys.executable, str(pathlib.Path(__file__).resolve())]
    done = subprocess.run(
        [*command, json.dumps(CASES[options.size])], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"The profile failed: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    tables = {
        "Part": shares(found["parts"], 6),
        "Operation": shares(found["operations"], 12),
        "Function of the host": shares(found["host"], 8, found["wall"]),
    }
    return {"rows": [], "tables": tables, "paragraphs": [words(found)], "clock": "wall"}


def shares(seconds: dict, most: int, whole: float = 0.0) -> list[list[str]]:
    """Returns rows [name, milliseconds, share], largest first."""
    whole = whole or sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])[:most]
    return [[name, f"{1e3 * s:.0f} ms", f"{s / whole:.1%}"] for name, s in ordered]


def words(found: dict) -> str:
    parts, operations = found["parts"], found["operations"]
    whole = sum(parts.values())
    convolutions = sum(s for name, s in operations.items() if "Conv2D" in name)
    inside = found["host"].get("TensorFlow's own calls", 0.0)
    return (
        f"One epoch of {found['steps']} steps of the quarter-width ResNet-18 in `fit`: "
        f"{found['wall']:.1f} s. Of the operations' time (added up over the threads "
        f"that ran them) {convolutions / whole:.0%} is convolutions, "
        f"{parts.get('encoder', 0.0) / whole:.0%} the encoder as a whole, "
        f"{parts.get(REST, 0.0) / whole:.0%} {REST}, "
        f"{parts.get('optimizer', 0.0) / whole:.0%} the optimizer. The host waits in "
        f"TensorFlow's own calls {inside / found['wall']:.0%} of the time; the rest is "
        "Python, of Keras's `fit` and its callbacks."
    )


def profile(settings: dict) -> dict:
    """Returns seconds of an epoch by part, operation and function of the host."""
    import bench_child
    import tensorflow as tf

    work, _ = bench_child.fit({**bench_child.NETWORK, **settings})
    work()
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        work()
        tf.profiler.experimental.stop()
        operations, parts = of_trace(next(pathlib.Path(folder).glob("**/*.xplane.pb")))
    host = cProfile.Profile()
    took = bench_tools.timed(lambda: host.runcall(work) and None)
    return {
        **{"operations": operations, "parts": parts, "host": of_host(host)},
        **{"wall": took["wall"], "steps": settings["steps"] + 1},
    }


def of_trace(path: pathlib.Path) -> tuple[dict, dict]:
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
                path_of, _, kind = name.rpartition(":")
                if not path_of or " " in name or "::" in name:
                    continue  # a function of the runtime, not an operation
                seconds = event.duration_ps / 1e12
                operations[kind.removeprefix("_MklNative")] += seconds
                parts[part_of(path_of)] += seconds
    return dict(operations), dict(parts)


def part_of(name: str) -> str:
    for part, marks in PARTS.items():
        if any(mark in name.lower() for mark in marks):
            return part
    return REST


def of_host(profiled: cProfile.Profile) -> dict[str, float]:
    """Returns the seconds that functions took themselves; TensorFlow's are one."""
    found: dict = collections.Counter()
    for (file, _, function), row in pstats.Stats(
        profiled, stream=io.StringIO()
    ).stats.items():
        native = "pywrap" in function or "pywrap" in file or "TFE_Py" in function
        name = f"{pathlib.Path(file).name}: {function}"
        found["TensorFlow's own calls" if native else name] += row[2]
    return dict(found)


if __name__ == "__main__":
    print(json.dumps(profile(json.loads(sys.argv[1]))))
