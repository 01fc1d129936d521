"""The side of lightly in `peer`: SimCLR as its users train it.

<python with lightly> -m bench.lightly_worker <task> <settings as JSON>
with scripts/ on PYTHONPATH
"""

import json
import sys

import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.transforms import SimCLRTransform
from torch.utils.data import DataLoader

from bench import harness, torch_worker


def batches(settings: dict) -> DataLoader:
    """Returns the batches of an epoch: ([views_a, views_b], labels, file names)."""
    transform = SimCLRTransform(input_size=settings["size"])
    return DataLoader(
        LightlyDataset(settings["folder"], transform=transform),
        batch_size=settings["batch"],
        shuffle=True,
        drop_last=True,
        num_workers=settings["workers"],
    )


def train(settings: dict):
    """A worker's task: one epoch; the first lists the files and builds the model."""
    prepared: dict = {}

    def prepare():
        torch.manual_seed(0)
        model = torch_worker.network(settings["stem"], settings["width"]).train()
        model = model.to(memory_format=torch.channels_last)
        return {
            "data": batches(settings),
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9),
        }

    def task():
        if not prepared:
            prepared.update(prepare())
        model, optimizer = prepared["model"], prepared["optimizer"]
        nt_xent = NTXentLoss(temperature=0.5)
        for views, *_ in prepared["data"]:
            images = torch.cat(views).to(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            loss = nt_xent(*model(images).chunk(2))
            loss.backward()
            optimizer.step()
        return {"parameters": sum(p.numel() for p in model.parameters())}

    return task, {}


def feed(settings: dict):
    """A worker's task: reads one epoch of views and does nothing with them."""
    data = batches(settings)

    def task():
        for _ in data:
            pass

    return task, {}


TASKS = {"train": train, "feed": feed}

if __name__ == "__main__":
    harness.serve(lambda: TASKS[sys.argv[1]](json.loads(sys.argv[2])))
