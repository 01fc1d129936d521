"""Weights from which an encoder starts in place of random ones."""

import dataclasses
import functools
import re

import keras
import numpy as np

from tfsimclr import files
from tfsimclr.errors import UserError
from tfsimclr.networks import resnet, torchvision_names
from tfsimclr.networks.names import stable_paths

# The first layers of a ResNet in torchvision's names. They are left at random together
# if the stems differ: the batch norm belongs to the filters of its convolution.
_STEM = re.compile(r"(conv1|bn1|gn1)\.")
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.conv1\.weight$")


@dataclasses.dataclass(frozen=True)
class Report:
    """Where every tensor of the weights and every variable of the encoder went.

    Attributes:
        loaded: Names of the tensors that the encoder starts from.
        random: Names of the encoder's variables that keep their random values.
        unused: Names of the tensors that have no place in the encoder.
    """

    loaded: tuple[str, ...]
    random: tuple[str, ...]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """Returns the report as lines of text."""
        return [
            f"  {len(self.loaded)} tensors loaded",
            f"  {len(self.random)} of the encoder left at random{_names(self.random)}; "
            "also the projection head",
            f"  {len(self.unused)} unused{_names(self.unused)}",
        ]


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Weights of an encoder, read from a file, a run or Keras.

    Attributes:
        source: What the user named, for messages.
        values: `{name: float32 array}` in Keras's layout. The names of a ResNet are
            torchvision's, those of another encoder its variables' paths.
        settings: The settings of the encoder that the weights belong to, as far as they
            are known: `backbone`, `width`, `stem`, `selective_kernel`, `norm`,
            `input_norm`.
        unused: Names of further tensors beside the encoder's.

    Raises:
        UserError: If there are no values, or one is not a finite number.
    """

    source: str
    values: dict[str, np.ndarray]
    settings: dict
    unused: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.values:
            raise UserError(
                f"--init={self.source} holds no weights of an encoder. Expected the "
                "weights of a ResNet under the names of torchvision or timm "
                "(conv1.weight, layer1.0.conv1.weight, ...), or a run of tfsimclr."
            )
        for name, value in self.values.items():
            if not np.isfinite(value).all():
                raise UserError(
                    f"--init={self.source}: the tensor {name} holds NaN or infinite "
                    "values. Use weights from before the training diverged."
                )

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 of the names, shapes and values, whatever the file they came from."""
        parts: list = []
        for name in sorted(self.values):
            value = self.values[name]
            parts += [f"{name} {value.shape} ", value]
        return files.sha256(*parts)

    def report(self, encoder: keras.Model) -> Report:
        """Returns which tensors fit where; the encoder is not changed.

        Raises:
            UserError: If the weights are of another encoder.
        """
        variables = canonical_variables(encoder)
        stem = {n for n in {*variables, *self.values} if _STEM.match(n)}
        if all(self._fits(variables, name) for name in stem):
            stem = set()
        _check_channels(self, variables)
        misfits = [
            name
            for name in {**variables, **self.values}
            if name not in stem and not self._fits(variables, name)
        ]
        if misfits:
            raise self._misfit(variables, misfits)
        return Report(
            loaded=tuple(n for n in variables if n not in stem),
            random=tuple(n for n in variables if n in stem),
            unused=(*(n for n in self.values if n in stem), *self.unused),
        )

    def assign(self, encoder: keras.Model) -> Report:
        """Sets the variables of an encoder; returns which tensors went where.

        Raises:
            UserError: If the weights are of another encoder, which is unchanged then.
        """
        report, variables = self.report(encoder), canonical_variables(encoder)
        for name in report.loaded:
            variables[name].assign(self.values[name])
        return report

    def _fits(self, variables: dict, name: str) -> bool:
        if name not in variables or name not in self.values:
            return False
        return tuple(variables[name].shape) == self.values[name].shape

    def _misfit(self, variables: dict, names: list[str]) -> UserError:
        name = names[0]
        have = self.values[name].shape if name in self.values else "nothing"
        need = tuple(variables[name].shape) if name in variables else "nothing"
        known = ", ".join(
            f"--{key}={str(value).lower()}"
            for key, value in self.settings.items()
            if key in ("backbone", "width", "selective_kernel", "norm")
        )
        advice = f"They are of {known}" if known else "Name weights of the same encoder"
        return UserError(
            f"--init={self.source} does not fit the encoder: {len(names)} tensors "
            f"differ; {name} should be {need}, got {have} (Keras's layout). {advice}."
        )


def canonical_variables(encoder: keras.Model) -> dict:
    """Returns `{name: variable}` of an encoder; see `InitialWeights.values`."""
    names = canonical_names([variable.path for variable in encoder.variables])
    return {names[variable.path]: variable for variable in encoder.variables}


def canonical_names(paths: list[str]) -> dict[str, str]:
    """Returns `{path: name}` for the paths of all variables of an encoder."""
    if any(path.startswith("stage1_block1_") for path in paths):
        return {path: torchvision_names.torchvision_name(path) for path in paths}
    return stable_paths(paths)


def resnet_settings(source: str, values: dict[str, np.ndarray]) -> dict:
    """Returns backbone, width and selective_kernel of a ResNet's weights.

    Args:
        source: What the user named, for messages.
        values: As `InitialWeights.values`, under torchvision's names.

    Raises:
        UserError: If it is not one of our ResNets; a wide ResNet or ResNeXt is named.
    """
    blocks = [match for match in map(_BLOCK.match, values) if match]
    stages = {int(match[1]) for match in blocks}
    counts = tuple(
        sum(int(match[1]) == stage for match in blocks) for stage in sorted(stages)
    )
    kind = "bottleneck" if "layer1.0.conv3.weight" in values else "basic"
    depth = resnet.depth_of(kind, counts)
    if depth is None:
        raise UserError(
            f"--init={source} holds no ResNet that tfsimclr has: {kind} blocks "
            f"{list(counts)} in layer1, layer2, ... Expected the weights of a "
            "ResNet-18, 34, 50, 101 or 152 under the names of torchvision or timm."
        )
    first = values["layer1.0.conv1.weight"]
    selective = "layer1.0.conv1_mix.weight" in values
    selective |= "layer1.0.conv2_mix.weight" in values
    if kind == "bottleneck" and not selective:
        _check_bottleneck(source, values)
    channels = first.shape[-1] // (2 if selective and kind == "basic" else 1)
    return {
        "backbone": f"resnet{depth}",
        "width": channels / 64,
        "selective_kernel": selective,
    }


def _check_bottleneck(source: str, values: dict) -> None:
    middle = values.get("layer1.0.conv2.weight")
    inner, outer = middle.shape, values["layer1.0.conv3.weight"].shape[-1]
    if inner[2] != inner[3]:
        raise UserError(
            f"--init={source} holds a ResNeXt: its 3x3 convolutions have groups, those "
            "of tfsimclr's ResNets have none. Use the weights of a ResNet."
        )
    if 4 * inner[3] != outer:
        raise UserError(
            f"--init={source} holds a wide ResNet such as wide_resnet50_2, in which "
            "only the 3x3 convolutions of the blocks are wider. --width multiplies all "
            "channels, so no --width gives this network. Use the weights of a ResNet."
        )


def _check_channels(weights: InitialWeights, variables: dict) -> None:
    for name in ("conv1.weight", "conv1.0.weight"):
        if name in weights.values and name in variables:
            have, need = weights.values[name].shape[2], variables[name].shape[2]
            if have != need:
                raise UserError(
                    f"--init={weights.source} is for images with {have} channels, "
                    f"tfsimclr's have {need} (red, green, blue). Use weights for "
                    "colour images."
                )


def _names(names: tuple[str, ...], most: int = 4) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f" ({', '.join(names[:most])}{more})"
