"""Training steps on a GPU in every precision, with XLA and without, beside PyTorch.

Sized for about ten minutes on a current card; it has not been timed on one yet. The
processor can only run `--size=tiny`, which tests the program.
"""

import gc
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from bench import harness, step, training_tasks

# Name -> settings of the network.
PRECISIONS: dict[str, dict] = {
    "float32": {"precision": "float32", "tf32": False},
    "tf32": {"precision": "float32", "tf32": True},
    "bfloat16": {"precision": "mixed_bfloat16", "tf32": True},
    "float16": {"precision": "mixed_float16", "tf32": True},
}
CASES = {
    "full": (
        {"depth": 18, "stem": "small", "size": 32, "batch": 128, "images": 4096},
        {"depth": 50, "stem": "imagenet", "size": 224, "batch": 64, "images": 1024},
    ),
    "tiny": (
        {
            **{"depth": 10, "stem": "medium", "size": 16, "batch": 4},
            **{"width": 0.125, "images": 16},
        },
    ),
}
# Seconds of one measurement, and the side of the matrices of the largest speed.
EXTENT = {"full": (1.0, 8192), "tiny": (0.0, 64)}
MAX_ROUNDS = 3
HEADINGS = (
    *("Network", "Precision", "XLA", "Images/s", "Against float32"),
    *("Share of peak", "Memory", "Starvation", "Reading every step"),
    *("PyTorch, images/s", "Against PyTorch"),
)
NO_GPU = (
    "TensorFlow sees no GPU (`nvidia-smi` shows whether the driver does; `pip install "
    "'.[gpu]'` brings CUDA). --size=tiny tests the program on the processor."
)
SKIPPED = "No GPU here: float32, tf32, bfloat16 and float16, with and without XLA."


def gpu_name() -> str | None:
    """Returns the GPU's name, or None; asked in a process that gives it back."""
    code = "from tfsimclr.runs import hardware; print(hardware.gpu_name() or '')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=harness.environment({"TF_CPP_MIN_LOG_LEVEL": "3"}),
    )
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else None


def measure(options) -> dict:
    name = gpu_name()
    if name is None and options.size == "full":
        if options.benchmark == "all":
            return {"rows": [], "skipped": [SKIPPED]}
        raise RuntimeError(NO_GPU)
    python = options.torch_python or sys.executable
    version = step.torch_version(python)
    rounds = min(options.pairs, MAX_ROUNDS)
    lines = []
    for case in CASES[options.size]:
        ours = measure_ours(case, rounds, EXTENT[options.size], name is not None)
        peer = {}
        if version:
            device = "cuda" if name else "cpu"
            peer = measure_torch(case, rounds, python, device, EXTENT[options.size])
        lines += table(case, ours, peer)
    missing = [] if version else ["PyTorch is not installed: see --torch_python."]
    return {
        "rows": [],
        "grid": [HEADINGS, *lines],
        "paragraphs": [f"{name or 'Processor'}. {PARAGRAPH}"],
        "skipped": missing,
        "versions": {"torch": version} if version else {},
        "clock": "wall",
    }


def measure_ours(case: dict, rounds: int, extent: tuple, gpu: bool) -> dict:
    """Returns {(precision, XLA): what `gpu_steps` reports}, one after the other."""
    forms = [(name, jit) for name in PRECISIONS for jit in (False, True)]
    settings = {"case": case, "forms": forms, "rounds": rounds, "extent": extent}
    reported = {}
    with harness.tensorflow_worker("gpu_steps", gpu=gpu, **settings) as worker:
        worker.ready()
        for form in forms:
            reported[form] = worker()
            speed = reported[form].get("error") or f"{_speed(reported[form]):.0f}/s"
            print(f"  {_network(case)}, {form[0]}, XLA {form[1]}: {speed}", flush=True)
    return reported


def measure_torch(case, rounds: int, python: str, device: str, extent: tuple) -> dict:
    """Returns {precision: images per second of PyTorch, None if it failed}."""
    images_per_second: dict = {}
    case = {"width": 1.0, **case, "device": device}
    for name in PRECISIONS:
        try:
            with step.torch_worker(python, precision=name, steps=1, **case) as worker:
                worker.ready()
                for _ in range(2):  # cuDNN chooses its kernels in the first steps
                    once = worker()["wall"]
            steps = max(1, min(100, round(extent[0] / once)))
            with step.torch_worker(
                python, precision=name, steps=steps, **case
            ) as worker:
                worker.ready()
                timings = harness.measure_rounds({name: worker}, rounds)[name]
            seconds = statistics.median(timing["wall"] for timing in timings) / steps
            images_per_second[name] = case["batch"] / seconds
        except RuntimeError as error:  # out of memory, for example
            print(f"  PyTorch, {name}: {str(error)[-200:]}", file=sys.stderr)
    return images_per_second


def table(case: dict, ours: dict, peer: dict) -> list[list[str]]:
    """Returns the table's lines on one network.

    Args:
        case: Settings of the network.
        ours: Result of `measure_ours`.
        peer: Result of `measure_torch`; empty without PyTorch.
    """
    base = ours["float32", False]
    lines = []
    for (name, jit), reported in ours.items():
        start = [_network(case), name, "on" if jit else "off"]
        if "error" in reported:
            failed = [reported["error"], *[""] * (len(HEADINGS) - len(start) - 1)]
            lines.append(start + failed)
            continue
        speed = _speed(reported)
        rate = 2 * reported["macs"] * speed
        lines.append(
            [
                *start,
                f"{speed:.0f}",
                f"{speed / _speed(base):.2f}x" if "error" not in base else "",
                f"{rate / reported['peak_flops']:.0%}",
                f"{reported['bytes'] / 1e9:.2f} GB",
                f"{_ratio(reported, 'store', 'resident') - 1:+.1%}",
                f"{_ratio(reported, 'every_step', 'store') - 1:+.1%}",
                f"{peer[name]:.0f}" if name in peer else "",
                f"{speed / peer[name]:.2f}x" if name in peer else "",
            ]
        )
    return lines


def _speed(reported: dict) -> float:
    return reported["batch"] / statistics.median(reported["seconds"]["store"])


def _ratio(reported: dict, upper: str, lower: str) -> float:
    """Returns the median over the rounds of a ratio of seconds."""
    pairs = zip(reported["seconds"][upper], reported["seconds"][lower], strict=True)
    return statistics.median(a / b for a, b in pairs)


def _network(case: dict) -> str:
    width = f", width {case['width']}" if "width" in case else ""
    return f"ResNet-{case['depth']}{width}, {case['size']} px, batch {case['batch']}"


PARAGRAPH = (
    "Images/s: training steps in `fit` fed from a store of uint8 images, with two "
    "views per image, NT-Xent, SGD with momentum and the check for numbers that are "
    "not finite. PyTorch takes the same step in channels-last on views that are on "
    "the device already. Share of peak: multiply-adds of convolutions and matrix "
    "products against the speed of one large matrix product in the same precision, "
    "measured here. Memory: the peak of TensorFlow's allocator. Starvation: time of a "
    "step beyond that of a step on one batch that is in memory. Reading every step: "
    "time of a step with --steps_per_check=1 beyond that with the default of a GPU."
)


def gpu_steps(settings: dict):
    """A worker's task: each call measures the next of `settings["forms"]`.

    Reports `seconds` of a step by how it is fed and read, `macs` per image,
    `peak_flops` of a matrix product and `bytes` of memory; or `error`.
    """
    import tensorflow as tf

    case = {**training_tasks.NETWORK, **settings["case"]}
    images = training_tasks.create_store(case["images"], case["size"])
    forms = iter(settings["forms"])
    macs = _multiply_adds(case)

    def task():
        name, jit = next(forms)
        try:
            reported = _measure_form(
                {**case, **PRECISIONS[name], "jit": jit}, images, settings
            )
        except tf.errors.OpError as error:  # out of memory, for example
            return {"error": type(error).__name__}
        return {**reported, "macs": macs, "batch": case["batch"]}

    return task, {}


def _multiply_adds(case: dict) -> float:
    """Returns the multiply-adds per image of a step: two views, forward and back."""
    import tensorflow as tf

    from tfsimclr.networks import flops

    model = training_tasks.build_model({**case, "precision": "float32"})

    def gradients(view_a, view_b):
        with tf.GradientTape() as tape:
            loss, _ = model.objective(view_a, view_b)
        return tape.gradient(loss, model.learned_variables)

    view = tf.TensorSpec([case["batch"], case["size"], case["size"], 3])
    return flops.multiply_adds(gradients, view, view) / case["batch"]


def _measure_form(case: dict, images, settings: dict) -> dict:
    import keras
    import numpy as np
    import tensorflow as tf

    from tfsimclr import resolve
    from tfsimclr.data import batches
    from tfsimclr.training import recorder, safeguards

    class Clock(keras.callbacks.Callback):
        """Reads a clock when the second and the last step of a `fit` are finished."""

        def __init__(self, last: int):
            super().__init__()
            self.last = last
            self.marks: list[float] = []

        def on_train_batch_end(self, batch, logs=None):
            if batch in (1, self.last):
                float(logs["loss"])  # waits for the device
                self.marks.append(time.perf_counter())

    keras.backend.clear_session()
    gc.collect()
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    if has_gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
    model = training_tasks.build_model(case)
    batch = case["batch"]
    one = tf.constant(np.array(images[:batch]))

    def step_seconds(steps: int, steps_per_check: int, resident: bool) -> float:
        if resident:
            data = tf.data.Dataset.from_tensors(one).repeat(steps + 2)
        else:
            first = int(model.step)
            data = batches.training_batches(images, batch, 0, first, first + steps + 2)
        safeguard = safeguards.TerminateOnNonFinite(
            pathlib.Path(tempfile.gettempdir()),
            lambda step: 0.0,
            steps_per_check=steps_per_check,
        )
        clock = Clock(steps + 1)
        callbacks = safeguards.StepCallbacks(
            [safeguard, clock], steps_per_check, model=model
        )
        model.fit(data, callbacks=callbacks, shuffle=False, verbose=0)
        first_mark, last_mark = clock.marks
        return (last_mark - first_mark) / steps

    seconds, side = settings["extent"]
    usual = resolve.GPU_STEPS_PER_CHECK
    once = step_seconds(2, 1, True)
    steps = max(2, min(100, round(seconds / once)))
    measured: dict = {"store": [], "resident": [], "every_step": []}
    for _ in range(settings["rounds"]):
        measured["store"].append(step_seconds(steps, usual, False))
        measured["resident"].append(step_seconds(steps, usual, True))
        measured["every_step"].append(step_seconds(steps, 1, False))
    peak = recorder.peak_memory()
    return {
        "seconds": measured,
        "bytes": peak,
        "peak_flops": _matrix_speed(side, case["precision"]),
    }


def _matrix_speed(side: int, precision: str) -> float:
    """Returns the FLOP/s of a product of two large matrices, the best of three."""
    import tensorflow as tf

    kind = precision.removeprefix("mixed_")
    matrix = tf.cast(tf.random.stateless_normal([side, side], [0, 0]), kind)
    best = float("inf")
    for _ in range(4):  # the first one is a warm-up, and never the fastest
        start = time.perf_counter()
        product = tf.matmul(matrix, matrix)
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
