"""The plan of a study: rows from flagfiles, and the runs that they need."""

import contextlib
import dataclasses
import json
import os
import pathlib

from absl import flags

from tfsimclr import run
from tfsimclr.settings import config as configs
from tfsimclr.settings import options

# Two runs that differ in these only are one: every feature is scored by either.
NOT_COMPARED = (
    *("mode", "workdir", "cache_dir", "feature"),
    *("keep_checkpoints", "checkpoint_minutes"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A pretraining with its evaluation; `row` is the first of the rows it serves."""

    row: str
    folder: pathlib.Path
    config: configs.Config

    @property
    def name(self) -> str:
        return self.folder.name

    def epochs_done(self) -> int:
        """Returns how many epochs history.csv knows of."""
        try:
            lines = (self.folder / "history.csv").read_text(encoding="utf-8")
        except OSError:
            return 0
        return min(max(len(lines.splitlines()) - 1, 0), self.config.epochs)

    def result(self) -> dict | None:
        """Returns result.json if it has the scores of the whole run, as set here."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            text = (self.folder / "result.json").read_text(encoding="utf-8")
            result = json.loads(text)
            fields = dataclasses.fields(configs.Config)
            # What an older version did not know was at its default there.
            there = {field.name: field.default for field in fields} | result["config"]
            same = all(
                options.to_flag_value(there[name]) == options.to_flag_value(value)
                for name, value in compared(self.config)
                if value not in (None, "auto")
            )
            whole = result["pretrain"]["epochs"] >= self.config.epochs
            if whole and result["features"] and same:
                return result
        return None

    def state(self) -> str:
        """Returns what the folder says of the run, in words."""
        if self.result():
            return "finished"
        done, epochs = self.epochs_done(), self.config.epochs
        return f"to go on after epoch {done} of {epochs}" if done else "to do"


def compared(config: configs.Config) -> tuple:
    """Returns the settings by which runs are told apart, as (name, value) pairs."""
    values = dataclasses.asdict(config)
    return tuple((k, v) for k, v in values.items() if k not in NOT_COMPARED)


def parsed(lines: list[str]) -> flags.FlagValues:
    """Returns the flags that lines like `--epochs=3` set."""
    values = flags.FlagValues()
    configs.define_flags(values)
    values.set_gnu_getopt(True)
    rest = values(["study", *lines])[1:]
    if rest:
        raise ValueError(f"Expected flags only (--name=value), got {rest}.")
    return values


def given(lines: list[str]) -> dict:
    """Returns {name: value} of the flags that the lines set."""
    values = parsed(lines)
    names = [field.name for field in dataclasses.fields(configs.Config)]
    return {name: values[name].value for name in names if values[name].present}


def as_flags(settings: dict) -> str:
    return " ".join(f"--{k}={v}" for k, v in settings.items()) or "nothing of its own"


def base_and_own(path: pathlib.Path) -> tuple[list[str], list[str]]:
    """Returns the flags a row includes from elsewhere, and those of its own folder.

    flags/paper/lars_layer4.flags includes lars.flags, which is a row too, and that
    includes ../stl10.flags, the base.
    """
    base, own = [], []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        line = line.strip()
        name, _, value = line.lstrip("-").partition("=")
        if name == "flagfile":
            inner = path.parent / os.path.expanduser(value)
            if inner.parent.resolve() == path.parent.resolve():
                inner_base, inner_own = base_and_own(inner)
                base, own = base + inner_base, own + inner_own
            else:
                base += run.expanded([f"--flagfile={inner}"])
        elif line.startswith("-"):
            own.append(line)
    return base, own


def row_files(places: str) -> dict[str, pathlib.Path]:
    """Returns {row: flagfile} of flagfiles, or folders of them, divided by commas."""
    files = []
    for place in map(pathlib.Path, places.split(",")):
        found = sorted(place.glob("*.flags")) if place.is_dir() else [place]
        if not found or not found[0].is_file():
            raise ValueError(f"--rows: {place} is no flagfile and no folder of them.")
        files += found
    rows = {path.stem: path for path in files}
    if len(rows) < len(files):
        paths = ", ".join(map(str, files))
        raise ValueError(f"--rows: two rows have the same name: {paths}.")
    return rows


def plan(files, overrides: list[str], seeds: int, out: pathlib.Path, known=()):
    """Returns `({row: {"group", "own", "feature", "runs"}}, [Run])`, seed by seed.

    Args:
        files: {row: flagfile}. What the file (or another one of its folder) says wins
            over `overrides`, and these win over what it includes from elsewhere.
        overrides: Flags for every row.
        seeds: How many: 0, 1, ...
        out: Where the run folders are.
        known: Runs there are already, to be shared where the settings are the same.

    Raises:
        ValueError: If the settings of a row contradict each other.
    """
    rows, runs, lines = {}, {}, {}
    for name, path in files.items():
        run.expanded([f"--flagfile={path}"])  # refuses what is no flagfile
        base, own = base_and_own(path)
        lines[name] = base + overrides + own
        group = path.resolve().parent.name
        rows[name] = {"group": group, "own": given(own), "runs": {}}
    folders = {compared(run.config): (run.row, run.folder) for run in known}
    for seed in range(seeds):
        for name, row in rows.items():
            values = parsed([*lines[name], f"--seed={seed}"])
            try:
                config = configs.from_flags(values).with_optimizer_defaults()
            except ValueError as error:
                raise ValueError(f"{files[name]}: {error}") from None
            key = compared(config)
            if key not in runs:
                first, folder = folders.get(key, (name, out / f"{name}-seed{seed}"))
                config_there = dataclasses.replace(config, workdir=str(folder))
                runs[key] = Run(first, folder, config_there)
            row["feature"] = config.feature
            row["runs"][str(seed)] = runs[key].name
    return rows, list(runs.values())
