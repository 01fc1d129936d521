"""Makes the objects that a Config describes."""

import dataclasses
import inspect

import keras
import tensorflow as tf

from tfsimclr import (
    augment,
    byol,
    data,
    heads,
    lars,
    moco,
    norms,
    resnet,
    schedules,
    simclr,
)
from tfsimclr.config import Config
from tfsimclr.method import Method

METHODS: dict[str, type[Method]] = {
    "simclr": simclr.SimCLR,
    "moco": moco.MoCo,
    "byol": byol.BYOL,
}
# Arguments that not every method takes, and the settings behind them.
ARGUMENTS = {
    "temperature": ("temperature",),
    "loss": ("loss",),
    "block_rows": ("loss_block_rows",),
    "ema": ("ema",),
    "total_steps": ("ema_schedule",),
    "queue_size": ("queue_size",),
    "bn_groups": ("bn_groups",),
    "predictor": ("pred_layers", "pred_hidden"),
}


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
    config = with_method_defaults(config, count)
    # The head checks it too, but only after the run folder is made.
    if config.proj_activation not in heads.activation_names():
        raise ValueError(
            "--proj_activation must be relu, tanh, leaky_relu or another Keras "
            f"activation, got {config.proj_activation!r}."
        )
    return config


def with_method_defaults(config: Config, num_images: int) -> Config:
    """Returns the config with the method's defaults in place of None.

    Raises:
        ValueError: If a setting is of another method, or does not fit the batch.
    """
    made = METHODS[config.method]
    takes = inspect.signature(made).parameters
    for field in dataclasses.fields(config):
        arguments = [a for a, names in ARGUMENTS.items() if field.name in names]
        given = getattr(config, field.name) != field.default
        if given and arguments and arguments[0] not in takes:
            raise ValueError(
                f"--{field.name} means nothing to --method={config.method}. Leave it "
                "out, or choose another method."
            )
    batch = config.batch_size
    # A queue that holds most images holds the query's own, which would repel it.
    queue = min(65536, num_images // 2) // batch * batch
    config = config.replace_none(**{"proj_batch_norm": "false", **made.defaults})
    if "queue_size" in takes:
        config = config.replace_none(queue_size=queue or batch)
    if "bn_groups" in takes:
        # Where all keys are of the query's batch, its statistics tell none apart.
        groups = norms.fewest_groups(batch) if config.queue_size else 1
        config = config.replace_none(bn_groups=groups)
    if config.pred_layers is None and "predictor" in takes:
        layers = 0 if config.queue_size else 2
        config = dataclasses.replace(config, pred_layers=layers)
    if config.queue_size and config.queue_size % batch:
        raise ValueError(
            f"--queue_size must be a multiple of --batch_size={batch}, got "
            f"{config.queue_size}. Use {config.queue_size // batch * batch or batch}."
        )
    if config.queue_size and config.queue_size >= num_images:
        raise ValueError(
            f"--queue_size={config.queue_size} would hold every one of the "
            f"{num_images} images, also a query's own. Use {queue or batch} or less."
        )
    if config.bn_groups and batch % config.bn_groups:
        raise ValueError(
            f"--bn_groups must divide --batch_size={batch}, got {config.bn_groups}."
        )
    if config.loss_block_rows and 2 * batch % config.loss_block_rows:
        raise ValueError(
            f"--loss_block_rows must divide {2 * batch}, the rows of both views, got "
            f"{config.loss_block_rows}."
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


def method(config: Config, total_steps: int | None = None):
    """Returns the untrained model of a resolved config.

    Args:
        config: Resolved.
        total_steps: Of the run, for what follows a schedule of its own; evaluation
            needs none.
    """
    network = encoder(config)  # first: it sets precision and seed
    norm = {"false": False, "true": True}.get(
        config.proj_batch_norm, config.proj_batch_norm
    )
    common: dict = {
        "dim": config.proj_dim,
        "activation": config.proj_activation,
        "batch_norm": norm,
    }
    hidden = config.proj_hidden or None
    head = heads.ProjectionHead(config.proj_layers, hidden_dim=hidden, **common)
    predictor = None
    if config.pred_layers:
        # Its input is z, which is narrow: hidden layers are as wide as the head's.
        hidden = config.pred_hidden or hidden or network.output_shape[-1]
        predictor = heads.ProjectionHead(
            config.pred_layers, hidden_dim=hidden, name="predictor", **common
        )
    views = augment.Views(
        image_size=config.image_size,
        crop_min_area=config.crop_min_area,
        jitter_strength=config.jitter_strength,
        blur=config.blur,
        flip=config.flip,
        grayscale=config.grayscale,
    )
    settings = {
        "temperature": config.temperature,
        "loss": config.loss,
        "block_rows": config.loss_block_rows,
        "ema": config.ema,
        "total_steps": total_steps if config.ema_schedule == "cosine" else None,
        "queue_size": config.queue_size,
        "bn_groups": config.bn_groups,
        "predictor": predictor,
    }
    made = METHODS[config.method]
    takes = inspect.signature(made).parameters
    settings = {name: value for name, value in settings.items() if name in takes}
    return made(network, head, views, seed=config.seed, **settings)


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
