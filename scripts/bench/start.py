"""How long a run takes from its command to the end of its first step.

python -m bench.start <task> <settings as JSON>     with scripts/ on PYTHONPATH
"""

import json
import os
import subprocess
import sys
import tempfile

from bench import harness, training_tasks

# The network that a run of FLAGS trains: the same graph is compiled.
NET = {"stem": "medium", "size": 32, "batch": 128, "width": 0.25, "optimizer": "adam"}
FLAGS = {
    "full": {"dataset": "textures"},
    "tiny": {"dataset": "textures", "backbone": "resnet10", "width": 0.125},
}


def measure(options) -> dict:
    """Measures the seconds to the first step against those that no program can save."""
    flags = FLAGS[options.size]

    def run():
        with tempfile.TemporaryDirectory() as folder:
            settings = {"workdir": f"{folder}/run", "flags": flags}
            return time_process("first_step", settings)

    net = {**NET, "depth": 10, "width": 0.125} if options.size == "tiny" else NET
    tasks = {"run": run, "bare": lambda: time_process("import_and_compile", net)}
    timings = harness.measure_rounds(tasks, options.pairs)
    row = harness.row(
        "start of a run to the end of its first step, warm store: seconds",
        "TensorFlow's import, the network, its compilation and first step",
        harness.ratios(timings["run"], timings["bare"]),
        most=1.5,
    )
    return {"rows": [row], "clock": "wall"}


def time_process(task: str, settings: dict) -> dict:
    """Returns the seconds of a process that performs one of TASKS and ends."""

    def start():
        done = subprocess.run(
            harness.python_command("start", task, json.dumps(settings)),
            capture_output=True,
            text=True,
            env=harness.environment(),
        )
        if not done.stdout:
            raise RuntimeError(f"{task} failed: {done.stderr[-500:]}")

    return harness.time_call(start)


def first_step(settings: dict) -> None:
    """A run as the command line starts it, up to the end of its first step."""
    from tfsimclr import run
    from tfsimclr.settings.config import Config
    from tfsimclr.training import recorder

    answers = harness.answer_channel()

    def end(*_, **logs):
        _end_process(answers)

    recorder.Recorder.on_train_batch_end = end  # type: ignore
    config = Config(mode="pretrain", workdir=settings["workdir"], **settings["flags"])
    run.run(config)


def import_and_compile(settings: dict) -> None:
    """What no program can save: TensorFlow's import, a network, its first step."""
    import numpy as np

    answers = harness.answer_channel()
    settings = {**training_tasks.NETWORK, **settings}
    shape = (settings["batch"], settings["size"], settings["size"], 3)
    training_tasks.build_model(settings).train_on_batch(np.zeros(shape, "uint8"))
    _end_process(answers)


def _end_process(answers) -> None:
    """Ends at once: exit handlers and TensorFlow's threads would add to the time."""
    print("{}", file=answers, flush=True)
    os._exit(0)


TASKS = {"first_step": first_step, "import_and_compile": import_and_compile}

if __name__ == "__main__":
    TASKS[sys.argv[1]](json.loads(sys.argv[2]))
