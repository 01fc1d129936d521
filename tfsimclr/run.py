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

from absl import app, flags, logging

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
        sys.exit(f"{str(stop) or 'Stopped.'} The same command goes on from here.")
    except (UserError, FloatingPointError, OSError) as error:
        message = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += ". Make room; the same command goes on from here."
        sys.exit(f"tfsimclr: {message}")
    except Exception as error:
        # TensorFlow's and Python's; a full disk came above.
        if type(error).__name__ != "ResourceExhaustedError" and (
            not isinstance(error, MemoryError)
        ):
            raise
        sys.exit(
            "tfsimclr: the memory is exhausted. Lower --batch_size, --image_size or "
            "--width, or choose a smaller --backbone."
        )


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
    # A cluster must be joined before TensorFlow's first operation.
    resolve.num_devices(config)
    note = gpu.check()
    if note:
        print(note, file=sys.stderr)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    if config.mode in modes.OF_TRAINED:  # makes no run folder
        return modes.OF_TRAINED[config.mode](config)
    if config.compare:  # reads run folders, and needs neither data nor a run folder
        report.compare(config)
        return
    needs_no_data = config.mode == "export" or (
        config.mode == "evaluate" and config.other_dataset
    )
    known = _flags_file(config).is_file()
    if known and (needs_no_data or config.mode == "report"):
        # The folder of the run is enough to name it.
        saved = flagfiles.read_config(_flags_file(config))
        settings = {name: getattr(config, name) for name in config.changed()}
        config = dataclasses.replace(saved, **settings)
    if known and needs_no_data:
        dataset = None  # the run folder has all that is needed; the data may be gone
    else:
        dataset = build.dataset(config)
        config = folder.keep_older_run(
            config, resolve.resolve(config, dataset), dataset
        )
    if config.mode == "plan":  # makes no run folder
        return plan.plan(config, dataset)
    if not config.workdir:
        default = os.path.abspath(config.default_workdir())
        config = dataclasses.replace(config, workdir=default)
    workdir = folder.prepare(config)
    print("\n".join(config.lines()), flush=True)
    with folder.lock(workdir):
        for part in modes.MODES[config.mode]:
            part(config, dataset, workdir)
    print(f"Run folder: {workdir}")


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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
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
