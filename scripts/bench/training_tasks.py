"""The TensorFlow side of a benchmark: does one piece of work whenever told.

python scripts/bench_child.py <work> <settings as JSON>
"""

import importlib
import json
import sys
import tempfile

import bench_tools

NETWORK = {
    **{"precision": "float32", "jit": False, "depth": 18, "width": 1.0},
    **{"stem": "small", "size": 32, "batch": 128, "steps": 1, "seed": 0},
}


def model_of(settings):
    """Returns the compiled SimCLR of settings like NETWORK."""
    import keras
    import tensorflow as tf

    from tfsimclr.methods import simclr
    from tfsimclr.networks import heads, norms, resnet
    from tfsimclr.views import random_view

    if "tf32" in settings:
        tf.config.experimental.enable_tensor_float_32_execution(settings["tf32"])
    if not settings.get("fused", True):
        norms.SplitBatchNormalization._is_fusible = lambda self, maps: False
    keras.config.set_dtype_policy(settings["precision"])
    keras.utils.set_random_seed(settings["seed"])
    encoder = resnet.resnet(settings["depth"], settings["width"], settings["stem"])
    head = heads.ProjectionHead(2)
    model = simclr.SimCLR(encoder, head, random_view.Views(settings["size"]))
    optimizer = keras.optimizers.SGD(0.03, momentum=0.9)
    if settings.get("optimizer") == "adam":
        optimizer = keras.optimizers.Adam(3e-4)
    model.compile(optimizer=optimizer, jit_compile=settings["jit"])
    model.optimizer.build(model.learned_variables)
    return model


def views_of(settings):
    import tensorflow as tf

    size = settings["size"]
    shape = [2, settings["batch"], size, size, 3]
    return tf.unstack(tf.random.stateless_uniform(shape, [settings["seed"], 0]))


def about(model) -> dict:
    return {"parameters": sum(v.numpy().size for v in model.learned_variables)}


def step(settings):
    """A pretraining step without its views: network, loss, gradient, update."""
    import tensorflow as tf

    settings = {**NETWORK, **settings}
    model = model_of(settings)
    learned = model.learned_variables
    view_a, view_b = views_of(settings)

    @tf.function(jit_compile=settings["jit"])
    def update(view_a, view_b):
        with tf.GradientTape() as tape:
            loss, _ = model.objective(view_a, view_b)
            scaled = model.optimizer.scale_loss(loss)
        model.optimizer.apply(tape.gradient(scaled, learned), learned)
        return loss

    return repeated(lambda: update(view_a, view_b), settings["steps"]), about(model)


def network(settings):
    """Forward and backward of encoder and head alone."""
    import tensorflow as tf

    settings = {**NETWORK, **settings}
    model = model_of(settings)
    learned = model.learned_variables
    both = tf.concat(views_of(settings), axis=0)

    @tf.function(jit_compile=settings["jit"])
    def gradients(both):
        with tf.GradientTape() as tape:
            z = tf.cast(model(both, training=True)[-1], tf.float32)
            # Not of a constant: its gradient must reach every weight.
            total = tf.reduce_sum(z * tf.range(1.0, z.shape[1] + 1.0))
        # Its norm alone: whoever wants numbers of the step reads more than one.
        return tf.linalg.global_norm(tape.gradient(total, learned))

    return repeated(lambda: gradients(both), settings["steps"]), about(model)


def repeated(call, steps: int):
    """Returns work that waits for the result of the last of some calls."""

    def work():
        for _ in range(steps):
            result = call()
        result.numpy()

    return work


def fit(settings):
    """A whole step as a run takes it: the seconds of some steps inside of `fit`.

    Images come from the store, or (`resident`) one batch is there already.
    """
    import pathlib
    import time

    import keras
    import numpy as np
    import tensorflow as tf

    from tfsimclr.training import safeguards

    settings = {**NETWORK, **settings}

    class Clock(keras.callbacks.Callback):
        marks: list = []

        def on_train_batch_end(self, batch, logs=None):
            self.marks.append((time.perf_counter(), time.process_time()))

    model = model_of(settings)
    size, batch, steps = settings["size"], settings["batch"], settings["steps"]
    images = made_store(settings["images"], size)
    clock = Clock()
    watch = safeguards.TerminateOnNonFinite(
        pathlib.Path(tempfile.gettempdir()), lambda step: 0.0
    )

    def work():
        if settings["resident"]:
            one = tf.constant(np.array(images[:batch]))
            batches = tf.data.Dataset.from_tensors(one).repeat(steps + 1)
        else:
            first = int(model.step)
            batches = batches.training_batches(
                images, batch, 0, first, first + steps + 1
            )
        clock.marks = []
        model.fit(batches, callbacks=[watch, clock], shuffle=False, verbose=0)
        # Of the steps in the middle of an epoch: a pause lets batches wait.
        (wall, cpu), (end, cpu_end) = clock.marks[0], clock.marks[-1]
        return {"wall": (end - wall) / steps, "cpu": (cpu_end - cpu) / steps}

    return work, about(model)


def made_store(count: int, size: int):
    """Returns memory-mapped uint8 images of noise, in a file that is deleted."""
    import numpy as np

    draw = np.random.default_rng(0)
    file = tempfile.NamedTemporaryFile(suffix=".npy")
    images = np.lib.format.open_memmap(file.name, "w+", "u1", (count, size, size, 3))
    for i in range(0, count, 1024):
        block = images[i : i + 1024]
        block[:] = draw.integers(0, 256, block.shape, np.uint8)
    images.flush()
    del images
    opened = np.load(file.name, mmap_mode="r")
    file.close()  # the mapping keeps what is in it
    return opened


# Work -> the module that has it.
WORKS = {
    **{"step": "bench_child", "network": "bench_child", "fit": "bench_child"},
    **{"growth": "bench_child_runs", "plan": "bench_child_runs"},
    **{"loss": "bench_loss", "probe": "bench_evaluate"},
}


def main() -> None:
    name, given = sys.argv[1], json.loads(sys.argv[2])
    work = getattr(importlib.import_module(WORKS[name]), name)
    bench_tools.serve(lambda: work(given))


if __name__ == "__main__":
    main()
