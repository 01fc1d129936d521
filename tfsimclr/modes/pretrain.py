"""Pretraining of a run on images without labels."""

import pathlib

import numpy as np

from tfsimclr import build
from tfsimclr.data import dataset as datasets
from tfsimclr.distribution import strategies
from tfsimclr.runs import initial
from tfsimclr.settings.config import Config
from tfsimclr.training import fit


def pretrain(config: Config, dataset: datasets.DataSet, workdir: pathlib.Path) -> None:
    """Trains to the last epoch, from the newest checkpoint if there is one.

    Args:
        config: Resolved.
        dataset: Its `pretrain` split is used.
        workdir: The run folder.

    Raises:
        FloatingPointError: If the loss or the weights are not finite.
        KeyboardInterrupt: On SIGINT or SIGTERM, after the state is saved.
    """
    images, validation = build.pretraining_images(config, dataset)
    steps_per_epoch = len(images) // config.batch_size
    weights = initial.load(config, workdir)
    total_steps = config.epochs * steps_per_epoch
    schedule = build.schedule(config, steps_per_epoch)
    with strategies.scope(strategies.make(config.strategy)):
        model = build.method(config, total_steps, len(images), weights)
        optimizer = build.optimizer(config, schedule, model.learned_variables)
    index = np.arange(len(images)) if model.needs_index else None
    if weights is not None:
        print(f"The encoder starts from {config.init}:")
        print("\n".join(weights.report(model.encoder).lines()), flush=True)
    fit.fit(
        model,
        optimizer,
        schedule,
        images,
        workdir,
        validation=validation,
        labels=index,
        batch_size=config.batch_size,
        seed=config.seed,
        epochs=config.epochs,
        meta={"config": config.pretraining(), "num_images": len(images)},
        **build.fit_options(config),
    )
