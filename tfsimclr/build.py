"""Makes the objects that a resolved Config describes."""

import dataclasses

import keras

from tfsimclr.data import batches, sampling
from tfsimclr.data import dataset as datasets
from tfsimclr.methods import LOCAL_VIEWS, METHODS, PREDICTOR
from tfsimclr.networks import heads
from tfsimclr.networks.encoders import ENCODERS
from tfsimclr.networks.initial_weights import InitialWeights
from tfsimclr.optimizers import lars, schedules
from tfsimclr.settings.config import Config, parse_areas
from tfsimclr.views.random_view import Views

_BATCH_NORM: dict[str, bool | str] = {"true": True, "false": False, "hidden": "hidden"}


def dataset(config: Config) -> datasets.DataSet:
    """Returns the data set, prepared on the first use."""
    return datasets.load(
        config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        cache_dir=config.cache_dir,
        max_value=config.max_value,
        label_key=config.label_key,
    )


def pretraining_images(config: Config, dataset: datasets.DataSet):
    """Returns the images to pretrain on, and those held out by `--val_share`.

    Args:
        config: Resolved.
        dataset: The data.

    Returns:
        Two arrays `[n, s, s, 3]`, uint8, the second one perhaps of no image. They are
        `batches.Rows` where a copy of the store would be needed.
    """
    images = dataset.pretrain.images
    rows, held_out = sampling.pretraining_rows(
        len(images), config.num_pretrain_images, config.val_share or 0.0
    )
    if len(rows) == len(images):
        return images, images[:0]
    return batches.Rows(images, rows), batches.Rows(images, held_out)


def start(config: Config) -> None:
    """Sets the precision and the seed of the layers that are made from here on."""
    keras.config.set_dtype_policy(config.precision)
    keras.utils.set_random_seed(config.seed)


def encoder(config: Config) -> keras.Model:
    """Returns the untrained encoder; after `start` its weights are the seed's."""
    return ENCODERS[config.backbone].from_settings(dataclasses.asdict(config))


def method(
    config: Config,
    total_steps: int | None = None,
    num_images: int = 1,
    weights: InitialWeights | None = None,
):
    """Returns the untrained model of a resolved config.

    Args:
        config: Resolved.
        total_steps: Steps of the run, for an EMA decay on a cosine; evaluation needs
            none.
        num_images: Images of the training, for the running denominators of
            --loss=sogclr.
        weights: Weights that the encoder starts from, or None for random ones.
    """
    start(config)
    network = encoder(config)
    if weights is not None:
        weights.assign(network)  # before a momentum network copies the encoder
    hidden = config.proj_hidden or None
    head = heads.ProjectionHead(
        config.proj_layers,
        dim=config.proj_dim,
        hidden_dim=hidden,
        activation=config.proj_activation,
        batch_norm=_BATCH_NORM[config.proj_batch_norm],
        norm=config.norm,
    )
    views = Views(
        image_size=config.image_size,
        crop_min_area=config.crop_min_area,
        jitter_strength=config.jitter_strength,
        blur=config.blur,
        flip=config.flip,
        grayscale=config.grayscale,
    )
    entry = METHODS[config.method]
    described = (*PREDICTOR, *LOCAL_VIEWS)  # settings of parts, which are made here
    arguments = {n: getattr(config, n) for n in entry.uses if n not in described}
    if config.loss == "sogclr":
        arguments["num_images"] = num_images
    if config.num_local_views:
        areas = parse_areas(config.local_crop_areas)
        arguments["local_views"] = views.local_views(config.local_image_size, *areas)
    if "ema_schedule" in entry.uses:
        arguments["total_steps"] = total_steps
    if config.pred_layers:
        arguments["predictor"] = heads.ProjectionHead(
            config.pred_layers,
            dim=config.proj_dim,
            # z, the predictor's input, is narrow: as wide as the head's layers.
            hidden_dim=config.pred_hidden or hidden or network.output_shape[-1],
            activation=config.pred_activation,
            batch_norm=_BATCH_NORM[config.pred_batch_norm],
            norm=config.norm,
            name="predictor",
        )
    common: dict = {
        "seed": config.seed,
        "microbatch_size": config.microbatch_size,
        "remat": config.remat,
        "sync_batch_norm": config.sync_batch_norm,
    }
    return entry.method(network, head, views, **common, **arguments)


def schedule(config: Config, steps_per_epoch: int) -> schedules.Schedule:
    """Returns the learning rate of every step of the run."""
    total_steps = config.epochs * steps_per_epoch
    peak = schedules.scaled_learning_rate(
        config.learning_rate, config.batch_size, config.learning_rate_scaling
    )
    return schedules.Schedule(
        peak,
        total_steps=total_steps,
        warmup_steps=min(int(config.warmup_epochs * steps_per_epoch), total_steps - 1),
        decay=config.schedule,
    )


def optimizer(config: Config, rate, variables):
    """Returns the optimizer at a rate or schedule; only kernels are decayed."""
    if config.optimizer == "lars":
        return lars.LARS(rate, momentum=0.9, l2=config.weight_decay)
    decay = config.weight_decay or None
    if config.optimizer == "sgd":
        network_optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=decay)
    else:
        network_optimizer = keras.optimizers.Adam(rate, weight_decay=decay)
    if decay:
        excluded = [v for v in variables if len(v.shape) < 2]
        network_optimizer.exclude_from_weight_decay(excluded)
    return network_optimizer


def fit_options(config: Config) -> dict:
    """Returns the arguments of `training.fit.fit` that are settings of every mode."""
    return {
        "jit_compile": config.jit_compile == "true",
        "keep_checkpoints": config.keep_checkpoints,
        "checkpoint_minutes": config.checkpoint_minutes,
        "steps_per_check": config.steps_per_check,
    }
