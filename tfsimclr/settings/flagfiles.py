"""Flagfiles: files of flags, which may name other flagfiles."""

import os

from absl import flags

from tfsimclr.errors import UserError
from tfsimclr.settings import config as configs

# The first line of the flags.txt of a run folder begins so.
RUN_HEADER = "# tfsimclr "


def expand(argv: list[str]) -> list[str]:
    """Returns the arguments with every `--flagfile=` replaced by the flags it holds.

    absl opens a flagfile that a flagfile names relative to the working directory; here
    the path is relative to the file that names it, so recipes work from anywhere.

    Raises:
        SystemExit: If a flagfile cannot be read, is not text or includes itself.
    """
    return [argument for argument, _ in _expanded(argv)]


def names_given(argv: list[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the names of the settings that the user set.

    Args:
        argv: The command line, before `expand`.

    Returns:
        Those on the command line or in a flagfile, and those on the command line
        itself. A run's flags.txt holds every setting, so its lines count as neither.
    """
    fields = {name: name for name in configs.Config.__dataclass_fields__}
    fields.update(configs.ALIASES)
    fields.update({f"no{name}": field for name, field in fields.items()})
    typed, given = set(), set()
    for argument, origin in _expanded(argv):
        if argument == "--":
            break
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name in fields and origin != "run":
            given.add(fields[name])
            if origin == "typed":
                typed.add(fields[name])
    return frozenset(given), frozenset(typed)


def read_config(path: str | os.PathLike) -> configs.Config:
    """Returns the config of a flagfile, such as the flags.txt of a run folder.

    Raises:
        SystemExit: If the flagfile cannot be read.
        UserError: If it holds a flag or a value that does not exist.
    """
    values = flags.FlagValues()
    configs.define_flags(values)
    try:
        values(["", *expand([f"--flagfile={os.fspath(path)}"])])
    except flags.Error as error:
        raise UserError(f"{os.fspath(path)} cannot be used: {error}") from error
    return configs.from_flags(values)


def _expanded(argv, folder: str = "", seen: tuple = (), origin: str = "typed"):
    """Returns pairs (argument, "typed", "flagfile" or "run")."""
    result: list[tuple[str, str]] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*result, *((a, origin) for a in [argument, *rest])]
        if argument in ("-flagfile", "--flagfile") and rest:
            argument += "=" + rest.pop(0)
        name, _, value = argument.lstrip("-").partition("=")
        if name != "flagfile" or not argument.startswith("-") or not value:
            result.append((argument, origin))
            continue
        path, lines = _read(value, folder, seen)
        is_run = bool(lines) and lines[0].startswith(RUN_HEADER)
        inner = [line for line in lines if line and not line.startswith(("#", "//"))]
        for line in inner:
            if not line.startswith("-") or "\0" in line:
                raise SystemExit(
                    f"tfsimclr: expected --name=value in the flagfile {value}, got "
                    f"{line!r}. Comments start with #."
                )
        kind = "run" if is_run or origin == "run" else "flagfile"
        result += _expanded(inner, os.path.dirname(path), (*seen, path), kind)
    return result


def _read(value: str, folder: str, seen: tuple) -> tuple[str, list[str]]:
    """Returns the real path of a flagfile and its lines."""
    try:
        path = os.path.realpath(os.path.join(folder, os.path.expanduser(value)))
        if path in seen:
            raise SystemExit(f"tfsimclr: the flagfile {value} includes itself.")
        # The value of a flag may be a path, which need not be text. All else must.
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [line.strip() for line in file]
        no_flags = "".join(line for line in lines if not line.startswith("-"))
        no_flags.encode(errors="surrogateescape").decode()
    except (OSError, ValueError) as error:  # not text, or not a path
        raise SystemExit(
            f"tfsimclr: cannot read the flagfile {value}: {error}."
        ) from None
    return path, lines
