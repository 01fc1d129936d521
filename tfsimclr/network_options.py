"""Settings of what is trained: the data, the networks and the method."""

import dataclasses

from tfsimclr.options import option


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """The mode, the run folder, the data, the encoder, the method and its head."""

    mode: str = option(
        "all",
        "What to do: all is pretrain, evaluate, export in turn; the others do one part "
        "on the run folder. finetune learns from --labels after that; distill makes a "
        "student of a fine-tuned --teacher. plan makes none: it tries ten steps and "
        "prints what the run would take of memory and time.",
        choices=(
            *("all", "pretrain", "evaluate", "export"),
            *("finetune", "distill", "plan"),
        ),
        pretraining=False,
    )
    workdir: str = option(
        "",
        "Run folder; created, or resumed if its settings match. Default: "
        "runs/<method>-<dataset>-<hash of the settings>, so that the same command "
        "continues and another one starts afresh.",
        pretraining=False,
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
        pretraining=False,
    )
    num_pretrain_images: int = option(
        0, "Pretrain on this many images, drawn once; 0 is all. For trials.", least=0
    )
    num_train_images: int = option(
        0,
        "Train the linear classifier on this many labelled images, drawn once; 0 is "
        "all. The test set is always scored whole.",
        least=0,
        pretraining=False,
    )
    method: str = option(
        "simclr",
        "What to train: simclr (the batch has the negatives), moco (a queue has them) "
        "or byol (there are none).",
        choices=("simclr", "moco", "byol"),
    )
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
        0.5,
        "Softmax temperature of the loss; smaller is sharper. In --mode=distill that "
        "of teacher and student: SimCLRv2 has 0.1 for the same network, 1 for a "
        "smaller one, and finds little difference between.",
        above=0,
    )
    loss: str = option(
        "nt_xent",
        "Loss of simclr: nt_xent, or without the positive in the denominator dcl and "
        "its weighted form dclw, for small batches.",
        choices=("nt_xent", "dcl", "dclw"),
    )
    loss_block_rows: int = option(
        0,
        "Rows of simclr's similarities at a time, a divisor of twice the batch; 0 is "
        "all. Saves memory where the batch is in the thousands.",
        least=0,
    )
    ema: float | None = option(
        None,
        "Share of the moving average of the network that stays at a step; the average "
        "makes the keys or targets. Default: moco 0.999, byol 0.996, simclr 0, which "
        "has no average. Below some thousand steps 0.99 suits better.",
        least=0,
        most=1,
    )
    ema_schedule: str | None = option(
        None,
        "Whether --ema stays (constant) or rises to 1 over the run (cosine). Default: "
        "byol cosine, others constant.",
        choices=("constant", "cosine"),
    )
    queue_size: int | None = option(
        None,
        "Keys that moco keeps, a multiple of the batch; 0 compares within the batch, "
        "both ways, as MoCo v3. Default: 65536, at most half of the images.",
        least=0,
    )
    bn_groups: int | None = option(
        None,
        "Groups into which moco splits the batch for batch norm, so that statistics "
        "do not give the key away. Default: the fewest of which two share one image "
        "at most; without a queue 1, which is a plain batch norm.",
        least=1,
    )
    pred_layers: int | None = option(
        None,
        "Layers of the predictor behind z; 0 is none. Default: byol 2, moco 0 (2 "
        "without a queue).",
        least=0,
        most=8,
    )
    pred_hidden: int = option(
        0, "Width of the predictor's hidden layers; 0 is that of the head's.", least=0
    )
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
    proj_batch_norm: str | None = option(
        None,
        "Batch norm in the head (and the predictor): true, after every layer, as in "
        "SimCLR's own code; hidden, not after the last, as in BYOL; false, as in the "
        "study. Default: byol hidden, others false.",
        choices=("false", "true", "hidden"),
    )
