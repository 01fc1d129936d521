"""Settings of how it is trained and scored."""

import dataclasses

from tfsimclr import defaults
from tfsimclr.options import option


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """The optimizer, the arithmetic, the views, the classifier and the checkpoints."""

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
        pretraining=False,
    )
    probe_epochs: int = option(
        100, "Epochs of the linear classifier.", above=0, pretraining=False
    )
    probe_optimizer: str = option(
        "adam",
        "Optimizer of the linear classifier.",
        choices=("adam", "sgd", "lars"),
        pretraining=False,
    )
    probe_learning_rate: float = option(
        0.0,
        "Learning rate of the linear classifier; 0 chooses it on a tenth of the "
        "training labels, held out.",
        least=0,
        pretraining=False,
    )
    probe_batch_size: int = option(
        256, "Batch size of the linear classifier.", above=0, pretraining=False
    )
    memory_gb: float = option(
        0.0,
        "Memory for which --mode=plan finds the largest batch, in GB (10^9 bytes); 0 "
        "is all that the GPU, or else the machine, has.",
        least=0,
        pretraining=False,
    )
    keep_checkpoints: int = option(
        2, "How many checkpoints to keep.", above=0, pretraining=False
    )
    checkpoint_minutes: float = option(
        15.0,
        "Save at least this often, besides after every epoch.",
        above=0,
        pretraining=False,
    )
