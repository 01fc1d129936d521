"""Starts a run on several workers of this machine, to try --strategy=multi_worker.

Every worker is a process with its own `TF_CONFIG` on a free port. Lines of their output
begin with the name of the worker. Ctrl-C and SIGTERM go to all workers, which save and
end at the same step.

Example:
    python scripts/launch.py --workers=2 -- --epochs=2 --workdir=runs/two
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading


def free_ports(count: int) -> list[int]:
    """Returns ports of this machine that no program uses."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def environment(addresses: list[str], index: int, base=os.environ) -> dict[str, str]:
    """Returns the environment of one worker."""
    task = {"type": "worker", "index": index}
    config = json.dumps({"cluster": {"worker": addresses}, "task": task})
    return {**base, "TF_CONFIG": config, "PYTHONUNBUFFERED": "1"}


def run(commands: list[list[str]], addresses: list[str]) -> int:
    """Runs one command for each worker.

    Args:
        commands: Command line of each worker.
        addresses: `host:port` of each worker.

    Returns:
        0 if all workers end with 0, otherwise the first other exit status; a signal is
        its number above 128, as in a shell.
    """
    processes = [
        subprocess.Popen(
            command,
            env=environment(addresses, index),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C in a terminal would reach the workers a second time.
            start_new_session=True,
        )
        for index, command in enumerate(commands)
    ]

    def forward(number, frame):
        for process in processes:
            process.send_signal(number)

    before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    printing = threading.Lock()

    def copy(index: int, process: subprocess.Popen) -> None:
        for line in process.stdout:
            with printing:
                sys.stdout.buffer.write(f"[worker {index}] ".encode() + line)
                sys.stdout.buffer.flush()

    threads = [
        threading.Thread(target=copy, args=pair) for pair in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
    try:
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for thread in threads:
            thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    return next((_status(p.returncode) for p in processes if p.returncode), 0)


def _status(code: int) -> int:
    return 128 - code if code < 0 else code


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="Number of workers (default: 2)."
    )
    parser.add_argument("flags", nargs="*", help="Flags of tfsimclr, after --.")
    arguments = parser.parse_args()
    if arguments.workers < 2:
        parser.error(f"--workers must be at least 2, got {arguments.workers}.")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(arguments.workers)]
    command = [
        *(sys.executable, "-m", "tfsimclr.run", "--strategy=multi_worker"),
        *arguments.flags,
    ]
    sys.exit(run([command] * arguments.workers, addresses))


if __name__ == "__main__":
    main()
