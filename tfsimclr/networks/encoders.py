"""The encoders by name, each with the settings that it uses (`ENCODERS`)."""

import dataclasses
import functools
from collections.abc import Callable

import keras

from tfsimclr.networks import applications, resnet


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder on the command line.

    Attributes:
        build: Returns the untrained encoder; each setting of `uses` is an argument.
        uses: Names of the settings that this encoder uses; others are an error.
        smallest_image: Function: settings -> smallest side of a view in pixels.
        residual_blocks: Whether `remat.Rematerialized` finds its blocks.
        has_batch_norm: Whether it has batch norm, which MoCo can split into groups.
        published_weights: Returns the weights of `--init=imagenet`, `{path: value}`, or
            None if there are none.
        has_torch_names: Whether torchvision and timm have names for its weights.
    """

    build: Callable[..., keras.Model]
    uses: tuple[str, ...]
    smallest_image: Callable[[dict], int]
    residual_blocks: bool = False
    has_batch_norm: bool = True
    published_weights: Callable[[], dict] | None = None
    has_torch_names: bool = False

    def from_settings(self, settings: dict) -> keras.Model:
        """Returns the untrained encoder.

        Args:
            settings: Those that it does not use, and those that are None, are ignored.
        """
        used = {name: settings[name] for name in self.uses}
        return self.build(**{k: v for k, v in used.items() if v is not None})


def _smallest_image(name: str, settings: dict) -> int:
    return applications.smallest_image(name)


ENCODERS = {
    f"resnet{depth}": Encoder(
        functools.partial(resnet.resnet, depth),
        uses=("width", "stem", "selective_kernel", "norm", "input_norm"),
        smallest_image=lambda settings: resnet.smallest_image(settings["stem"]),
        residual_blocks=True,
        has_torch_names=True,
    )
    for depth in resnet.DEPTHS
}
ENCODERS |= {
    name: Encoder(
        functools.partial(applications.application, name),
        uses=(),
        smallest_image=functools.partial(_smallest_image, name),
        has_batch_norm=name != "convnexttiny",
        published_weights=functools.partial(applications.published_weights, name),
    )
    for name in applications.NAMES
}
