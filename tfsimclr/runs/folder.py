"""The run folder: creation, the check that it fits the settings, and the lock."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import os
import pathlib
import sys

from packaging import version

from tfsimclr import __version__, files
from tfsimclr.errors import UserError
from tfsimclr.settings import config as configs
from tfsimclr.settings.config import Config

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def prepare(config: Config) -> pathlib.Path:
    """Returns the run folder with its flags.txt; creates a new one.

    A run folder is tied to its settings: an existing one must have the same settings of
    the pretraining. Images and teacher may lie at another path: the checkpoint holds a
    checksum of the images, and a student's also one of the teacher's weights.

    Raises:
        UserError: If the folder has other settings, is not a run folder, or cannot be
            used.
    """
    path = pathlib.Path(config.workdir)
    if not _is_utf8(config.workdir):
        raise UserError(
            f"--workdir={config.workdir!r} is not UTF-8, as TensorFlow's files "
            "must be. Name another."
        )
    try:
        return _prepare(config, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # another remedy
        raise UserError(
            f"the run folder {path} cannot be used: {error.strerror or error}. Make it "
            "writable, or name another --workdir."
        ) from error


def _prepare(config: Config, path: pathlib.Path) -> pathlib.Path:
    flags_file = path / "flags.txt"
    known = flags_file.exists()
    if not known and path.exists() and not _is_fresh(path):
        raise UserError(
            f"--workdir={path} exists and is not a run folder (it has no flags.txt). "
            "Name a new or empty folder."
        )
    if not known and config.mode in ("evaluate", "export", "finetune", "report"):
        raise UserError(
            f"--mode={config.mode} needs a run to work on, and {path} is none. Name "
            "one with --workdir, and give the flags of its flags.txt "
            "(--flagfile=<run>/flags.txt)."
        )
    path.mkdir(parents=True, exist_ok=True)
    # Without what this command alone does, and on which devices, so that
    # --flagfile=flags.txt continues the whole run anywhere, and --mode=evaluate scores
    # it on its own data.
    passing = ("--mode=", "--eval_", "--strategy=", "--worker_timeout=")
    lines = [line for line in config.lines() if not line.startswith(passing)]
    text = "\n".join([f"# tfsimclr {__version__}", *lines]) + "\n"
    with lock(path):
        if flags_file.exists():  # perhaps written by another process just now
            _check_same(config, flags_file)
        files.write_atomically(flags_file, text.encode(errors="surrogateescape"))
        _remove_leftovers(path)
    return path


def keep_older_run(config: Config, resolved: Config, dataset) -> Config:
    """Returns the resolved config, or that of the older run in the same folder.

    A run of a version without `--val_share` held out no images, and goes on so.

    Args:
        config: As the user set it.
        resolved: The same, resolved.
        dataset: The data set.
    """
    if config.val_share is not None or not resolved.val_share:
        return resolved
    from tfsimclr import (
        resolve,
    )  # brings TensorFlow, which a study's plan can do without

    older = resolve.resolve(dataclasses.replace(config, val_share=0.0), dataset)
    flags_file = pathlib.Path(older.workdir or older.default_workdir()) / "flags.txt"
    if not flags_file.is_file() or "val_share" in read_flags(flags_file):
        return resolved
    return older


@contextlib.contextmanager
def lock(path: pathlib.Path, flag: str = "--workdir"):
    """Locks a run folder for this process, until the block or the process ends.

    On a disk without file locks, such as some network disks, it prints a warning and
    continues without one.

    Args:
        path: The folder.
        flag: The flag that names it, for messages.

    Raises:
        UserError: If another process has locked the folder; the message has its id.
    """
    with open(path / ".lock", "a+", encoding="utf-8", errors="replace") as file:
        try:
            # The kernel releases the lock with the process, so none is left behind.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{path} is in use by process {file.read().strip() or 'unknown'}. Wait "
                f"for it, stop it, or name another {flag}."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _warn_without_lock(path, flag)
        with files.disk_errors(path / ".lock"):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())
        yield


@functools.cache  # once, though a run locks its folder twice
def _warn_without_lock(path: pathlib.Path, flag: str) -> None:
    print(
        f"Warning: the disk of {path} has no file locks. Make sure that no second "
        f"process uses this folder, or name a {flag} on another disk.",
        file=sys.stderr,
    )


def _remove_leftovers(path: pathlib.Path) -> None:
    """Removes the temporary files of killed processes; the folder must be locked."""
    for folder in (path, path / "features", *path.glob("finetuned/*")):
        files.remove_leftovers(folder)


def read_flags(flags_file: pathlib.Path) -> dict[str, str]:
    """Returns the settings in a flags.txt as text, under today's names.

    Raises:
        UserError: If it is damaged, of a newer version, or no such file.
    """
    try:
        text = flags_file.read_text(encoding="utf-8", errors="surrogateescape")
    except IsADirectoryError:
        text = ""
    header, *lines = text.split("\n")
    if not header.startswith("# tfsimclr "):
        raise UserError(
            f"{flags_file} was not written by tfsimclr, so {flags_file.parent} is no "
            "run folder. Name a new or empty --workdir."
        )
    writer = header.removeprefix("# tfsimclr ").strip()
    if _version(writer) > _version(__version__):
        raise UserError(
            f"{flags_file.parent} was written by tfsimclr {writer}, and this is "
            f"{__version__}. Update tfsimclr or name another --workdir."
        )
    lines = [line for line in lines if line and not line.startswith("#")]
    for line in lines:
        if not line.startswith("--") or "=" not in line:
            raise UserError(
                f"{flags_file} is damaged: expected --name=value, got {line!r}. Put "
                "that right, or name another --workdir."
            )
    return configs.rename_old(dict(line[2:].split("=", 1) for line in lines))


def _check_same(config: Config, flags_file: pathlib.Path) -> None:
    before = read_flags(flags_file)
    now = config.pretraining()
    different = [name for name in now if name in before and before[name] != now[name]]
    if not different:
        return
    if different == ["epochs"] and config.epochs > int(before["epochs"]):
        if config.mode in ("all", "pretrain", "distill"):
            _check_longer(config, before["epochs"], flags_file.parent)
            return
    differences = [
        f"--{name}={before[name]} there, --{name}={now[name]} here"
        for name in different
    ]
    raise UserError(
        f"{flags_file.parent} holds a run of other settings: "
        f"{'; '.join(differences)}. Give the same flags (--flagfile={flags_file}) "
        "to continue it, or another --workdir."
    )


def _check_longer(config: Config, epochs: str, path: pathlib.Path) -> None:
    """Checks that a run can get more epochs, as if it had had them from the start.

    Args:
        config: The settings with the new number of epochs.
        epochs: The number before.
        path: The run folder.

    Raises:
        UserError: If a schedule over the whole run makes it another run.
    """
    schedules = [f"--{name}" for name in ("schedule", "ema_schedule")]
    schedules = [name for name in schedules if getattr(config, name[2:]) == "cosine"]
    if schedules:
        raise UserError(
            f"{path} is a run of {epochs} epochs, and {' and '.join(schedules)}=cosine "
            f"ends there: with {config.epochs} epochs it would have been another run "
            "from its first step. Only runs with constant schedules can get more "
            "epochs. Name a new --workdir for the longer run; with --init="
            f"{path} it starts from the weights of this one."
        )
    print(f"{path} has {epochs} epochs and goes on to {config.epochs}.")


def _is_fresh(path: pathlib.Path) -> bool:
    """Returns whether a folder is empty, or holds only leftovers of a killed start."""
    if not path.is_dir():
        return False
    return all(
        inner.name.startswith((".lock", ".partial-")) for inner in path.iterdir()
    )


def _version(text: str) -> version.Version:
    """Returns a version that can be compared; a malformed one counts as the oldest."""
    try:
        return version.Version(text)
    except version.InvalidVersion:
        return version.Version("0")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
