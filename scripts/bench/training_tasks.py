"""Tasks of a worker that train a network: one step, the network alone, `fit`."""

import tempfile

# Default settings of the tasks.
NETWORK = {
    "precision": "float32",
    "jit": False,
    "depth": 18,
    "width": 1.0,
    "stem": "small",
    "size": 32,
    "batch": 128,
    "steps": 1,
    "seed": 0,
}


def build_model(settings: dict):
    """Returns the compiled SimCLR model of settings like NETWORK."""
    import keras
    import tensorflow as tf

    from tfsimclr.methods import simclr
    from tfsimclr.networks import heads, norms, resnet
    from tfsimclr.views import random_view

    if "tf32" in settings:
        tf.config.experimental.enable_tensor_float_32_execution(settings["tf32"])
    if not settings.get("fused", True):
        batch_norm = norms.SplitBatchNormalization
        batch_norm._is_fusible = lambda self, maps: False  # type: ignore
    keras.config.set_dtype_policy(settings["precision"])
    keras.utils.set_random_seed(settings["seed"])
    encoder = resnet.resnet(settings["depth"], settings["width"], settings["stem"])
    head = heads.ProjectionHead(2)
    names = ("microbatch_size", "loss_block_rows", "remat")
    memory = {name: settings[name] for name in names if name in settings}
    views = random_view.Views(settings["size"])
    model = simclr.SimCLR(encoder, head, views, **memory)
    optimizer = keras.optimizers.SGD(0.03, momentum=0.9)
    if settings.get("optimizer") == "adam":
        optimizer = keras.optimizers.Adam(3e-4)
    model.compile(optimizer=optimizer, jit_compile=settings["jit"])
    model.optimizer.build(model.learned_variables)
    return model


def random_views(settings: dict):
    """Returns two float32 batches of noise, `[batch, size, size, 3]`, in 0-1."""
    import tensorflow as tf

    size = settings["size"]
    shape = [2, settings["batch"], size, size, 3]
    return tf.unstack(tf.random.stateless_uniform(shape, [settings["seed"], 0]))


def count_parameters(model) -> dict:
    return {"parameters": sum(v.numpy().size for v in model.learned_variables)}


def step(settings: dict):
    """A pretraining step on ready views: network, loss, gradient, update."""
    import tensorflow as tf

    settings = {**NETWORK, **settings}
    model = build_model(settings)
    learned = model.learned_variables
    view_a, view_b = random_views(settings)

    @tf.function(jit_compile=settings["jit"])
    def update(view_a, view_b):
        with tf.GradientTape() as tape:
            loss, _ = model.objective(view_a, view_b)
            scaled_loss = model.optimizer.scale_loss(loss)
        model.optimizer.apply(tape.gradient(scaled_loss, learned), learned)
        return loss

    task = repeat(lambda: update(view_a, view_b), settings["steps"])
    return task, count_parameters(model)


def network(settings: dict):
    """The forward and backward pass of encoder and head alone."""
    import tensorflow as tf

    settings = {**NETWORK, **settings}
    model = build_model(settings)
    learned = model.learned_variables
    views = tf.concat(random_views(settings), axis=0)

    @tf.function(jit_compile=settings["jit"])
    def gradients(views):
        with tf.GradientTape() as tape:
            z = tf.cast(model(views, training=True)[-1], tf.float32)
            # Weighted, so that the gradient reaches every weight.
            total = tf.reduce_sum(z * tf.range(1.0, z.shape[1] + 1.0))
        # One number, so that reading the result costs nothing.
        return tf.linalg.global_norm(tape.gradient(total, learned))

    task = repeat(lambda: gradients(views), settings["steps"])
    return task, count_parameters(model)


def repeat(call, steps: int):
    """Returns a task that makes some calls and waits for the last one's result."""

    def task():
        for _ in range(steps):
            result = call()
        result.numpy()

    return task


def fit(settings: dict):
    """Whole training steps inside of `fit`; reports the mean seconds of a step.

    Images come from a memory-mapped store, or, if `resident`, are one batch that lies
    on the device already.
    """
    import pathlib
    import time

    import keras
    import numpy as np
    import tensorflow as tf

    from tfsimclr.data import batches
    from tfsimclr.training import safeguards

    settings = {**NETWORK, **settings}

    class Clock(keras.callbacks.Callback):
        marks: list = []

        def on_train_batch_end(self, batch, logs=None):
            self.marks.append((time.perf_counter(), time.process_time()))

    model = build_model(settings)
    size, batch, steps = settings["size"], settings["batch"], settings["steps"]
    images = create_store(settings["images"], size)
    clock = Clock()
    safeguard = safeguards.TerminateOnNonFinite(
        pathlib.Path(tempfile.gettempdir()), lambda step: 0.0
    )

    def task():
        if settings["resident"]:
            one = tf.constant(np.array(images[:batch]))
            data = tf.data.Dataset.from_tensors(one).repeat(steps + 1)
        else:
            first = int(model.step)
            data = batches.training_batches(images, batch, 0, first, first + steps + 1)
        clock.marks = []
        model.fit(data, callbacks=[safeguard, clock], shuffle=False, verbose=0)
        # Without the first step: batches were prefetched while `fit` started.
        (wall, cpu), (end, cpu_end) = clock.marks[0], clock.marks[-1]
        return {"wall": (end - wall) / steps, "cpu": (cpu_end - cpu) / steps}

    return task, count_parameters(model)


def create_store(count: int, size: int):
    """Returns memory-mapped uint8 noise `[count, size, size, 3]` of a deleted file."""
    import numpy as np

    rng = np.random.default_rng(0)
    file = tempfile.NamedTemporaryFile(suffix=".npy")
    images = np.lib.format.open_memmap(file.name, "w+", "u1", (count, size, size, 3))
    for i in range(0, count, 1024):
        block = images[i : i + 1024]
        block[:] = rng.integers(0, 256, block.shape, np.uint8)
    images.flush()
    del images
    opened = np.load(file.name, mmap_mode="r")
    file.close()  # the mapping keeps the data
    return opened


def resolve_config(flags: dict, folder: str):
    """Returns (resolved Config, data set) of flags' values and a run folder."""
    from tfsimclr import build, resolve
    from tfsimclr.settings.config import Config

    config = Config(**{"workdir": folder, **flags})
    dataset = build.dataset(config)
    return resolve.resolve(config, dataset), dataset
