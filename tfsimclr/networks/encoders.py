"""The encoders by name, each with the settings that it uses (`ENCODERS`)."""

import dataclasses
import functools
from collections.abc import Callable

import keras

from tfsimclr.networks import resnet


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder on the command line.

    Attributes:
        build: Returns the untrained encoder; each setting of `uses` is an argument.
        uses: Names of the settings that this encoder uses; others are an error.
        smallest_image: Function: settings -> smallest side of a view in pixels.
        residual_blocks: Whether `remat.Rematerialized` finds its blocks.
    """

    build: Callable[..., keras.Model]
    uses: tuple[str, ...]
    smallest_image: Callable[[dict], int]
    residual_blocks: bool = False


ENCODERS = {
    f"resnet{depth}": Encoder(
        functools.partial(resnet.resnet, depth),
        uses=("width", "stem", "selective_kernel", "norm"),
        smallest_image=lambda settings: resnet.smallest_image(settings["stem"]),
        residual_blocks=True,
    )
    for depth in resnet.DEPTHS
}
