"""The command line: pretrain, evaluate and export a run.

Examples:
    python -m tfsimclr.run --optimizer=lars --proj_layers=4
    python -m tfsimclr.run --flagfile=flags/paper/lars_layer4.flags
    python -m tfsimclr.run --dataset=folder --data_dir=~/photos
"""

import dataclasses
import errno
import importlib.util
import io
import os
import pathlib
import signal
import sys
import tempfile
import traceback

from absl import app, flags, logging

from tfsimclr import __version__
from tfsimclr.distribution import cluster as clusters
from tfsimclr.distribution import workers
from tfsimclr.errors import UserError
from tfsimclr.settings import config as configs
from tfsimclr.settings import flagfiles

# TensorFlow is imported only when there is something to compute: --help and a wrong
# flag answer at once.


def main() -> None:
    """Entry point of `tfsimclr` and `python -m tfsimclr.run`."""
    # SIGTERM ends the program as Ctrl-C does. Training saves a checkpoint first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # for paths that are not UTF-8
    configs.define_flags()
    # absl's --help shows the flags of the module that asks for them.
    flags.FLAGS.set_gnu_getopt(True)
    for field in dataclasses.fields(configs.Config):
        # Not declare_key_flag: installed as `tfsimclr`, the program is another module.
        flag = flags.FLAGS[field.name]
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(_main, argv=flagfiles.expand(sys.argv), flags_parser=_parse)


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError) as error:  # --noflag=value is the latter
        sys.exit(f"tfsimclr: {error} See --help.")


def _main(argv) -> None:
    try:
        if argv[1:]:
            raise UserError(f"Expected flags only (--name=value), got {argv[1:]}.")
        given, typed = flagfiles.names_given(sys.argv)
        run(configs.from_flags(), given, typed)
    except KeyboardInterrupt as stop:
        text = f"{str(stop) or 'Stopped.'} The same command goes on from here."
        workers.end(text, is_stop=True)
        sys.exit(text)
    except (UserError, FloatingPointError, OSError) as error:
        message = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += ". Make room; the same command goes on from here."
        _exit(message)
    except Exception as error:
        # TensorFlow's and Python's; a full disk came above.
        if type(error).__name__ == "ResourceExhaustedError" or (
            isinstance(error, MemoryError)
        ):
            _exit(
                "the memory is exhausted. Lower --batch_size, --image_size or "
                "--width, or choose a smaller --backbone."
            )
        message = workers.explain(error)
        if message:
            _exit(message)
        if workers.watchdog():
            traceback.print_exc()
            workers.end(f"tfsimclr: {type(error).__name__}, see above.")
        raise


def _exit(message: str) -> None:
    """Ends the program with one line; in a cluster the other workers get it too."""
    text = f"tfsimclr: {message}"
    workers.end(text)
    sys.exit(text)


def run(config: configs.Config, given=frozenset(), typed=frozenset()) -> None:
    """Runs one mode.

    Args:
        config: The settings.
        given: Names of the settings that the user set, also to their default.
        typed: Those of them that stand on the command line itself.

    Raises:
        UserError: If the settings do not fit each other, the data or the run folder.
    """
    tf = _tensorflow()
    from tfsimclr import build, modes, resolve
    from tfsimclr.modes import plan, report
    from tfsimclr.runs import folder, gpu

    resolve.check(config, given, typed)
    cluster = _cluster(config, typed)
    if cluster is not None and config.mode not in modes.TRAINING:
        if not cluster.is_chief:
            print(f"--mode={config.mode} runs on the chief alone.")
            return
        config = dataclasses.replace(config, strategy="none")
    elif cluster is not None:
        config = _join_workers(config, cluster)
    # A cluster must be joined before TensorFlow's first operation.
    resolve.num_devices(config)
    note = gpu.check()
    if note:
        print(note, file=sys.stderr)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    if config.mode in modes.OF_TRAINED:  # makes no run folder
        modes.OF_TRAINED[config.mode](config)
        return
    if config.compare:  # reads run folders, and needs neither data nor a run folder
        report.compare(config)
        return
    needs_no_data = config.mode == "export" or (
        config.mode == "evaluate" and config.other_dataset
    )
    known = _flags_file(config).is_file()
    if known and (needs_no_data or config.mode == "report"):
        # The folder of the run is enough to name it.
        config = _with_settings_of_run(config)
    if known and needs_no_data:
        dataset = None  # the run folder has all that is needed; the data may be gone
    else:
        dataset = build.dataset(config)
        config = folder.keep_older_run(
            config, resolve.resolve(config, dataset), dataset
        )
    _compare_workers(config, dataset)
    if config.mode == "plan":  # makes no run folder
        plan.plan(config, dataset)
        return
    if not config.workdir:
        default = os.path.abspath(config.default_workdir())
        config = dataclasses.replace(config, workdir=default)
    _run_parts(config, dataset)
    workers.finish()


def _run_parts(config: configs.Config, dataset) -> None:
    """Runs the functions of the mode in the run folder."""
    from tfsimclr import modes
    from tfsimclr.runs import folder

    if not workers.is_chief():
        # It trains with the others; the chief alone writes and evaluates.
        modes.MODES[config.mode][0](config, dataset, pathlib.Path(config.workdir))
        return
    workdir = folder.prepare(config)
    print("\n".join(config.lines()), flush=True)
    with folder.lock(workdir):
        for part in modes.MODES[config.mode]:
            part(config, dataset, workdir)
    print(f"Run folder: {workdir}")


def _cluster(config: configs.Config, typed) -> clusters.Cluster | None:
    """Returns the workers of `TF_CONFIG`, or None if this machine trains alone."""
    from tfsimclr import modes

    cluster, trains = None, config.mode in (*modes.TRAINING, "plan")
    if config.strategy in ("auto", "multi_worker"):
        cluster = clusters.from_environment()
    if cluster is None and config.strategy == "multi_worker" and trains:
        raise UserError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG, which "
            "names two workers or more. Set it on every machine (scripts/launch.py "
            "does so for a trial on this one), or use --strategy=mirrored for the GPUs "
            "of one machine."
        )
    if cluster is None and "worker_timeout" in typed:
        raise UserError(
            "--worker_timeout means nothing without several workers, which the "
            "environment variable TF_CONFIG names. Leave it out."
        )
    return cluster


def _join_workers(config: configs.Config, cluster: clusters.Cluster) -> configs.Config:
    """Returns the config after this worker has met the others."""
    import keras
    import numpy
    import tensorflow as tf

    facts = {
        "tfsimclr": __version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "NumPy": numpy.__version__,  # it draws the order of the images
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "the number of GPUs": str(len(tf.config.list_physical_devices("GPU"))),
    }
    workers.join(cluster, facts, config.worker_timeout)
    if not cluster.is_chief:
        sys.stdout = open(os.devnull, "w")  # the chief says the same
    return dataclasses.replace(config, strategy="multi_worker")


def _compare_workers(config: configs.Config, dataset) -> None:
    """Checks that all workers have the same settings and images."""
    watchdog = workers.watchdog()
    if watchdog is None:
        return
    from tfsimclr.data import dataset as datasets

    settings = {
        f"--{name}": str(value)
        for name, value in dataclasses.asdict(config).items()
        if name not in (*configs.PATHS, "init")
    }
    watchdog.check_equal(settings, "Give all workers the same flags.")
    watchdog.check_equal(
        datasets.checksums(dataset), "Give all workers the same images."
    )


def _with_settings_of_run(config: configs.Config) -> configs.Config:
    """Returns the config with the settings of its run folder for those left open."""
    from tfsimclr import resolve

    saved = flagfiles.read_config(_flags_file(config))
    settings = {name: getattr(config, name) for name in config.changed()}
    config = dataclasses.replace(saved, **settings)
    if config.mode == "export":
        # Refused here, or flags.txt would keep formats that the encoder has not.
        resolve.export_formats(config)
    return config


def _flags_file(config: configs.Config) -> pathlib.Path:
    return pathlib.Path(config.workdir or config.default_workdir()) / "flags.txt"


def _tensorflow():
    """Imports TensorFlow and Keras; hides the notices that TensorFlow prints at start.

    TensorFlow writes them to file descriptor 2 before it reads any log level.

    Raises:
        UserError: On a system without file locks, or with another backend of Keras.
    """
    if importlib.util.find_spec("fcntl") is None:
        raise UserError(
            "runs need Linux or macOS. On Windows, install tfsimclr in WSL (Windows "
            "Subsystem for Linux: wsl --install)."
        )
    # An empty variable leaves the choice to keras.json.
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend != "tensorflow":
        raise UserError(
            f"KERAS_BACKEND={backend} is set, but tfsimclr needs the TensorFlow "
            "backend. Unset it, or set KERAS_BACKEND=tensorflow."
        )
    os.environ["KERAS_BACKEND"] = backend
    # Of JAX only; where keras.json sets it, Keras would ask for a library of JAX.
    os.environ["KERAS_NNX_ENABLED"] = "false"
    # It would compile the reading of the images too, which XLA cannot.
    os.environ.pop("TF_FUNCTION_JIT_COMPILE_DEFAULT", None)
    # Of several workers TensorFlow logs every connection that ends; one line says why.
    level = "3" if os.environ.get("TF_CONFIG") else "2"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", level)
    logging.set_verbosity(logging.ERROR)
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notices:
        os.dup2(notices.fileno(), 2)
        try:
            import keras
            import tensorflow as tf

            tf.config.list_physical_devices()
        except ValueError as error:
            raise UserError(
                f"Keras cannot start: {error} Correct that in "
                f"{os.environ.get('KERAS_HOME', '~/.keras')}/keras.json or in the "
                "environment variables that begin with KERAS_."
            ) from error
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    if keras.config.backend() != "tensorflow":  # imported before, in Python
        raise UserError(
            f"Keras runs on {keras.config.backend()} in this process, and tfsimclr "
            "needs TensorFlow. Set KERAS_BACKEND=tensorflow before Keras is imported."
        )
    # The user's keras.json and variables may say otherwise; a run must not depend on
    # them. KERAS_MAX_EPOCHS would end it early.
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    return tf


if __name__ == "__main__":
    main()
