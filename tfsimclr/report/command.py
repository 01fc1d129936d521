"""The command that repeats a run, with as few settings as possible."""

import dataclasses
import shlex

from tfsimclr import resolve
from tfsimclr.data import dataset as datasets
from tfsimclr.errors import UserError
from tfsimclr.settings import options
from tfsimclr.settings.config import Config

_LEFT_OUT: dict = {"mode": "all", "workdir": "", "cache_dir": ""}


def command(config: Config, dataset: datasets.DataSet | None = None) -> str:
    """Returns a command line that repeats a run.

    Args:
        config: Resolved.
        dataset: The data of the run. With it, settings are left out that are decided in
            the same way without being named.
    """
    config = dataclasses.replace(config, **_LEFT_OUT)
    named = [
        field.name
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    ]
    if dataset is not None:
        # The data set at hand is prepared at this size, so it cannot tell the default.
        default_size = datasets.DEFAULTS.get(config.dataset, {}).get("image_size")
        needed = {"image_size"} if config.image_size != default_size else set()
        for name in [name for name in named if name not in needed]:
            fewer = [other for other in named if other != name]
            if _resolves_to(config, fewer, dataset):
                named = fewer
    lines = {name: options.to_flag_value(getattr(config, name)) for name in named}
    arguments = [f"--{name}={value}" for name, value in lines.items()]
    return shlex.join(["python", "-m", "tfsimclr.run", *arguments])


def _resolves_to(config: Config, names: list[str], dataset) -> bool:
    try:
        short = Config(**{name: getattr(config, name) for name in names})
        return resolve.resolve(short, dataset) == config
    except UserError:
        return False
