"""Workers of a cluster on this machine, as threads and as processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

from tfsimclr.distribution.cluster import Cluster

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The command line, with something that happens to this worker after a step of the run.
PROGRAM = """
import errno, json, os, signal, time
from tfsimclr import run
run._tensorflow()
from tfsimclr.distribution import replicas
from tfsimclr.training import recorder

fuse = json.loads(os.environ["FUSE"])
if fuse.get("event") == "full disk":
    from tfsimclr.modes import evaluate

    def fail(*_):
        time.sleep(3)  # the other worker waits
        raise OSError(errno.ENOSPC, "No space left on device", "result.json")

    evaluate.evaluate = fail
flush, batch_end = os.fsync, recorder.Recorder.on_train_batch_end
armed = []

def fsync(handle):
    if armed:
        os.ftruncate(handle, 1000)
        os.kill(os.getpid(), signal.SIGKILL)
    flush(handle)

def on_train_batch_end(self, batch, logs=None):
    if int(replicas.local_value(self.model.step)) == fuse["step"]:
        if fuse["event"] == "SIGKILL while saving":
            armed.append(True)
            self.save()
        elif fuse["event"] == "hang":
            time.sleep(1000)
        else:
            os.kill(os.getpid(), getattr(signal, fuse["event"]))
    batch_end(self, batch, logs)

os.fsync = fsync
if fuse.get("step"):
    recorder.Recorder.on_train_batch_end = on_train_batch_end
run.main()
"""


def free_ports(count):
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def local_cluster(size, position=0, ports=None):
    ports = ports or free_ports(size)
    names = tuple(f"worker {i}" for i in range(size))
    return Cluster(names, tuple(f"127.0.0.1:{p}" for p in ports), position)


def in_threads(*functions):
    """Runs functions at the same time.

    Returns:
        For each what it returns, or the exception that it raises.
    """
    results = [None] * len(functions)

    def call(index):
        try:
            results[index] = functions[index]()
        except Exception as error:
            results[index] = error

    threads = [
        threading.Thread(target=call, args=[i], daemon=True)
        for i in range(len(functions))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return results


class Processes:
    """One process of the command line for each worker.

    Args:
        flags: Flags of each worker.
        fuses: `{worker: (event, step)}`.
        ports: Port of each worker, or None.
        started: The workers to start, or None for all.
        environment: More variables.
    """

    def __init__(self, flags, fuses=None, ports=None, started=None, environment=None):
        addresses = [f"127.0.0.1:{p}" for p in ports or free_ports(len(flags))]
        self.processes = []
        for index, of_worker in enumerate(flags):
            if started is not None and index not in started:
                continue
            event, step = (fuses or {}).get(index, (None, None))
            task = {"type": "worker", "index": index}
            cluster = {"cluster": {"worker": addresses}, "task": task}
            variables = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TF_CONFIG": json.dumps(cluster),
                "FUSE": json.dumps({"event": event, "step": step} if event else {}),
                "TF_NUM_INTRAOP_THREADS": "1",
                **(environment or {}),
            }
            # It would show what the user sees of TensorFlow's own messages.
            variables.pop("TF_CPP_MIN_LOG_LEVEL", None)
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, *of_worker],
                    env=variables,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def wait(self, timeout=300):
        """Returns (return code, stdout, stderr) of each; kills what is left."""
        try:
            return [
                (p.returncode, out, err)
                for p in self.processes
                for out, err in [p.communicate(timeout=timeout)]
            ]
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                    process.communicate()
