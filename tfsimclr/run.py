"""The command line: pretrain, evaluate and export a run.

Examples:
    python -m tfsimclr.run --optimizer=lars --proj_layers=4
    python -m tfsimclr.run --flagfile=flags/paper/lars_layer4.flags
    python -m tfsimclr.run --dataset=folder --data_dir=~/photos
"""

import dataclasses
import errno
import io
import os
import pathlib
import signal
import sys
import tempfile
import traceback

from absl import app, flags, logging

from tfsimclr import config as configs

# TensorFlow is imported only when there is something to compute: --help and a wrong
# flag answer at once.


def main() -> None:
    """Entry point of `tfsimclr` and `python -m tfsimclr.run`."""
    # Pretraining saves first; anywhere else both say how to go on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths in no known code
    configs.define_flags()
    # absl's --help shows the flags of the module that asks for them.
    flags.FLAGS.set_gnu_getopt(True)
    for field in dataclasses.fields(configs.Config):
        # Not declare_key_flag: installed as `tfsimclr`, the program is another module.
        flag = flags.FLAGS[field.name]
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(_main, argv=expanded(sys.argv), flags_parser=_parse)


def expanded(argv: list[str], folder: str = "", seen: tuple = ()) -> list[str]:
    """Returns the arguments with every `--flagfile=` replaced by the flags it holds.

    absl opens a flagfile that a flagfile names relative to the working directory; here
    it is relative to the file that names it, so recipes work from anywhere.
    """
    result: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*result, argument, *rest]
        if argument in ("-flagfile", "--flagfile") and rest:
            argument += "=" + rest.pop(0)
        name, _, value = argument.lstrip("-").partition("=")
        if name != "flagfile" or not argument.startswith("-") or not value:
            result.append(argument)
            continue
        try:
            path = os.path.realpath(os.path.join(folder, os.path.expanduser(value)))
            if path in seen:
                raise SystemExit(f"tfsimclr: the flagfile {value} includes itself.")
            # The value of a flag may be a path, which need not be text. All else must.
            with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
                lines = [line.strip() for line in file]
            rest_of_it = "".join(line for line in lines if not line.startswith("-"))
            rest_of_it.encode(errors="surrogateescape").decode()
        except (OSError, ValueError) as error:  # not text, or not a path
            raise SystemExit(
                f"tfsimclr: cannot read the flagfile {value}: {error}."
            ) from None
        inner = [line for line in lines if line and not line.startswith(("#", "//"))]
        for line in inner:
            if not line.startswith("-") or "\0" in line:
                raise SystemExit(
                    f"tfsimclr: expected --name=value in the flagfile {value}, got "
                    f"{line!r}. Comments start with #."
                )
        result += expanded(inner, os.path.dirname(path), (*seen, path))
    return result


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError) as error:  # --noflag=value is the latter
        sys.exit(f"tfsimclr: {error} See --help.")


def _main(argv) -> None:
    try:
        if argv[1:]:
            raise ValueError(f"Expected flags only (--name=value), got {argv[1:]}.")
        run(configs.from_flags())
    except KeyboardInterrupt as stop:
        sys.exit(f"{str(stop) or 'Stopped.'} The same command goes on from here.")
    except (ValueError, FloatingPointError, OSError) as error:
        if not _is_for_the_user(error):
            raise
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


def _is_for_the_user(error: Exception) -> bool:
    """Whether we raised it ourselves, or the operating system did: no bug of ours."""
    if isinstance(error, OSError):
        return True
    *_, last = traceback.extract_tb(error.__traceback__)
    return pathlib.Path(last.filename).parent == pathlib.Path(__file__).parent


def run(config: configs.Config) -> None:
    """Runs one mode.

    Raises:
        ValueError: If the settings do not fit each other, the data or the run folder.
    """
    config.check_mode()
    tf = _tensorflow()
    from tfsimclr import (
        build,
        distill,
        evaluate,
        export,
        finetune,
        plan,
        pretrain,
        runfolder,
    )

    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    dataset = build.dataset(config)
    config = build.resolve(config, dataset)
    if config.mode == "plan":
        return plan.plan(config, dataset)
    if not config.workdir:
        made = os.path.abspath(config.default_workdir())
        config = dataclasses.replace(config, workdir=made)
    workdir = runfolder.prepare(config)
    print("\n".join(config.lines()), flush=True)
    with runfolder.lock(workdir):
        if config.mode in ("all", "pretrain"):
            pretrain.pretrain(config, dataset, workdir)
        if config.mode in ("all", "evaluate"):
            evaluate.evaluate(config, dataset, workdir)
        if config.mode in ("all", "export"):
            export.export(config, workdir)
        if config.mode == "finetune":
            export.export_classifier(finetune.finetune(config, dataset, workdir))
        if config.mode == "distill":
            export.export_classifier(distill.distill(config, dataset, workdir))
    print(f"Run folder: {workdir}")


def _tensorflow():
    """Imports TensorFlow without its notices of every start.

    It writes them to file descriptor 2 before any log level is read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.ERROR)
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notices:
        os.dup2(notices.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    return tf


if __name__ == "__main__":
    main()
