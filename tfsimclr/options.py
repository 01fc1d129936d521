"""Dataclass fields that are also command-line flags."""

import dataclasses
import math
import types
import typing

from absl import flags


def option(
    default,
    help,
    choices=None,
    above=None,
    least=None,
    most=None,
    pretraining=True,
):
    """Returns a dataclass field that is also a flag.

    Args:
        default: Its default; None means "decided by the data set or the optimizer".
        help: Meaning, unit, and when one would change it.
        choices: The values allowed, if few.
        above: The value must be greater than this.
        least: The value must be at least this.
        most: The value must be at most this.
        pretraining: Whether it touches the pretraining: a run folder is bound to it.
    """
    limits = {"choices": choices, "above": above, "least": least, "most": most}
    about = {"help": help, "pretraining": pretraining}
    return dataclasses.field(default=default, metadata={**about, **limits})


def define_flags(config_class: type, values: flags.FlagValues) -> None:
    """Defines one absl flag for every field of a dataclass of options."""
    makers: dict = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(config_class):
        help = field.metadata["help"]
        if field.metadata["choices"]:
            help += " One of: " + ", ".join(field.metadata["choices"]) + "."
        makers[_kind(field)](field.name, field.default, help, flag_values=values)


def check(config) -> None:
    """Raises a ValueError that names the first option outside its range.

    Whole numbers of options that are floats become floats, and truth values of options
    that are text become that text.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, bool) and text(value) in (field.metadata["choices"] or ()):
            value = text(value)
            object.__setattr__(config, field.name, value)
        problem = _problem(field, value)
        if problem:
            raise ValueError(f"--{field.name} must be {problem}, got {value!r}.")
        if _kind(field) is float and value is not None:
            # 1 and 1.0 are one setting, also as text, by which runs are told apart.
            object.__setattr__(config, field.name, float(value))


def text(value) -> str:
    """Returns an option's value as it stands behind the `=` of its flag."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind(field: dataclasses.Field) -> type:
    if isinstance(field.type, types.UnionType):
        return typing.get_args(field.type)[0]
    return typing.cast(type, field.type)


def _problem(field: dataclasses.Field, value) -> str | None:
    """Returns what the value should have been, or None if it is fine."""
    kind, limits = _kind(field), field.metadata
    if value is None and field.default is None:
        return None
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        return kind.__name__
    if limits["choices"] and value not in limits["choices"]:
        return f"one of {limits['choices']}"
    if kind is float and not math.isfinite(value):
        return "a finite number"
    if limits["above"] is not None and not value > limits["above"]:
        return f"above {limits['above']}"
    if limits["least"] is not None and not value >= limits["least"]:
        return f"at least {limits['least']}"
    if limits["most"] is not None and not value <= limits["most"]:
        return f"at most {limits['most']}"
    if kind is str and any(character in value for character in "\n\r\0"):
        return "a single line"
    return None
