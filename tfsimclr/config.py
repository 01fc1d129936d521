"""The settings of a run: one frozen dataclass from which the flags are generated."""

import dataclasses
import hashlib
import os

from absl import flags

from tfsimclr import defaults, options
from tfsimclr.names import feature_names
from tfsimclr.options import option

# What may change between two runs of one folder: none of it touches the training.
NOT_PRETRAINING = (
    "mode workdir cache_dir num_train_images feature probe_epochs probe_optimizer "
    "probe_learning_rate probe_batch_size keep_checkpoints checkpoint_minutes"
).split()


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run; checked on construction.

    Raises:
        ValueError: If a value is outside its range or two settings contradict.
    """

    mode: str = option(
        "all",
        "What to do: all is pretrain, evaluate, export in turn; the others do one part "
        "on the run folder.",
        choices=("all", "pretrain", "evaluate", "export"),
    )
    workdir: str = option(
        "",
        "Run folder; created, or resumed if its settings match. Default: "
        "runs/<method>-<dataset>-<hash of the settings>, so that the same command "
        "continues and another one starts afresh.",
    )
    dataset: str = option(
        "textures",
        "textures (made by the program), folder (your images, see --data_dir), or the "
        "name of a TensorFlow Datasets image data set: stl10, cifar10, ...",
    )
    data_dir: str = option(
        "", "The image folder, or the folder that holds TensorFlow Datasets' data."
    )
    cache_dir: str = option(
        "",
        "Where prepared images are kept; default ~/.cache/tfsimclr. Name a larger disk "
        "if the images, at image_size^2 * 3 bytes each, do not fit.",
    )
    num_pretrain_images: int = option(
        0, "Pretrain on this many images, drawn once; 0 is all. For trials.", least=0
    )
    num_train_images: int = option(
        0,
        "Train the linear classifier on this many labelled images, drawn once; 0 is "
        "all. The test set is always scored whole.",
        least=0,
    )
    method: str = option("simclr", "What to train.", choices=("simclr",))
    backbone: str | None = option(
        None,
        "Encoder; default from the data set. Deeper is better and slower.",
        choices=tuple(f"resnet{depth}" for depth in (10, 18, 34, 50, 101, 152, 200)),
    )
    width: float | None = option(
        None,
        "Multiplies the encoder's channels; default from the data set. 0.25 for a CPU, "
        "2 or 3 for SimCLRv2's wide networks.",
        above=0,
        most=8,
    )
    selective_kernel: bool = option(
        False, "Selective kernels (SimCLRv2): better and about twice as slow."
    )
    stem: str = option(
        "auto",
        "First layers: imagenet (7x7 stride 2, pool), medium (3x3, pool) or small "
        "(3x3, no pool); auto takes the data set's. Small images want a small stem.",
        choices=("auto", "imagenet", "medium", "small"),
    )
    image_size: int | None = option(
        None, "Side of a view in pixels; default from the data set.", least=8, most=1024
    )
    batch_size: int = option(
        128, "Images per step; each yields two views and 2B - 2 negatives.", above=1
    )
    epochs: int = option(40, "Passes over the pretraining images.", above=0)
    seed: int = option(0, "Seed of everything random.", least=0, most=2**31 - 1)
    temperature: float = option(
        0.5, "Softmax temperature of the loss; smaller is sharper.", above=0
    )
    loss: str = option("nt_xent", "Contrastive loss.", choices=("nt_xent",))
    proj_layers: int = option(
        2, "Layers of the projection head; more help small batches.", least=1, most=8
    )
    proj_dim: int = option(64, "Width of z, the head's output.", above=0)
    proj_hidden: int = option(
        0, "Width of the head's hidden layers; 0 is the encoder's width.", least=0
    )
    proj_activation: str = option(
        "relu",
        "Activation of the head: relu, tanh, leaky_relu (slope 0.01, as in the "
        "study) or any Keras name.",
    )
    proj_batch_norm: bool = option(
        False, "Batch norm in the head, as SimCLR's own code has; the study has none."
    )
    optimizer: str = option(
        "adam",
        "Optimizer of the pretraining; lars scales each layer's step by its weights.",
        choices=tuple(defaults.OPTIMIZERS),
    )
    learning_rate: float | None = option(
        None,
        "Learning rate before scaling. Default: adam 3e-4, sgd 0.03, lars 0.3 (none, "
        "linear) or 0.075 (sqrt).",
        above=0,
    )
    learning_rate_scaling: str | None = option(
        None,
        "Scaling of the rate with the batch: none, linear (rate * batch / 256) or sqrt "
        "(rate * sqrt(batch)). Default: lars sqrt, others none.",
        choices=("none", "linear", "sqrt"),
    )
    warmup_epochs: float | None = option(
        None, "Epochs of linear warm-up. Default: lars 1, others 0.", least=0
    )
    schedule: str | None = option(
        None,
        "Learning rate after the warm-up. Default: adam constant, others cosine.",
        choices=("constant", "cosine"),
    )
    weight_decay: float | None = option(
        None,
        "Decay of kernels: in LARS added to the gradient inside the trust ratio, "
        "otherwise decoupled. Default: lars 1e-6, sgd 1e-4, adam 0.",
        least=0,
    )
    precision: str = option(
        "auto",
        "Type of the network's arithmetic; auto is mixed precision where the GPU has "
        "tensor cores and float32 elsewhere.",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    jit_compile: str = option(
        "auto",
        "Compile the step with XLA; auto does on a GPU.",
        choices=("auto", "true", "false"),
    )
    deterministic: bool = option(
        False,
        "Use deterministic ops only, so that two runs give the same bits; slower.",
    )
    crop_min_area: float = option(
        0.08,
        "Smallest crop as a share of the image's area. Raise it where crops lose the "
        "subject.",
        above=0,
        most=1,
    )
    jitter_strength: float = option(
        1.0, "Strength of the colour jitter; 0 is none.", least=0, most=2
    )
    blur: float = option(
        0.0, "Probability of Gaussian blur; 0.5 for large images.", least=0, most=1
    )
    flip: bool = option(
        True, "Mirror half of the views; false where left and right differ."
    )
    grayscale: float = option(0.2, "Probability of a grey view.", least=0, most=1)
    feature: str = option(
        "h",
        "Frozen feature of the reported classifier: h, head_1, ..., z. All are scored.",
    )
    probe_epochs: int = option(100, "Epochs of the linear classifier.", above=0)
    probe_optimizer: str = option(
        "adam", "Optimizer of the linear classifier.", choices=("adam", "sgd", "lars")
    )
    probe_learning_rate: float = option(
        0.0,
        "Learning rate of the linear classifier; 0 chooses it on a tenth of the "
        "training labels, held out.",
        least=0,
    )
    probe_batch_size: int = option(256, "Batch size of the linear classifier.", above=0)
    keep_checkpoints: int = option(2, "How many checkpoints to keep.", above=0)
    checkpoint_minutes: float = option(
        15.0, "Save at least this often, besides after every epoch.", above=0
    )

    def __post_init__(self):
        options.check(self)
        allowed = feature_names(self.proj_layers)
        if self.feature not in allowed:
            raise ValueError(
                f"--feature must be one of {allowed} with --proj_layers="
                f"{self.proj_layers}, got {self.feature!r}."
            )
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"--warmup_epochs must be below --epochs={self.epochs}, got "
                f"{self.warmup_epochs}."
            )
        if self.dataset == "folder" and not self.data_dir:
            raise ValueError(
                "--dataset=folder needs --data_dir, the folder with your images."
            )

    def with_optimizer_defaults(self) -> "Config":
        """Returns the config with the optimizer's defaults in place of None."""
        rule, epochs = self.learning_rate_scaling, self.epochs
        return self.replace_none(**defaults.of_optimizer(self.optimizer, rule, epochs))

    def replace_none(self, **values) -> "Config":
        """Returns the config with `values` for those of the settings that are None."""
        missing = {k: v for k, v in values.items() if getattr(self, k) is None}
        return dataclasses.replace(self, **missing)

    def lines(self) -> list[str]:
        """Returns the settings as lines of a flagfile."""
        values = dataclasses.asdict(self)
        return [f"--{k}={options.text(v)}" for k, v in values.items() if v is not None]

    def pretraining(self) -> dict[str, str]:
        """Returns the settings that a run folder is bound to, as text."""
        values = dataclasses.asdict(self).items()
        return {k: options.text(v) for k, v in values if k not in NOT_PRETRAINING}

    def default_workdir(self) -> str:
        """Returns runs/<method>-<dataset>-<hash of the settings>."""
        text = repr(sorted(self.pretraining().items()))
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return os.path.join("runs", f"{self.method}-{self.dataset}-{digest}")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one absl flag for every field of `Config`."""
    options.define_flags(Config, values)


def from_flags(values: flags.FlagValues = flags.FLAGS) -> Config:
    """Returns the config that the parsed flags describe; paths become absolute."""
    given = {f.name: values[f.name].value for f in dataclasses.fields(Config)}
    for name in ("workdir", "data_dir", "cache_dir"):
        if given[name] and "\0" not in given[name]:  # that is refused below
            given[name] = os.path.abspath(os.path.expanduser(given[name]))
    return Config(**given)
