"""Every default that is not a constant, and every check of settings against each other.

This module is the one answer to "what is the default of this setting, and where is it
decided". `config.py` holds the constants, and None or "auto" for what is decided here.
"""

import dataclasses
import importlib.util

import keras
import tensorflow as tf

from tfsimclr.data import batches, sampling
from tfsimclr.data import dataset as datasets
from tfsimclr.distribution import strategies
from tfsimclr.errors import UserError
from tfsimclr.methods import LOCAL_VIEWS, METHODS
from tfsimclr.methods.simclr import LOSSES
from tfsimclr.networks import heads, norms
from tfsimclr.networks.encoders import ENCODERS
from tfsimclr.networks.initial_weights import InitialWeights
from tfsimclr.networks.names import feature_names
from tfsimclr.settings.config import Config
from tfsimclr.training import weight_files
from tfsimclr.views.random_view import LOCAL_CROP_AREAS

# Setting -> the modes that use it; all modes use the others.
_TRAINING = ("all", "pretrain", "finetune", "distill")
MODES_OF_SETTING = {
    "num_train_images": ("all", "evaluate", "finetune"),
    "feature": ("all", "evaluate"),
    "probe_epochs": ("all", "evaluate"),
    "probe_optimizer": ("all", "evaluate"),
    "probe_learning_rate": ("all", "evaluate"),
    "probe_batch_size": ("all", "evaluate"),
    "eval_dataset": ("all", "evaluate"),
    "eval_data_dir": ("all", "evaluate"),
    "eval_label_key": ("all", "evaluate"),
    "label_fraction": ("finetune", "distill"),
    "finetune_layer": ("finetune", "distill"),
    "finetune_epochs": ("finetune",),
    "finetune_learning_rate": ("finetune",),
    "finetune_batch_size": ("finetune",),
    "finetune_seed": ("finetune", "distill"),
    "microbatch_size": ("all", "pretrain", "plan"),
    "remat": ("all", "pretrain", "plan"),
    "strategy": _TRAINING,
    "sync_batch_norm": _TRAINING,
    "formats": ("all", "export"),
    "images": ("embed",),
    "layers": ("embed", "search"),
    "output": ("embed", "search"),
    "embeddings": ("search",),
    "query": ("search",),
    "top": ("search",),
    "duplicates": ("search",),
    "outliers": ("search",),
    "neighbors": ("search",),
    "select": ("search",),
    "search_index": ("search",),
    "memory_gb": ("plan",),
    "compare": ("report",),
    "keep_checkpoints": _TRAINING,
    "checkpoint_minutes": _TRAINING,
    "steps_per_check": _TRAINING,
    "worker_timeout": _TRAINING,
}
GPU_STEPS_PER_CHECK = 16
# From this batch on micro-batches need less memory than the similarity matrix.
LARGE_BATCH = 2048
BLOCK_ROWS = 256
# Mode that works on a trained network -> the other settings that it uses.
_OF_TRAINED = ("mode", "workdir", "data_dir", "cache_dir", "image_size")
SETTINGS_OF_MODE = {
    "embed": (*_OF_TRAINED, "label_key", "max_value"),
    "search": _OF_TRAINED,
}
# What --mode=search can be asked for.
SEARCHES = ("query", "duplicates", "outliers", "select")
# A fine-tuning with SimCLRv2's epochs is thousands of steps on ImageNet. On a hundred
# images thirty epochs are thirty steps, after which the weights have hardly moved.
MIN_FINETUNE_STEPS = 500
# Defaults of --val_share where there is no test split.
VAL_SHARE = 0.1
MAX_VAL_IMAGES = 2000
MIN_IMAGES_TO_HOLD_OUT = 20


def check(config: Config, user_set=frozenset(), typed=frozenset()) -> None:
    """Checks the settings that can be judged without the data.

    Args:
        config: As the user set it.
        user_set: Names of the settings that the user set, also to their default.
        typed: Those of them on the command line itself. A flagfile may serve several
            modes; what is typed must mean something to this one.

    Raises:
        UserError: If a choice is unknown, or a setting means nothing to the method, the
            encoder, the data set or the mode.
    """
    _check_settings_of_mode(config, typed)
    if config.mode in SETTINGS_OF_MODE:
        return  # the run folder has the settings of the method and the network
    user_set = user_set | config.changed()
    _check_choice("method", config.method, METHODS)
    encoder = config.backbone or datasets.defaults(config.dataset, 1)["backbone"]
    _check_choice("backbone", encoder, ENCODERS)
    for setting, value, table in (
        ("method", config.method, METHODS),
        ("backbone", encoder, ENCODERS),
    ):
        some_use = {name for entry in table.values() for name in entry.uses}
        for name in sorted(user_set & (some_use - set(table[value].uses))):
            users = [key for key, entry in table.items() if name in entry.uses]
            raise UserError(
                f"--{name} means nothing to --{setting}={value}. Leave it out, or use "
                f"--{setting}={users[0]}"
                + (f" (or {', '.join(users[1:])})" if users[1:] else "")
                + "."
            )
    _check_loss_and_views(config, user_set)
    if config.dataset == "textures" and "data_dir" in user_set and config.data_dir:
        raise UserError(
            f"--data_dir={config.data_dir} means nothing to --dataset=textures, whose "
            "images are made by the program. Add --dataset=folder to use your images."
        )
    if config.label_key and config.dataset in ("textures", "folder"):
        raise UserError(
            f"--label_key={config.label_key} means nothing to --dataset="
            f"{config.dataset}. It chooses a label of a TensorFlow data set. Leave it "
            "out."
        )
    if config.max_value is not None and config.dataset == "textures":
        raise UserError(
            f"--max_value={config.max_value:g} means nothing to --dataset=textures, "
            "which have 8 bits. Leave it out."
        )
    _check_eval_dataset(config)
    _check_mode(config)
    if config.mode in MODES_OF_SETTING["formats"]:
        export_formats(dataclasses.replace(config, backbone=encoder))


def _check_loss_and_views(config: Config, user_set) -> None:
    for loss, settings in LOSSES.items():
        for name in settings:
            if name in user_set and config.loss != loss:
                raise UserError(
                    f"--{name} means nothing to --loss={config.loss}. Leave it out, or "
                    f"use --loss={loss}."
                )
    if config.hcl_tau_plus == 1:
        raise UserError(
            "--hcl_tau_plus must be below 1: not every negative is of the anchor's "
            "class. The paper uses 0.1."
        )
    for name in LOCAL_VIEWS:
        if name in user_set and not config.num_local_views:
            raise UserError(
                f"--{name} means nothing without local views. Leave it out, or add "
                "--num_local_views=4."
            )


def _check_eval_dataset(config: Config) -> None:
    if config.eval_dataset == "folder" and not config.eval_data_dir:
        raise UserError(
            "--eval_dataset=folder needs --eval_data_dir, the folder with images."
        )
    if config.eval_dataset == "textures" and config.eval_data_dir:
        raise UserError(
            f"--eval_data_dir={config.eval_data_dir} means nothing to "
            "--eval_dataset=textures. Use --eval_dataset=folder."
        )
    if config.eval_label_key and config.other_dataset in ("", "folder", "textures"):
        raise UserError(
            f"--eval_label_key={config.eval_label_key} means nothing without "
            "--eval_dataset, the name of a TensorFlow data set."
        )


def _check_choice(setting: str, value: str, choices) -> None:
    if value not in choices:
        raise UserError(f"--{setting} must be one of {tuple(choices)}, got {value!r}.")


def _check_settings_of_mode(config: Config, typed: frozenset[str]) -> None:
    for name in sorted(typed & set(MODES_OF_SETTING)):
        modes = MODES_OF_SETTING[name]
        if config.mode not in modes:
            raise UserError(
                f"--{name} means nothing to --mode={config.mode}. Leave it out, or use "
                f"--mode={' or '.join(modes)}."
            )
    others = SETTINGS_OF_MODE.get(config.mode)
    for name in sorted(typed - set(MODES_OF_SETTING) if others else ()):
        if name not in others:
            raise UserError(
                f"--{name} means nothing to --mode={config.mode}, which takes the "
                "trained network of --workdir as it is. Leave it out."
            )
    if config.mode == "search":
        if not any(getattr(config, name) for name in SEARCHES):
            raise UserError(
                "--mode=search needs something to search for: --query, --duplicates, "
                "--outliers or --select."
            )
        for name, needed in (("top", "query"), ("neighbors", "outliers")):
            if name in typed and not getattr(config, needed):
                raise UserError(f"--{name} means nothing without --{needed}.")
        indexed = ("query", "duplicates", "outliers")
        if "search_index" in typed and not any(getattr(config, n) for n in indexed):
            raise UserError(
                "--search_index means nothing to --select, which compares all images."
            )


def _check_mode(config: Config) -> None:
    layers = feature_names(config.proj_layers)[:-1]
    if config.mode == "finetune" and config.finetune_layer not in (None, *layers):
        raise UserError(
            f"--finetune_layer must be one of {layers} with --proj_layers="
            f"{config.proj_layers}, got {config.finetune_layer!r}."
        )
    if config.mode == "distill" and not config.teacher_dir:
        raise UserError(
            "--mode=distill needs --teacher_dir, a run folder with a fine-tuned "
            "network (--mode=finetune)."
        )
    if config.mode == "distill" and config.init:
        raise UserError(
            f"--init={config.init} means nothing to --mode=distill, whose student "
            "starts from random weights. Leave it out."
        )
    if config.init_checksum and not config.init:
        raise UserError("--init_checksum means nothing without --init. Leave it out.")
    if config.teacher_dir and config.mode != "distill":
        raise UserError(
            f"--teacher_dir belongs to --mode=distill, got --mode={config.mode}. A "
            "student is trained, scored and exported by that one mode."
        )
    if config.teacher_dir and config.teacher_dir == config.workdir:
        raise UserError(
            f"--teacher_dir and --workdir are both {config.workdir}. The student needs "
            "a --workdir of its own."
        )


def resolve(config: Config, images: datasets.DataSet) -> Config:
    """Returns the config with every default decided: data set, optimizer, device.

    Args:
        config: As the user set it.
        images: The data set that it names.

    Raises:
        UserError: If the settings do not fit each other or the data set.
    """
    check(config)
    config = config.with_optimizer_defaults()
    size = config.image_size or images.image_size
    of_data = datasets.defaults(config.dataset, size)
    weights = None
    if config.init and config.mode != "finetune":  # it trains the pretrained network
        weights = initial_weights(config)
        config = _with_settings_of(weights, config)
        check(config)  # now for the encoder of the weights
    config = config.replace_none(image_size=size, backbone=of_data["backbone"])
    encoder = ENCODERS[config.backbone]
    if "width" in encoder.uses:
        config = config.replace_none(width=of_data["width"])
    if "input_norm" in encoder.uses:
        config = config.replace_none(input_norm="none")
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    config = config.replace_none(formats=",".join(export_formats(config)))
    auto: dict = {
        "stem": of_data["stem"] if "stem" in encoder.uses else "auto",
        "precision": auto_precision(),
        "jit_compile": "true" if has_gpu else "false",
    }
    auto = {name: v for name, v in auto.items() if getattr(config, name) == "auto"}
    config = dataclasses.replace(config, **auto).replace_none(
        steps_per_check=GPU_STEPS_PER_CHECK if has_gpu else 1
    )
    smallest = _check_size(config, encoder)
    if config.num_local_views:
        low, high = LOCAL_CROP_AREAS
        config = config.replace_none(
            local_image_size=max(-(-size // 2), smallest),
            local_crop_areas=f"{low},{high}",
        )
        if config.local_image_size < smallest:
            raise UserError(
                f"--local_image_size={config.local_image_size} is too small for "
                f"{_limit(config, encoder)}, which needs at least {smallest}."
            )
    if weights is not None:
        with keras.StatelessScope(initialize_variables=False):
            # Raises if the weights do not fit.
            weights.report(encoder.from_settings(dataclasses.asdict(config)))
    available = len(images.pretrain.images)
    count = config.num_pretrain_images or available
    if count > available:
        raise UserError(
            f"--num_pretrain_images={count} is more than the {available} images of "
            f"{config.dataset}."
        )
    if config.batch_size > count:
        raise UserError(
            f"--batch_size={config.batch_size} is more than the {count} images to "
            f"pretrain on. Use --batch_size={count} or less."
        )
    share = resolve_val_share(config, count, images.test is not None)
    config = dataclasses.replace(config, val_share=share)
    count -= sampling.num_validation(count, share)
    config = resolve_memory(resolve_method(config, count))
    check_devices(config, num_devices(config))
    # The head checks it too, but only after the run folder is made.
    for name in ("proj_activation", "pred_activation"):
        value = getattr(config, name)
        if value is not None and value not in heads.activation_names():
            raise UserError(
                f"--{name} must be relu, tanh, leaky_relu or another Keras activation, "
                f"got {value!r}."
            )
    return config


def resolve_val_share(config: Config, num_images: int, has_test: bool) -> float:
    """Returns the share of the pretraining images that is held out.

    Args:
        config: Its batch size and `val_share` are used.
        num_images: Images to pretrain on, with those held out.
        has_test: Whether the data set has a test split, with or without labels.

    Raises:
        UserError: If the share holds out a single image, or leaves less than a batch.
    """
    given = config.val_share
    default = 0.0 if has_test else min(VAL_SHARE, MAX_VAL_IMAGES / num_images)
    share = default if given is None else given
    held_out = sampling.num_validation(num_images, share)
    left = num_images - held_out
    if given is None and share:
        if num_images < MIN_IMAGES_TO_HOLD_OUT or left < config.batch_size:
            print(
                f"Note: {num_images} images are too few to hold some out for "
                f"validation at --batch_size={config.batch_size}: --val_share=0."
            )
            return 0.0
    elif share and (held_out < 2 or left < config.batch_size):
        raise UserError(
            f"--val_share={share:g} of {num_images} images holds out {held_out} and "
            f"leaves {left} to pretrain on; expected at least 2 and --batch_size="
            f"{config.batch_size}. Change --val_share or lower --batch_size."
        )
    return share


def initial_weights(config: Config) -> InitialWeights | None:
    """Returns the weights of `--init`, or None without it.

    Raises:
        UserError: If they cannot be read, or are others than `--init_checksum`.
    """
    if not config.init:
        return None
    backbone = config.backbone
    if config.init == weight_files.PUBLISHED:
        backbone = backbone or datasets.defaults(config.dataset, 1)["backbone"]
    published = ENCODERS[backbone].published_weights if backbone else None
    if config.init == weight_files.PUBLISHED and not published:
        names = [name for name, entry in ENCODERS.items() if entry.published_weights]
        raise UserError(
            f"--init=imagenet: Keras publishes no weights for --backbone={backbone}. "
            f"Use --backbone={' or '.join(names)}, or give --init a .safetensors file "
            "of torchvision or timm."
        )
    return weight_files.load(
        config.init,
        config.workdir,
        config.init_checksum,
        lambda: InitialWeights(config.init, published(), {"backbone": backbone}),
    )


def _with_settings_of(weights: InitialWeights, config: Config) -> Config:
    """Returns the config with the weights' settings for those left open."""
    settings: dict = dict(weights.settings)
    stem = settings.pop("stem", "auto")
    settings.pop("selective_kernel", None)  # never left open
    config = config.replace_none(
        backbone=settings.pop("backbone", None), init_checksum=weights.checksum
    )
    uses = ENCODERS[config.backbone].uses if config.backbone else ()
    config = config.replace_none(**{k: v for k, v in settings.items() if k in uses})
    if config.stem == "auto" and "stem" in uses:
        config = dataclasses.replace(config, stem=stem)
    return config


def _check_size(config: Config, encoder) -> int:
    """Returns the smallest side of a view; raises if the views are smaller."""
    smallest = encoder.smallest_image(dataclasses.asdict(config))
    if config.image_size < smallest:
        advice = "--stem=small or " if "stem" in encoder.uses else ""
        raise UserError(
            f"--image_size={config.image_size} is too small for "
            f"{_limit(config, encoder)}, which needs at least {smallest}. Use {advice}"
            "larger views."
        )
    return smallest


def _limit(config: Config, encoder) -> str:
    """Returns the setting that limits the size of a view, as a flag."""
    has_stem = "stem" in encoder.uses
    return f"--stem={config.stem}" if has_stem else f"--backbone={config.backbone}"


def resolve_method(config: Config, num_images: int) -> Config:
    """Returns the config with the method's defaults in place of None.

    Args:
        config: The config, of which the data set's defaults are decided.
        num_images: Images to pretrain on.

    Raises:
        UserError: If a setting does not fit the batch or the number of images.
    """
    entry, batch = METHODS[config.method], config.batch_size
    # A queue of nearly all images holds older keys of a query's own image.
    queue = min(65536, num_images // 2) // batch * batch or batch
    config = config.replace_none(**{"proj_batch_norm": "false", **entry.defaults})
    if "loss" in entry.uses:
        config = config.replace_none(**LOSSES[config.loss])
    if "queue_size" in entry.uses:
        config = config.replace_none(queue_size=queue)
    if "bn_groups" in entry.uses:
        config = _resolve_bn_groups(config)
    if "pred_layers" in entry.uses:
        config = config.replace_none(
            pred_layers=0 if config.queue_size else 2,
            pred_activation=config.proj_activation,
            pred_batch_norm=config.proj_batch_norm,
        )
    if config.queue_size and config.queue_size % batch:
        raise UserError(
            f"--queue_size must be a multiple of --batch_size={batch}, got "
            f"{config.queue_size}. Use {config.queue_size // batch * batch or batch}."
        )
    if config.queue_size and config.queue_size >= num_images:
        raise UserError(
            f"--queue_size={config.queue_size} would hold every one of the "
            f"{num_images} images, also a query's own. Use {queue} or less."
        )
    if config.bn_groups and batch % config.bn_groups:
        raise UserError(
            f"--bn_groups must divide --batch_size={batch}, got {config.bn_groups}."
        )
    return config


def _resolve_bn_groups(config: Config) -> Config:
    """Returns the config with the sub-batches of batch norm in place of None."""
    # Without a queue all keys are of the query's batch, so batch statistics do not
    # tell the positive from the negatives.
    has_batch_norm = config.norm == "batch" and (
        ENCODERS[config.backbone].has_batch_norm or config.proj_batch_norm != "false"
    )
    leaks = config.queue_size and has_batch_norm
    batch = config.batch_size
    pieces = max(1, batch // (config.microbatch_size or batch))
    groups = norms.default_bn_groups(batch, pieces) if leaks else 1
    config = config.replace_none(bn_groups=groups)
    if config.norm != "batch" and config.bn_groups > 1:
        raise UserError(
            f"--bn_groups={config.bn_groups} means nothing to --norm={config.norm}, "
            "which has no batch norm. Leave it out."
        )
    if config.bn_groups > 1 and not has_batch_norm:
        raise UserError(
            f"--bn_groups={config.bn_groups} means nothing to --backbone="
            f"{config.backbone}: neither it nor the head has batch norm, so there "
            "is no Shuffling BN. Leave it out."
        )
    return config


def resolve_memory(config: Config) -> Config:
    """Returns the config with row blocks of the loss if micro-batches need them.

    Args:
        config: Resolved in all other settings.

    Raises:
        UserError: If the row blocks or the micro-batches do not divide the batch, or
            the encoder has no residual blocks to compute again.
    """
    batch, size = config.batch_size, config.microbatch_size
    rows = batch * config.total_views
    if size and not config.loss_block_rows:
        config = dataclasses.replace(config, loss_block_rows=large_loss_blocks(config))
    if config.loss_block_rows and rows % config.loss_block_rows:
        raise UserError(
            f"--loss_block_rows must divide {rows}, the rows of all views, got "
            f"{config.loss_block_rows}."
        )
    if size and batch % size:
        raise UserError(
            f"--microbatch_size must divide --batch_size={batch}, got {size}. Use "
            f"{_largest_divisor(batch, size)}."
        )
    pieces = batch // (size or batch)
    if (config.bn_groups or 1) > 1 and config.bn_groups % pieces:
        raise UserError(
            f"--bn_groups must be a multiple of the {pieces} micro-batches of a batch, "
            f"got {config.bn_groups}. Leave it out, or change --microbatch_size."
        )
    if config.remat and not ENCODERS[config.backbone].residual_blocks:
        raise UserError(
            f"--remat means nothing to --backbone={config.backbone}, which has no "
            "residual blocks. Leave it out, or use --microbatch_size."
        )
    return config


def large_loss_blocks(config: Config) -> int:
    """Returns the rows of a block of the loss of a large batch; 0 if it is small."""
    has_rows = "loss_block_rows" in METHODS[config.method].uses
    if config.batch_size < LARGE_BATCH or not has_rows:
        return 0
    return _largest_divisor(config.batch_size * config.total_views, BLOCK_ROWS)


def num_devices(config: Config) -> int:
    """Returns the number of devices that share the training; 1 in other modes."""
    if config.mode not in MODES_OF_SETTING["strategy"]:
        return 1
    return strategies.num_replicas(strategies.make(config.strategy))


def check_devices(config: Config, devices: int) -> None:
    """Raises a UserError if the settings do not suit the number of devices.

    Args:
        config: Resolved in all other settings.
        devices: Number of devices, over all machines.
    """
    if config.mode != "finetune":  # which has a batch of its own
        _check_parts_of_batch(config, devices)
    if config.remat and devices > 1:
        raise UserError(
            f"--remat works on one device, got {devices}. Leave it out, or use "
            "--microbatch_size, which works on any number."
        )
    if config.sync_batch_norm or config.mode not in MODES_OF_SETTING["strategy"]:
        return
    size, groups = config.microbatch_size, config.bn_groups or 1
    reasons = {
        "on one device: it would change the run": devices == 1,
        f"to --norm={config.norm}": config.norm != "batch",
        f"to --bn_groups={groups}, sub-batches of one device": groups > 1,
        f"to --microbatch_size={size}, over which batch norm runs": bool(size),
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(
                f"--sync_batch_norm=false means nothing {reason}. Leave it out."
            )


def _check_parts_of_batch(config: Config, devices: int) -> None:
    batch, size = config.batch_size, config.microbatch_size
    groups = config.bn_groups or 1
    if batch % devices:
        raise UserError(
            f"--batch_size={batch} must be a multiple of the {devices} devices that "
            f"share it. Use {batch // devices * devices or devices}, or other devices."
        )
    if size and batch // devices % size:
        raise UserError(
            f"--microbatch_size={size} must divide the {batch // devices} images of "
            f"each of the {devices} devices. Use "
            f"{_largest_divisor(batch // devices, size)}."
        )
    if groups > 1 and groups % (batch // (size or batch // devices)):
        raise UserError(
            f"--bn_groups={groups} must be a multiple of the {devices} devices: a "
            "sub-batch lies on one device. Take another --bn_groups, or other devices."
        )


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(limit, number), 0, -1) if number % d == 0)


def resolve_finetune(config: Config, num_images: int) -> Config:
    """Returns the config with SimCLRv2's settings for those left open.

    Args:
        config: Resolved but for the fine-tuning.
        num_images: Images with a label.

    Source: Chen et al. 2020 (arXiv:2006.10029), section 3.1 and appendix B.
    """
    batch_size = min(config.finetune_batch_size, num_images)
    steps = batches.steps_per_epoch(num_images, batch_size)
    epochs = 60 if config.label_fraction < 0.1 else 30
    wide = (config.width or 1) > 1 or config.selective_kernel
    on_h = config.label_fraction == 1 or config.proj_layers == 1
    return config.replace_none(
        finetune_layer="h" if on_h else "head_1",
        finetune_epochs=max(epochs, -(-MIN_FINETUNE_STEPS // steps)),
        finetune_learning_rate=0.002 if wide else 0.005,
    )


def export_formats(config: Config) -> tuple[str, ...]:
    """Returns the formats of the export: `--formats`, or its default.

    Raises:
        UserError: If a format does not suit the encoder or needs a package that is not
            installed.
    """
    formats = config.export_formats()
    has_torch_names = ENCODERS[config.backbone].has_torch_names
    if not formats:
        torch = ("safetensors",) if has_torch_names else ()
        return ("saved_model", "keras", *torch)
    if "safetensors" in formats and not has_torch_names:
        raise UserError(
            f"--formats=safetensors does not go with --backbone={config.backbone}: "
            "torchvision and timm store its layers differently. Use keras or onnx."
        )
    missing = [
        name for name in ("onnx", "tf2onnx") if importlib.util.find_spec(name) is None
    ]
    if "onnx" in formats and missing:
        raise UserError(
            f"--formats=onnx needs {' and '.join(missing)}. Install: "
            "pip install 'tfsimclr[onnx]'."
        )
    return formats


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
