"""The PyTorch side of `step`: the same network, loss and update as ours.

<python with torch> -m bench.torch_worker <settings as JSON>
with scripts/ on PYTHONPATH

A translation of tfsimclr's resnet.py, heads.py and NT-Xent that needs only torch.
"""

import json
import sys

import torch
from torch import nn
from torch.nn import functional

from bench import harness


class Block(nn.Module):
    """A basic block: relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))."""

    def __init__(self, channels: int, filters: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            *conv_bn(channels, filters, 3, stride),
            nn.ReLU(inplace=True),
            *conv_bn(filters, filters, 3, 1),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != filters:
            self.shortcut = nn.Sequential(*conv_bn(channels, filters, 1, stride))

    def forward(self, x):
        return functional.relu(self.residual(x) + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """A bottleneck block of torchvision's ResNet (v1.5); its output is 4x as wide."""

    def __init__(self, channels: int, filters: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            *conv_bn(channels, filters, 1, 1),
            nn.ReLU(inplace=True),
            *conv_bn(filters, filters, 3, stride),
            nn.ReLU(inplace=True),
            *conv_bn(filters, 4 * filters, 1, 1),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != 4 * filters:
            shortcut = conv_bn(channels, 4 * filters, 1, stride)
            self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x):
        return functional.relu(self.residual(x) + self.shortcut(x), inplace=True)


# Depth -> (block, how much wider its output is, blocks in each stage).
ARCHITECTURES: dict = {
    10: (Block, 1, (1, 1, 1, 1)),
    18: (Block, 1, (2, 2, 2, 2)),
    50: (Bottleneck, 4, (3, 4, 6, 3)),
}


def conv_bn(channels: int, filters: int, kernel: int, stride: int) -> list:
    padding = kernel // 2
    conv = nn.Conv2d(channels, filters, kernel, stride, padding, bias=False)
    return [conv, nn.BatchNorm2d(filters, eps=1e-5, momentum=0.1)]


def network(stem: str, width: float, depth: int = 18, dim: int = 64) -> nn.Module:
    """Returns a ResNet and a head of two layers: `[n, 3, s, s]` -> z `[n, dim]`."""
    block, expansion, blocks = ARCHITECTURES[depth]
    channels = round(64 * width)
    kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
    layers = [*conv_bn(3, channels, kernel, stride), nn.ReLU(inplace=True)]
    if stem != "small":
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    for stage, count in enumerate(blocks):
        filters = round(64 * 2**stage * width)
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            layers.append(block(channels, filters, stride))
            channels = expansion * filters
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(channels, channels, bias=False), nn.ReLU(inplace=True)]
    layers += [nn.Linear(channels, dim, bias=False)]
    return nn.Sequential(*layers)


def nt_xent(z, temperature: float = 0.5):
    """Returns the mean NT-Xent loss of z `[2n, d]`: first views, then second."""
    z = functional.normalize(z.float(), dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    n = len(z) // 2
    labels = torch.arange(2 * n, device=z.device).roll(n)
    return functional.cross_entropy(logits, labels)


# Name of a precision -> type in which autocast computes.
HALF = {
    "mixed_bfloat16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def prepare(settings: dict):
    """Returns a task that takes steps, and what is reported when it is ready.

    Args:
        settings: Those of a network like `training_tasks.NETWORK`; `precision` may also
            be tf32, bfloat16 or float16; `device` is cpu or cuda.
    """
    torch.manual_seed(0)
    device, precision = settings.get("device", "cpu"), settings["precision"]
    torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    torch.backends.cudnn.benchmark = True
    size, count = settings["size"], 2 * settings["batch"]
    model = network(settings["stem"], settings["width"], settings.get("depth", 18))
    model = model.train().to(device, memory_format=torch.channels_last)
    images = torch.rand(count, 3, size, size)
    images = images.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    half = HALF.get(precision)
    scaler = torch.amp.GradScaler(device, enabled=half == torch.float16)

    def task():
        for _ in range(settings["steps"]):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype=half, enabled=half is not None):
                z = model(images)
            loss = nt_xent(z)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return {"loss": float(loss)}  # waits for the device

    reported = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return task, reported


if __name__ == "__main__":
    harness.serve(lambda: prepare(json.loads(sys.argv[1])))
