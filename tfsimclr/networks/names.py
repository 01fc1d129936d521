"""The names of a network's features and variables."""

import re

from tfsimclr.errors import UserError

NUMBER = re.compile(r"_\d+$")


def feature_names(num_layers: int) -> tuple[str, ...]:
    """Returns ("h", "head_1", ..., "z") for a head of `num_layers` layers.

    Raises:
        UserError: If there is not at least one layer.
    """
    if num_layers < 1:
        raise UserError(f"num_layers must be at least 1, got num_layers={num_layers}.")
    return ("h", *(f"head_{i}" for i in range(1, num_layers)), "z")


def stable_paths(paths: list[str]) -> dict[str, str]:
    """Returns the paths with the layers of one name and parent numbered from 1.

    "tiny_2/dense_8/kernel" and "tiny_2/dense_9/kernel" become "tiny/dense_1/kernel" and
    "tiny/dense_2/kernel". A layer that is the only one of its name gets no number.
    """
    numbers: dict[tuple[str, str], set[int]] = {}
    parts_of = {}
    for path in paths:
        *layers, variable = path.split("/")
        parts, parent = [], ""
        for layer in layers:
            name = NUMBER.sub("", layer)
            number = int(layer[len(name) + 1 :] or 0)
            numbers.setdefault((parent, name), set()).add(number)
            parts.append((parent, name, number))
            parent += layer + "/"
        parts_of[path] = parts, variable
    result = {}
    for path, (parts, variable) in parts_of.items():
        renamed = []
        for parent, name, number in parts:
            of_name = sorted(numbers[parent, name])
            rank = f"_{of_name.index(number) + 1}" if len(of_name) > 1 else ""
            renamed.append(name + rank)
        result[path] = "/".join([*renamed, variable])
    return result
