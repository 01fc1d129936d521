"""Which model of torchvision and timm has the layers of a ResNet of ours."""

from tfsimclr.networks import resnet

# The depths that both libraries have, under the name resnet<depth>.
DEPTHS = (18, 34, 50, 101, 152)
_BLOCKS = {"basic": "BasicBlock", "bottleneck": "Bottleneck"}
_CHANGES = {
    "imagenet": (),
    "medium": ("model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)",),
    "small": (
        "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)",
        "model.maxpool = torch.nn.Identity()",
    ),
}


def fitting_model(
    depth: int, width: float, stem: str, selective_kernel: bool, norm: str
) -> tuple[str | None, tuple[str, ...]]:
    """Returns the name of the model in torchvision and timm, and changes to it.

    The arguments are those of `resnet.resnet`.

    Returns:
        For example `resnet18`, or None if no model of these libraries has the same
        layers; and the lines of Python that give `model` the same stem.
    """
    if depth not in DEPTHS or width != 1 or selective_kernel or norm != "batch":
        return None, ()
    return f"resnet{depth}", _CHANGES[stem]


def resnet_arguments(depth: int, width: float, stem: str, norm: str) -> dict:
    """Returns what a program needs to build the network from torchvision's blocks."""
    block, blocks, channels = resnet.stages(depth, width)
    return {
        "block": _BLOCKS[block],
        "layers": list(blocks),
        "channels": channels,
        "stem": stem,
        "norm": norm,
    }
