"""The plan of a study: experiments from flagfiles, and the runs that they need.

An experiment is one flagfile; each of its seeds needs one run. Experiments that differ
only in the feature that is scored share their runs.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping

from absl import flags

from tfsimclr.errors import UserError
from tfsimclr.settings import config as configs
from tfsimclr.settings import flagfiles, options

# Runs that differ only in these settings are the same run. Every feature is scored, so
# --feature changes no weights and no scores.
NOT_COMPARED = (
    *("mode", "workdir", "cache_dir", "feature"),
    *("keep_checkpoints", "checkpoint_minutes"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One pretraining with its evaluation.

    Attributes:
        experiment: Name of the first experiment that needs the run.
        folder: The run folder.
        config: The settings; None and "auto" are left for the run to decide.
    """

    experiment: str
    folder: pathlib.Path
    config: configs.Config

    @property
    def name(self) -> str:
        return self.folder.name

    def epochs_done(self) -> int:
        """Returns the number of epochs in history.csv."""
        try:
            history = (self.folder / "history.csv").read_text(encoding="utf-8")
        except OSError:
            return 0
        return min(max(len(history.splitlines()) - 1, 0), self.config.epochs)

    def result(self) -> dict | None:
        """Returns result.json, or None unless it has the scores of this whole run.

        Result files of older versions are read as well.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            text = (self.folder / "result.json").read_text(encoding="utf-8")
            result = json.loads(text)
            fields = dataclasses.fields(configs.Config)
            # An older version lacks the newer settings: they were at their defaults.
            saved = {field.name: field.default for field in fields}
            saved |= configs.rename_old(result["config"])
            same = all(
                options.to_flag_value(saved[name]) == options.to_flag_value(value)
                for name, value in compared(self.config)
                if value not in (None, "auto")
            )
            complete = result["pretrain"]["epochs"] >= self.config.epochs
            if complete and result["features"] and same:
                return result
        return None

    def state(self) -> str:
        """Returns "finished", "to do" or the epoch after which the run continues."""
        if self.result():
            return "finished"
        done, epochs = self.epochs_done(), self.config.epochs
        return f"continues after epoch {done} of {epochs}" if done else "to do"


def compared(config: configs.Config) -> tuple:
    """Returns the (name, value) pairs that tell one run from another."""
    values = dataclasses.asdict(config)
    return tuple((k, v) for k, v in values.items() if k not in NOT_COMPARED)


def _key(config: configs.Config) -> tuple:
    """Returns a key that is equal for configs of the same run."""
    if config.method in ("simclr", "moco"):
        # Version 0.1 stored this default in study.json as "false", today's as None.
        config = config.replace_none(proj_batch_norm="false")
    return compared(config)


def parse_flags(lines: list[str]) -> flags.FlagValues:
    """Returns the flags that lines like `--epochs=3` set.

    Raises:
        UserError: If a line is no flag, or a flag is unknown or has an invalid value.
    """
    values = flags.FlagValues()
    configs.define_flags(values)
    values.set_gnu_getopt(True)
    try:
        rest = values(["study", *lines])[1:]
    except (flags.Error, ValueError) as error:  # --noepochs=3 is a ValueError
        raise UserError(str(error)) from None
    if rest:
        raise UserError(f"Expected flags only (--name=value), got {rest}.")
    return values


def settings_in(lines: list[str]) -> dict:
    """Returns {name: value} of the settings that the lines set."""
    values = parse_flags(lines)
    names = [field.name for field in dataclasses.fields(configs.Config)]
    present = {n for n in names if values[n].present}
    # A flag under its old name sets the value, but only the old flag is present.
    present |= {new for old, new in configs.ALIASES.items() if values[old].present}
    return {name: values[name].value for name in names if name in present}


def to_text(settings: dict) -> str:
    """Returns settings as flags on one line."""
    return " ".join(f"--{k}={v}" for k, v in settings.items()) or "no flags"


def base_and_own(path: pathlib.Path) -> tuple[list[str], list[str]]:
    """Returns the flags that a flagfile includes from elsewhere, and its own flags.

    Flags from another file of the same folder count as its own:
    flags/paper/lars_layer4.flags includes lars.flags, which is an experiment too, and
    that includes ../base/stl10.flags, the base.
    """
    base: list[str] = []
    own: list[str] = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        line = line.strip()
        name, _, value = line.lstrip("-").partition("=")
        if name == "flagfile":
            inner = path.parent / os.path.expanduser(value)
            if inner.parent.resolve() == path.parent.resolve():
                inner_base, inner_own = base_and_own(inner)
                base, own = base + inner_base, own + inner_own
            else:
                base += flagfiles.expand([f"--flagfile={inner}"])
        elif line.startswith("-"):
            own.append(line)
    return base, own


def experiment_files(places: str) -> dict[str, pathlib.Path]:
    """Returns {experiment: flagfile}.

    Args:
        places: Flagfiles, or folders of flagfiles, separated by commas.

    Raises:
        UserError: If a place has no flagfile, or two flagfiles have the same name.
    """
    paths = []
    for place in map(pathlib.Path, places.split(",")):
        inside = sorted(place.glob("*.flags")) if place.is_dir() else [place]
        if not inside or not inside[0].is_file():
            raise UserError(
                f"--experiments: {place} is not a flagfile or a folder of flagfiles."
            )
        paths += inside
    files = {path.stem: path for path in paths}
    if len(files) < len(paths):
        listed = ", ".join(map(str, paths))
        raise UserError(
            f"--experiments: two experiments have the same name: {listed}. Rename one."
        )
    return files


def plan(
    files: Mapping[str, pathlib.Path],
    overrides: list[str],
    seeds: int,
    out: pathlib.Path,
    known: Iterable[Run] = (),
    vary: tuple[str, tuple[str, ...]] | None = None,
) -> tuple[dict[str, dict], list[Run]]:
    """Returns the experiments and the runs that they need, seed by seed.

    Args:
        files: {experiment: flagfile}. The flags of the file itself, or of another one
            in its folder, win over `overrides`; these win over the flags that it
            includes from elsewhere.
        overrides: Flags for every experiment.
        seeds: Number of seeds; they are 0, 1, ...
        out: Folder of the run folders.
        known: Runs that exist already. They are shared where the settings are the same.
        vary: None, or a setting and its values: each flagfile is then one experiment
            for every value, named after both: dcl_64.

    Returns:
        `{experiment: {"group", "own", "feature", "runs"}}`, where `group` is the name
        of the flagfile's folder, `own` its own settings and `runs` is {seed: run name};
        with `vary` also "file", the flagfile's name, and "vary", the setting's; and the
        runs.

    Raises:
        UserError: If the settings of an experiment are invalid.
    """
    experiments: dict[str, dict] = {}
    runs: dict[tuple, Run] = {}
    lines: dict[str, list[str]] = {}
    for name, path in files.items():
        flagfiles.expand([f"--flagfile={path}"])  # checks that it is a flagfile
        base, own = base_and_own(path)
        group = path.resolve().parent.name
        for suffix, last in _variants(vary):
            lines[name + suffix] = base + overrides + own + last
            experiments[name + suffix] = {
                "group": group,
                "own": settings_in(own + last),
                "runs": {},
            }
            if vary is not None:
                experiments[name + suffix] |= {"file": name, "vary": vary[0]}
    folders = {_key(run.config): (run.experiment, run.folder) for run in known}
    for seed in range(seeds):
        for name, experiment in experiments.items():
            try:
                config = read_config([*lines[name], f"--seed={seed}"])
            except UserError as error:
                raise UserError(f"Experiment {name}: {error}") from None
            key = _key(config)
            if key not in runs:
                first, folder = folders.get(key, (name, out / f"{name}-seed{seed}"))
                in_folder = dataclasses.replace(config, workdir=str(folder))
                runs[key] = Run(first, folder, in_folder)
            experiment["feature"] = config.feature
            experiment["runs"][str(seed)] = runs[key].name
    return experiments, list(runs.values())


def _variants(vary) -> list[tuple[str, list[str]]]:
    """Returns pairs of the end of an experiment's name and its last flags."""
    if vary is None:
        return [("", [])]
    setting, values = vary
    return [(f"_{value}", [f"--{setting}={value}"]) for value in values]


def parse_vary(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns the setting and the values of `--vary=batch_size=16,32`.

    Raises:
        UserError: If the text has another form, or a value is no value of the setting.
    """
    setting, _, values = text.partition("=")
    if not setting or not values:
        raise UserError(
            f"--vary must be a setting and its values, such as batch_size=16,32, got "
            f"{text!r}."
        )
    for value in values.split(","):
        settings_in([f"--{setting}={value}"])
    return setting, tuple(values.split(","))


def read_config(lines: list[str]) -> configs.Config:
    """Returns the config that lines set, with the defaults of its optimizer."""
    return configs.from_flags(parse_flags(lines)).with_optimizer_defaults()
