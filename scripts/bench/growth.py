"""Works of a child that are runs, or parts of one, not single steps."""

import json
import os
import pathlib
import re
import shutil
import sys
import tempfile

import bench_child


def settings_of(given: dict, folder: str):
    """Returns (resolved config, data set) of settings that are flags' values."""
    from tfsimclr import build
    from tfsimclr.settings import config

    asked = config.Config(**{"workdir": folder, **given})
    dataset = build.dataset(asked)
    return resolve.resolve(asked, dataset), dataset


def growth(given):
    """One epoch, with its end, of a tiny network over a store of made images."""
    import time

    import keras

    from tfsimclr import build
    from tfsimclr.training import recorder, safeguards

    folder = tempfile.mkdtemp()
    config, _ = settings_of(given["flags"], folder)
    images = bench_child.made_store(given["images"], given["stored_size"])
    steps = len(images) // config.batch_size
    model = build.method(config, 100 * steps)
    schedule = build.schedule(config, steps)
    model.compile(build.optimizer(config, schedule, model.learned_variables))
    model.optimizer.build(model.learned_variables)
    journal = recorder.Recorder(
        folder,
        sample=images[:256],
        batch_size=config.batch_size,
        steps_per_epoch=steps,
        schedule=schedule,
        keep=2,
        minutes=60.0,
        meta={"images": ""},
    )
    watch = [safeguards.TerminateOnNonFinite(pathlib.Path(folder), schedule), journal]
    starts = []
    watch.append(
        keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: starts.append(time.perf_counter())
        )
    )

    def work():
        first = int(model.step)
        model.fit(
            batches.training_batches(
                images, config.batch_size, 0, first, first + steps
            ),
            callbacks=watch,
            shuffle=False,
            verbose=0,
        )
        return {"wall": time.perf_counter() - starts[-1], **resident()}

    return work, {"steps": steps}


def resident() -> dict:
    """Returns bytes of memory of our own, and of mapped files."""
    found = {}
    status = pathlib.Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        match = re.match(r"(RssAnon|RssFile):\s+(\d+) kB", line)
        if match:
            found[match[1]] = 1024 * int(match[2])
    return found


def first_step(given):
    """A run as the command line starts it, up to the end of its first step."""
    from tfsimclr import run
    from tfsimclr.training import recorder

    def end(*_, **logs):
        # Atexit handlers are of no interest, nor are TensorFlow's threads.
        print("{}", file=answers, flush=True)
        os._exit(0)

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from tfsimclr.settings.config import Config

    recorder.Recorder.on_train_batch_end = end
    run.run(Config(mode="pretrain", workdir=given["workdir"], **given["flags"]))


def import_and_compile(given):
    """What cannot be saved: TensorFlow's import, a network, its first step."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import numpy as np

    settings = {**bench_child.NETWORK, **given}
    shape = (settings["batch"], settings["size"], settings["size"], 3)
    bench_child.model_of(settings).train_on_batch(np.zeros(shape, "uint8"))
    print("{}", file=answers, flush=True)
    os._exit(0)


def plan(given):
    """The plan of a run, or (`real`) the run itself and what it took."""
    import time

    folder = tempfile.mkdtemp()
    config, dataset = settings_of(given["flags"], folder)

    def predicted():
        from tfsimclr.modes import plan

        return {"found": plan.measure(config, dataset)}

    def real():
        from tfsimclr.modes import pretrain
        from tfsimclr.runs import folder as run_folder
        from tfsimclr.training import checkpoints

        workdir = run_folder.prepare(config)
        start = time.perf_counter()
        pretrain.pretrain(config, dataset, workdir)
        seconds = time.perf_counter() - start
        _, meta = checkpoints.load_latest(workdir / "checkpoints")
        shutil.rmtree(folder)
        rates = sorted(row["images_per_second"] for row in meta["rows"])
        return {
            "found": {
                "seconds": seconds,
                "images_per_second": rates[len(rates) // 2],
                "peak_memory_bytes": meta["peak_memory_bytes"],
            }
        }

    return real if given["real"] else predicted, {}


ONCE = {"first_step": first_step, "import_and_compile": import_and_compile}

if __name__ == "__main__":
    ONCE[sys.argv[1]](json.loads(sys.argv[2]))
