"""Makes the objects that a Config describes."""

import dataclasses

import keras
import tensorflow as tf

from tfsimclr import augment, data, heads, lars, resnet, schedules, simclr
from tfsimclr.config import Config

METHODS = {"simclr": simclr.SimCLR}


def dataset(config: Config) -> data.DataSet:
    """Returns the data set, prepared on the first use."""
    return data.load(
        config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        cache_dir=config.cache_dir,
    )


def resolve(config: Config, images: data.DataSet) -> Config:
    """Returns the config with every default decided: data set, optimizer, device.

    Raises:
        ValueError: If the settings do not fit the data set.
    """
    config = config.with_optimizer_defaults()
    defaults = data.defaults(config.dataset, config.image_size or images.image_size)
    stem = defaults["stem"] if config.stem == "auto" else config.stem
    size = config.image_size or images.image_size
    config = config.replace_none(
        image_size=size, backbone=defaults["backbone"], width=defaults["width"]
    )
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    jit = {"auto": "true" if has_gpu else "false"}.get(config.jit_compile)
    config = dataclasses.replace(
        config,
        stem=stem,
        precision=auto_precision() if config.precision == "auto" else config.precision,
        jit_compile=jit or config.jit_compile,
    )
    if size < resnet.smallest_image(stem):
        raise ValueError(
            f"--image_size={size} is too small for --stem={stem}, which needs at least "
            f"{resnet.smallest_image(stem)}. Use --stem=small or larger views."
        )
    available = len(images.pretrain.images)
    count = config.num_pretrain_images or available
    if count > available:
        raise ValueError(
            f"--num_pretrain_images={count} is more than the {available} images of "
            f"{config.dataset}."
        )
    if config.batch_size > count:
        raise ValueError(
            f"--batch_size={config.batch_size} is more than the {count} images to "
            f"pretrain on. Use --batch_size={count} or less."
        )
    # The head checks it too, but only after the run folder is made.
    if config.proj_activation not in heads.activation_names():
        raise ValueError(
            "--proj_activation must be relu, tanh, leaky_relu or another Keras "
            f"activation, got {config.proj_activation!r}."
        )
    return config


def auto_precision() -> str:
    """Returns the fastest safe policy: mixed where the GPU has tensor cores."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "float32"
    details = tf.config.experimental.get_device_details(gpus[0])
    major, _ = details.get("compute_capability", (0, 0))
    if major >= 8:
        return "mixed_bfloat16"
    return "mixed_float16" if major == 7 else "float32"


def encoder(config: Config) -> keras.Model:
    """Returns the untrained encoder; the same seed gives the same weights."""
    keras.config.set_dtype_policy(config.precision)
    keras.utils.set_random_seed(config.seed)
    return resnet.resnet(
        depth=int(config.backbone.removeprefix("resnet")),
        width=config.width,
        stem=config.stem,
        selective_kernel=config.selective_kernel,
    )


def method(config: Config):
    """Returns the untrained model of a resolved config."""
    network = encoder(config)  # first: it sets precision and seed
    head = heads.ProjectionHead(
        num_layers=config.proj_layers,
        dim=config.proj_dim,
        hidden_dim=config.proj_hidden or None,
        activation=config.proj_activation,
        batch_norm=config.proj_batch_norm,
    )
    views = augment.Views(
        image_size=config.image_size,
        crop_min_area=config.crop_min_area,
        jitter_strength=config.jitter_strength,
        blur=config.blur,
        flip=config.flip,
        grayscale=config.grayscale,
    )
    return METHODS[config.method](
        network, head, views, temperature=config.temperature, seed=config.seed
    )


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
    """Returns the optimizer at a rate or schedule; decay touches kernels only."""
    if config.optimizer == "lars":
        return lars.LARS(rate, momentum=0.9, l2=config.weight_decay)
    decay = config.weight_decay or None
    if config.optimizer == "sgd":
        made = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=decay)
    else:
        made = keras.optimizers.Adam(rate, weight_decay=decay)
    if decay:
        made.exclude_from_weight_decay([v for v in variables if len(v.shape) < 2])
    return made
