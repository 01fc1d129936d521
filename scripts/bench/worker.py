"""The TensorFlow side of a benchmark: a process that performs one task on request.

python -m bench.worker <task> <settings as JSON>     with scripts/ on PYTHONPATH
"""

import importlib
import json
import sys

from bench import harness

# Task -> the module that has a function of that name, which takes the settings and
# returns (callable to time, what to report when ready).
TASKS = {
    "step": "training_tasks",
    "network": "training_tasks",
    "fit": "training_tasks",
    "loss": "nt_xent",
    "probe": "evaluate",
    "growth": "growth",
    "memory": "memory",
    "plan": "plan",
    "gpu_steps": "gpu",
    "peer_train": "peer",
    "peer_feed": "peer",
}


def main() -> None:
    task, settings = sys.argv[1], json.loads(sys.argv[2])
    module = importlib.import_module(f"bench.{TASKS[task]}")
    harness.serve(lambda: getattr(module, task)(settings))


if __name__ == "__main__":
    main()
