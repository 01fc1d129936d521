"""Dataclass fields that are also command-line flags."""

import dataclasses
import math
import types
import typing

from absl import flags

from tfsimclr.errors import UserError


def option(
    default,
    help,
    choices=None,
    greater_than=None,
    minimum=None,
    maximum=None,
    pretraining=True,
    since=None,
    before=None,
):
    """Returns a dataclass field that is also a flag.

    Args:
        default: Its default; None means "decided by the data set or the optimizer".
        help: Meaning, unit, and when one would change it.
        choices: The values allowed, if few.
        greater_than: The value must be greater than this.
        minimum: The value must be at least this.
        maximum: The value must be at most this.
        pretraining: Whether the setting changes the pretraining. A run folder is tied
            to these settings.
        since: Version that added the setting, if not the first. At its default it is
            left out of the default run folder's name, so that older runs are found.
        before: Value that describes the runs of older versions, if not the default; it
            is left out of the name too.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "greater_than": greater_than,
        "minimum": minimum,
        "maximum": maximum,
        "pretraining": pretraining,
        "since": since,
        "before": default if before is None else before,
    }
    return dataclasses.field(default=default, metadata=metadata)


def define_flags(
    config_class: type, values: flags.FlagValues, aliases: dict[str, str]
) -> None:
    """Defines one absl flag for every field of a dataclass of options.

    Args:
        config_class: The dataclass.
        values: Where the flags are defined.
        aliases: `{old name: field name}`; the old names keep working.
    """
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
        makers[field_type(field)](field.name, field.default, help, flag_values=values)
    for old, name in aliases.items():
        flags.DEFINE_alias(old, name, flag_values=values)


def check(config) -> None:
    """Raises a UserError that names the first setting outside its range.

    An int given for a float setting becomes a float, and a bool given for a text
    setting becomes "true" or "false".
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, bool) and to_flag_value(value) in (
            field.metadata["choices"] or ()
        ):
            value = to_flag_value(value)
            object.__setattr__(config, field.name, value)
        problem = validation_error(field, value)
        if problem:
            raise UserError(f"--{field.name} must be {problem}, got {value!r}.")
        if field_type(field) is float and value is not None:
            # 1 and 1.0 must be equal as text too: run folders compare the text.
            object.__setattr__(config, field.name, float(value))


def to_flag_value(value) -> str:
    """Returns a setting's value as the text that follows `=` in a flag."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def field_type(field: dataclasses.Field) -> type:
    if isinstance(field.type, types.UnionType):
        return typing.get_args(field.type)[0]
    return typing.cast(type, field.type)


def validation_error(field: dataclasses.Field, value) -> str | None:
    """Returns what the value must be, or None if the value is valid."""
    kind, limits = field_type(field), field.metadata
    if value is None and field.default is None:
        return None
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        return kind.__name__
    if limits["choices"] and value not in limits["choices"]:
        return f"one of {limits['choices']}"
    if kind is float and not math.isfinite(value):
        return "a finite number"
    if limits["greater_than"] is not None and not value > limits["greater_than"]:
        return f"above {limits['greater_than']}"
    if limits["minimum"] is not None and not value >= limits["minimum"]:
        return f"at least {limits['minimum']}"
    if limits["maximum"] is not None and not value <= limits["maximum"]:
        return f"at most {limits['maximum']}"
    if kind is str and any(character in value for character in "\n\r\0"):
        return "a single line"
    return None
