"""Writes what torchvision's ResNets compute, for the tests to compare with.

Needs an environment with torch and a torchvision of the same release:

    python tests/data/make_torchvision.py

It fills each network with values drawn by NumPy (`draw`, which the tests use too), runs
one image of each size in evaluation mode and writes the pooled features and the names
and shapes of the state dict, without `fc`, to tests/data/torchvision_resnet.npz. Each
network has three stems: its own, and those that the lines of `CHANGES` give it.
"""

import pathlib
import sys
import types

import numpy as np

NETWORKS = ("resnet18", "resnet50")
# Height and width: even, odd, and one of each at different sizes.
SIZES = ((64, 64), (75, 75), (90, 67))
# Stem -> the lines that give it to `model`.
CHANGES = {
    "imagenet": (),
    "medium": ("model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)",),
    "small": (
        "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)",
        "model.maxpool = torch.nn.Identity()",
    ),
}
TARGET = pathlib.Path(__file__).parent / "torchvision_resnet.npz"


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 values for a parameter called `name` in torchvision.

    The name is the seed, so the order of the parameters does not matter. Convolutions
    get He's variance. All four vectors of a batch norm are far from those of the
    identity; its scales keep the features of a deep network near 1.

    Args:
        name: For example `layer1.0.conv1.weight`.
        shape: Convolutions as `[out, in, height, width]`.
    """
    rng = np.random.default_rng(list(name.encode()))
    if len(shape) == 4:
        fan_in = shape[1] * shape[2] * shape[3]
        values = rng.normal(0, np.sqrt(2 / fan_in), shape)
    elif name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("weight"):
        values = rng.uniform(0.2, 0.8, shape)
    else:
        values = rng.normal(0, 0.2, shape)
    return values.astype("float32")


def image(height: int, width: int) -> np.ndarray:
    """Returns one image `[1, height, width, 3]`, float32 in 0-1."""
    rng = np.random.default_rng((height, width))
    return rng.uniform(size=(1, height, width, 3)).astype("float32")


def main():
    import torch

    # torchvision fails to import where its compiled box operators do not match torch.
    # Residual networks need none of them, so the module that loads them is replaced.
    operators = "torchvision._meta_registrations"
    sys.modules[operators] = types.ModuleType(operators)
    import torchvision

    features = {"torchvision": torchvision.__version__, "torch": torch.__version__}
    for network in NETWORKS:
        for stem, changes in CHANGES.items():
            model = getattr(torchvision.models, network)(weights=None)
            model.fc = torch.nn.Identity()
            for line in changes:
                exec(line, {"model": model, "torch": torch})
            key = network if stem == "imagenet" else f"{network}_{stem}"
            state = model.state_dict()
            shapes = [f"{name} {tuple(value.shape)}" for name, value in state.items()]
            features[f"{key}_names"] = np.array(shapes)
            values = {
                name: torch.from_numpy(draw(name, tuple(tensor.shape)))
                if tensor.is_floating_point()
                else tensor
                for name, tensor in state.items()
            }
            model.load_state_dict(values)
            model.eval()
            for height, width in SIZES:
                pixels = torch.from_numpy(image(height, width)).permute(0, 3, 1, 2)
                with torch.no_grad():
                    h = model(pixels.contiguous()).numpy()
                features[f"{key}_{height}x{width}"] = h
                print(f"{key} {height}x{width}: mean {h.mean():.3f}, std {h.std():.3f}")
    np.savez_compressed(TARGET, **features)


if __name__ == "__main__":
    main()
