import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.quick
SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "launch.py"

# launch.py with another program in place of tfsimclr.
OTHER = """
import sys
sys.path.insert(0, {folder!r})
import launch
command = [sys.executable, "-c", {program!r}]
addresses = [f"127.0.0.1:{{port}}" for port in launch.free_ports(2)]
sys.exit(launch.run([command] * 2, addresses))
"""
INDEX = (
    "import json, os; c = json.loads(os.environ['TF_CONFIG']); i = c['task']['index'];"
)


def start(program):
    code = OTHER.format(folder=str(SCRIPT.parent), program=INDEX + program)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )


def test_every_worker_has_its_index_and_lines_have_its_name():
    process = start("print(i, len(set(c['cluster']['worker'])))")
    output, _ = process.communicate(timeout=30)
    assert sorted(output.splitlines()) == ["[worker 0] 0 2", "[worker 1] 1 2"]
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("exit(3 * i)", 3),
        ("import signal; i and os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_the_exit_status_is_that_of_a_worker_that_fails(program, status):
    process = start(program)
    process.communicate(timeout=30)
    assert process.returncode == status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_all_workers(number):
    process = start(
        "import signal, sys, time;"
        "stop = lambda n, f: (print('got', n), sys.exit(i));"
        "signal.signal(2, stop); signal.signal(15, stop);"
        "print('ready', flush=True); time.sleep(30)"
    )
    ready = [process.stdout.readline() for _ in range(2)]
    assert all("ready" in line for line in ready)
    os.kill(process.pid, number)
    start_time = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - start_time < 10
    expected = [f"[worker {i}] got {int(number)}" for i in range(2)]
    assert sorted(output.splitlines()) == expected
    assert process.returncode == 1


def test_one_worker_is_refused():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--workers=1"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "at least 2, got 1" in done.stderr
