"""The methods by name, each with the settings that it uses."""

import dataclasses

from tfsimclr.methods.base import Method
from tfsimclr.methods.byol import BYOL
from tfsimclr.methods.moco import MoCo
from tfsimclr.methods.simclr import LOSSES, SimCLR
from tfsimclr.methods.simsiam import SimSiam

_EMA = ("ema_decay", "ema_schedule")
LOCAL_VIEWS = ("local_image_size", "local_crop_areas")
VIEWS = ("num_views", "num_local_views", *LOCAL_VIEWS)
PREDICTOR = ("pred_layers", "pred_hidden", "pred_activation", "pred_batch_norm")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method on the command line.

    Attributes:
        method: Its class.
        uses: The settings that the method uses and not every method does. Those of
            `PREDICTOR` describe its `predictor`, those of `LOCAL_VIEWS` its
            `local_views`; each other one has the name of the constructor's argument to
            which it is passed.
        defaults: Defaults of settings that are left open (None or "auto").
    """

    method: type[Method]
    uses: tuple[str, ...]
    defaults: dict


METHODS = {
    "simclr": Entry(
        SimCLR,
        uses=(
            *("temperature", "loss", "loss_block_rows", *_EMA, *VIEWS),
            *(name for settings in LOSSES.values() for name in settings),
        ),
        defaults={"ema_decay": 0.0, "ema_schedule": "constant"},
    ),
    "moco": Entry(
        MoCo,
        uses=("temperature", "queue_size", "bn_groups", *_EMA, *PREDICTOR),
        defaults={"ema_decay": 0.999, "ema_schedule": "constant"},
    ),
    "byol": Entry(
        BYOL,
        uses=(*_EMA, *PREDICTOR, *VIEWS),
        defaults={
            "ema_decay": 0.996,
            "ema_schedule": "cosine",
            "pred_layers": 2,
            "proj_batch_norm": "hidden",
        },
    ),
    "simsiam": Entry(
        SimSiam,
        uses=(*PREDICTOR, *VIEWS),
        defaults={
            "pred_layers": 2,
            "pred_batch_norm": "hidden",
            "proj_batch_norm": "true",
        },
    ),
}
