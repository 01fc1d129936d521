"""The settings of a run: one frozen dataclass from which the flags are generated."""

import dataclasses
import hashlib
import os
import re

from absl import flags

from tfsimclr import optimizers
from tfsimclr.errors import UserError
from tfsimclr.networks.names import feature_names
from tfsimclr.settings import options
from tfsimclr.settings.options import option

# Old name of a setting -> its name. The old flags keep working.
ALIASES = {
    "labels": "label_fraction",
    "finetune_from": "finetune_layer",
    "teacher": "teacher_dir",
    "ema": "ema_decay",
}

# Settings that are paths, which may differ from machine to machine.
PATHS = (
    *("workdir", "data_dir", "cache_dir", "teacher_dir", "eval_data_dir"),
    *("output", "embeddings", "query"),
)
# Formats of the export.
FORMATS = ("saved_model", "keras", "safetensors", "onnx", "litert")


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run; checked on construction.

    Raises:
        UserError: If a value is outside its range or two settings contradict.
    """

    # What to do

    mode: str = option(
        "all",
        "What to do. all: pretrain, evaluate and export, in this order. pretrain, "
        "evaluate and export do one of them. finetune: train the pretrained "
        "network on a fraction of the labels. distill: train a student on the "
        "outputs of --teacher_dir. report: write report.html of a finished run again, "
        "or with --compare a page of several runs. plan: time ten steps and print the "
        "memory and hours that the run would take, without a run folder. embed: write "
        "the features of --images to a file. search: find similar images, duplicates, "
        "outliers or a diverse subset in that file.",
        choices=(
            *("all", "pretrain", "evaluate", "export"),
            *("finetune", "distill", "report", "plan", "embed", "search"),
        ),
        pretraining=False,
    )
    workdir: str = option(
        "",
        "Run folder. It is created, or resumed if its settings match. Default: "
        "runs/<method>-<dataset>-<hash of the settings>, so the same command "
        "resumes its run.",
        pretraining=False,
    )

    # Data

    dataset: str = option(
        "textures",
        "textures (embedded, made by the program), folder (your images, see "
        "--data_dir), or the name of an image data set of TensorFlow Datasets: "
        "stl10, cifar10, ...",
    )
    data_dir: str = option(
        "",
        "Image folder of --dataset=folder, or the data folder of TensorFlow Datasets.",
        pretraining=False,
    )
    cache_dir: str = option(
        "",
        "Folder for prepared images; default ~/.cache/tfsimclr. Use a larger disk "
        "if the images do not fit: each takes up to 5.3 * image_size^2 bytes.",
        pretraining=False,
    )
    max_value: float | None = option(
        None,
        "Value that becomes white in images of more than 8 bits per channel; larger "
        "ones are clipped, and 0 becomes black. Default: the smallest and the largest "
        "value of the data set. Set it for data of a known depth (4095 for 12 bits), "
        "or if a few pixels are far brighter than the rest.",
        greater_than=0,
        since="0.3",
    )
    label_key: str = option(
        "",
        "Feature of a TensorFlow data set that is the label; default: its only class "
        "label. none: no labels.",
        since="0.3",
    )
    num_pretrain_images: int = option(
        0,
        "Pretrain on this many randomly chosen images, of which --val_share holds out "
        "a part; 0 uses all. For trials.",
        minimum=0,
    )
    val_share: float | None = option(
        None,
        "Share of the pretraining images that is held out: never trained on, it gives "
        "val_loss, val_loss_above_chance and val_contrastive_top1 after every epoch, "
        "which show when more epochs are of no use. The same images for every seed. "
        "Default: 0 if there is a test split, otherwise 0.1, at most 2,000 images.",
        minimum=0,
        maximum=1,
        since="0.3",
        before=0.0,
    )
    num_train_images: int = option(
        0,
        "Train the linear classifier on this many randomly chosen labelled "
        "images; 0 uses all. The test set is always scored whole.",
        minimum=0,
        pretraining=False,
    )

    # Encoder

    backbone: str | None = option(
        None,
        "Encoder: resnet10, 18, 34, 50, 101, 152 or 200; default from the data set. "
        "Deeper is better and slower.",
    )
    width: float | None = option(
        None,
        "Multiplier of the encoder's channels; default from the data set. 0.25 "
        "suits a CPU; 2 and 3 are SimCLRv2's wide networks.",
        greater_than=0,
        maximum=8,
    )
    selective_kernel: bool = option(
        False, "Selective kernels (SimCLRv2): more accurate, about twice as slow."
    )
    stem: str = option(
        "auto",
        "First layers: imagenet (7x7 convolution with stride 2, max-pool), medium "
        "(3x3, max-pool) or small (3x3). auto: the data set's default. Small "
        "images need a small stem.",
        choices=("auto", "imagenet", "medium", "small"),
    )
    norm: str = option(
        "batch",
        "Normalisation in encoder and head. batch: over the images of the batch, noisy "
        "below about 32 images. group: group norm with weight standardisation, of each "
        "image by itself, whatever the batch.",
        choices=("batch", "group"),
        since="0.3",
    )
    input_norm: str | None = option(
        None,
        "Normalisation of the images at the encoder's input: none, or imagenet, which "
        "subtracts ImageNet's mean colour and divides by its standard deviation. "
        "Default: what the weights of --init need; none without --init.",
        choices=("none", "imagenet"),
        since="0.3",
        before="none",
    )
    init: str = option(
        "",
        "Weights that the encoder starts from: a .safetensors or .npz file of a "
        "ResNet with the names of torchvision or timm; a run folder, checkpoint or "
        ".keras file of tfsimclr; or imagenet, the weights that Keras publishes for "
        "the encoders of keras.applications. Empty: random weights. Settings that are "
        "left open then suit a start from weights: --backbone, --width and "
        "--input_norm are those of the weights, --warmup_epochs and --epochs are for a "
        "shorter training.",
        pretraining=False,
        since="0.3",
    )
    init_checksum: str | None = option(
        None,
        "SHA-256 of the weights of --init, by which a run knows them at another path. "
        "The run fills it in. If it is given, other weights are refused.",
        since="0.3",
    )
    image_size: int | None = option(
        None,
        "Side of a view in pixels; default from the data set.",
        minimum=8,
        maximum=1024,
    )

    # Run

    batch_size: int = option(
        128,
        "Images per step. Each gives --num_views views, two by default, and so 2B - 2 "
        "negatives in SimCLR.",
        greater_than=1,
    )
    epochs: int | None = option(
        None,
        "Passes over the pretraining images. Default: 40, with --init 20.",
        greater_than=0,
    )
    seed: int = option(
        0,
        "Seed of the weights, the order of the images and the views.",
        minimum=0,
        maximum=2**31 - 1,
    )

    # Method

    method: str = option(
        "simclr",
        "Self-supervised method: simclr (negatives from the batch), moco (from a "
        "queue), byol or simsiam (no negatives).",
    )
    temperature: float = option(
        0.5,
        "Softmax temperature of the loss; smaller is sharper. In --mode=distill: "
        "temperature of teacher and student. SimCLRv2 uses 0.1 for a student like "
        "its teacher and 1 for a smaller one.",
        greater_than=0,
    )
    loss: str = option(
        "nt_xent",
        "Loss of simclr. nt_xent; without the positive in the denominator, for small "
        "batches: dcl, and its weighted form dclw; hcl weights hard negatives; sogclr "
        "keeps a running denominator of every image, for small batches.",
        choices=("nt_xent", "dcl", "dclw", "hcl", "sogclr"),
    )
    hcl_beta: float | None = option(
        None,
        "Concentration of --loss=hcl on hard negatives; 0 weights all alike. Default: "
        "1.",
        minimum=0,
        maximum=100,
        since="0.3",
    )
    hcl_tau_plus: float | None = option(
        None,
        "Probability in --loss=hcl that a negative is of the anchor's class: about 1 / "
        "the number of classes; 0 turns the correction off. Default 0.1.",
        minimum=0,
        maximum=1,
        since="0.3",
    )
    sogclr_gamma: float | None = option(
        None,
        "Weight of the newest batch in the running denominators of --loss=sogclr; 1 is "
        "dcl. Lower it for smaller batches and more epochs. Default 0.9.",
        greater_than=0,
        maximum=1,
        since="0.3",
    )
    loss_block_rows: int = option(
        0,
        "Rows of simclr's similarity matrix that are computed at a time; a divisor of "
        "the batch size times the views of an image. Saves memory at batches in the "
        "thousands. 0 computes all at once, except with --microbatch_size and a batch "
        "of at least 2048: then 256 rows or a few less.",
        minimum=0,
    )
    ema_decay: float | None = option(
        None,
        "EMA decay of the momentum encoder (moco, and simclr if above 0) or target "
        "network (byol). Default: moco 0.999, byol 0.996, simclr 0 (no momentum "
        "encoder). 0.99 suits runs of a few thousand steps.",
        minimum=0,
        maximum=1,
    )
    ema_schedule: str | None = option(
        None,
        "EMA decay over the run: constant, or cosine, which rises from --ema_decay to "
        "1. Default: byol cosine, others constant.",
        choices=("constant", "cosine"),
    )
    queue_size: int | None = option(
        None,
        "Keys in moco's queue, a multiple of the batch size. 0 takes the negatives "
        "from the batch, as MoCo v3. Default: 65536, at most half of the images.",
        minimum=0,
    )
    bn_groups: int | None = option(
        None,
        "Sub-batches over which moco runs batch norm (Shuffling BN on one device). "
        "Default: the fewest for which a query's and its key's sub-batch share only "
        "that image; 1, which is plain batch norm, without a queue.",
        minimum=1,
    )

    # Memory

    microbatch_size: int = option(
        0,
        "Images that pass through the networks at a time, a divisor of the batch size; "
        "0 is the whole batch. The loss has the negatives of the whole batch, and the "
        "gradient is exact, in the memory of this many images and about 1.5 times the "
        "time. Batch norm sees one micro-batch at a time, as on several devices. For "
        "batches that do not fit into memory.",
        minimum=0,
        since="0.3",
    )
    remat: bool = option(
        False,
        "Gradient checkpointing: store only what passes between residual blocks and "
        "compute the rest again in the backward pass, in about 1.4 times the time. "
        "Batch norm sees the whole batch. For deep networks that do not fit into "
        "memory.",
        since="0.3",
    )

    # Devices

    strategy: str = option(
        "auto",
        "Devices that share the training; --batch_size is the batch of all of them, "
        "and the run is the same on any number of devices. mirrored: all GPUs of this "
        "machine. multi_worker: the machines of the environment variable TF_CONFIG. "
        "none: one device. auto: multi_worker if TF_CONFIG names several, mirrored if "
        "there is more than one GPU, otherwise none.",
        choices=("auto", "none", "mirrored", "multi_worker"),
        pretraining=False,
        since="0.3",
    )
    worker_timeout: float = option(
        120.0,
        "Seconds after which the other workers of --strategy=multi_worker end if one "
        "does not start, or hangs. Raise it if the chief needs longer to save a "
        "checkpoint, or if workers start minutes apart.",
        minimum=1,
        pretraining=False,
        since="0.3",
    )
    sync_batch_norm: bool = option(
        True,
        "On several devices, whether batch norm uses the statistics of the whole "
        "batch. false: those of each device's images, which is faster but depends on "
        "the number of devices.",
        since="0.3",
    )

    # Projection head

    proj_layers: int = option(
        2,
        "Layers of the projection head. More layers help small batches.",
        minimum=1,
        maximum=8,
    )
    proj_dim: int = option(
        64, "Width of z, the output of the projection head.", greater_than=0
    )
    proj_hidden: int = option(
        0,
        "Width of the projection head's hidden layers; 0 is the encoder's width.",
        minimum=0,
    )
    proj_activation: str = option(
        "relu",
        "Activation of the projection head: relu, tanh, leaky_relu (slope 0.01, "
        "as in the study) or any other elementwise Keras activation.",
    )
    proj_batch_norm: str | None = option(
        None,
        "Batch norm in the projection head (group norm with --norm=group): true, after "
        "every layer, as in SimCLR's own code; hidden, not after the last, as in BYOL; "
        "false, as in the study. Default: byol hidden, simsiam true, others false.",
        choices=("false", "true", "hidden"),
    )

    # Predictor

    pred_layers: int | None = option(
        None,
        "Layers of the predictor that follows z; 0 is no predictor. Default: byol and "
        "simsiam 2, moco 0 with a queue and 2 without.",
        minimum=0,
        maximum=8,
    )
    pred_hidden: int = option(
        0,
        "Width of the predictor's hidden layers; 0 is that of the head's. SimSiam has "
        "a bottleneck: a quarter of --proj_dim.",
        minimum=0,
    )
    pred_activation: str | None = option(
        None,
        "Activation of the predictor's hidden layers; default --proj_activation.",
        since="0.2",
    )
    pred_batch_norm: str | None = option(
        None,
        "Batch norm in the predictor: true, hidden or false, as --proj_batch_norm. "
        "Default: simsiam hidden, others --proj_batch_norm.",
        choices=("false", "true", "hidden"),
        since="0.2",
    )

    # Optimizer

    optimizer: str = option(
        "adam",
        "Optimizer of the pretraining. lars scales the step of each layer by the "
        "norm of its weights.",
        choices=("adam", "lars", "sgd"),
    )
    learning_rate: float | None = option(
        None,
        "Learning rate before scaling. Default: adam 3e-4, sgd 0.03, lars 0.3 "
        "(with none or linear scaling) or 0.075 (sqrt).",
        greater_than=0,
    )
    learning_rate_scaling: str | None = option(
        None,
        "Scaling of the learning rate with the batch size: none, linear (rate * "
        "batch / 256) or sqrt (rate * sqrt(batch)). Default: lars sqrt, others "
        "none.",
        choices=("none", "linear", "sqrt"),
    )
    warmup_epochs: float | None = option(
        None, "Epochs of linear warm-up. Default: lars 1, others 0.", minimum=0
    )
    schedule: str | None = option(
        None,
        "Learning rate after the warm-up. Default: adam constant, others cosine.",
        choices=("constant", "cosine"),
    )
    weight_decay: float | None = option(
        None,
        "Weight decay of kernels: for lars added to the gradient inside the trust "
        "ratio, otherwise decoupled. Default: lars 1e-6, sgd 1e-4, adam 0.",
        minimum=0,
    )

    # Arithmetic

    precision: str = option(
        "auto",
        "Keras dtype policy of the network. auto: mixed precision on a GPU with "
        "tensor cores, float32 elsewhere.",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    jit_compile: str = option(
        "auto",
        "Compile the training step with XLA. auto: on a GPU only.",
        choices=("auto", "true", "false"),
    )
    steps_per_check: int | None = option(
        None,
        "Steps after which the host reads loss and loss scale and checks that they are "
        "finite. A GPU does not wait for the host in between; results are the same, "
        "and a bad step is still named. Default: 16 on a GPU, 1 on a CPU.",
        minimum=1,
        pretraining=False,
        since="0.3",
    )
    deterministic: bool = option(
        False,
        "Use deterministic operations only, so that two runs give the same bits. "
        "Slower.",
    )

    # Views

    crop_min_area: float = option(
        0.08,
        "Smallest random crop, as a fraction of the image's area. Raise it if "
        "crops miss the subject.",
        greater_than=0,
        maximum=1,
    )
    jitter_strength: float = option(
        1.0, "Strength of the colour jitter; 0 turns it off.", minimum=0, maximum=2
    )
    blur: float = option(
        0.0,
        "Probability of Gaussian blur; 0.5 suits large images.",
        minimum=0,
        maximum=1,
    )
    flip: bool = option(
        True, "Mirror half of the views. Use false if left and right differ in meaning."
    )
    grayscale: float = option(
        0.2, "Probability of a grayscale view.", minimum=0, maximum=1
    )

    num_views: int = option(
        2,
        "Views of each image in a step (simclr, byol and simsiam). A step takes about "
        "num_views / 2 times as long as with two. More views suit small batches: each "
        "is compared with all other views of its image.",
        minimum=2,
        maximum=64,
        since="0.3",
    )
    num_local_views: int = option(
        0,
        "Further views of each image that are small crops of fewer pixels "
        "(multi-crop). They cost less than whole views.",
        minimum=0,
        maximum=64,
        since="0.3",
    )
    local_image_size: int | None = option(
        None,
        "Side of a local view in pixels. Default: half of --image_size, but no less "
        "than the encoder needs.",
        minimum=8,
        maximum=1024,
        since="0.3",
    )
    local_crop_areas: str | None = option(
        None,
        "Smallest and largest crop of a local view, low,high, as fractions of the "
        "image's area. Default, as in SwAV: 0.05,0.14.",
        since="0.3",
    )

    # Evaluation

    feature: str = option(
        "h",
        "Frozen feature of the reported linear classifier: h, head_1, ..., z. All "
        "features are scored.",
        pretraining=False,
    )
    probe_epochs: int = option(
        100, "Epochs of the linear classifier.", greater_than=0, pretraining=False
    )
    probe_optimizer: str = option(
        "adam",
        "Optimizer of the linear classifier.",
        choices=("adam", "sgd", "lars"),
        pretraining=False,
    )
    probe_learning_rate: float = option(
        0.0,
        "Learning rate of the linear classifier; 0 selects it on a held-out tenth "
        "of the training labels.",
        minimum=0,
        pretraining=False,
    )
    probe_batch_size: int = option(
        256, "Batch size of the linear classifier.", greater_than=0, pretraining=False
    )
    eval_dataset: str = option(
        "",
        "Other labelled data on which the run's encoder is scored as well, named as "
        "--dataset. The scores are the entry `evaluations` of result.json. "
        "--mode=evaluate then scores these data only and does not need the run's own. "
        "Default: folder if --eval_data_dir is given.",
        pretraining=False,
    )
    eval_data_dir: str = option(
        "", "As --data_dir, for --eval_dataset.", pretraining=False
    )
    eval_label_key: str = option(
        "", "As --label_key, for --eval_dataset.", pretraining=False
    )

    # Fine-tuning and distillation (SimCLRv2)

    label_fraction: float = option(
        0.1,
        "Fraction of the labelled training images of every class, at least one, "
        "that --mode=finetune trains on. In --mode=distill: the fraction that the "
        "teacher was fine-tuned on.",
        greater_than=0,
        maximum=1,
        pretraining=False,
    )
    finetune_layer: str | None = option(
        None,
        "Layer under the classifier of --mode=finetune: h, head_1, ...; not z, "
        "which has no activation. Later layers are dropped. Default, as in "
        "SimCLRv2: h with all labels, else head_1 (h if the head has one layer).",
        pretraining=False,
    )
    finetune_epochs: int | None = option(
        None,
        "Passes over the labelled images in --mode=finetune. Default, as in "
        "SimCLRv2: 60 below a tenth of the labels, else 30, but at least 500 "
        "steps.",
        greater_than=0,
        pretraining=False,
    )
    finetune_learning_rate: float | None = option(
        None,
        "Learning rate of LARS in --mode=finetune before it is multiplied by the "
        "square root of the batch size. Default, as in SimCLRv2: 0.005, or 0.002 "
        "for encoders with a width above 1 or selective kernels.",
        greater_than=0,
        pretraining=False,
    )
    finetune_batch_size: int = option(
        128,
        "Images per step of --mode=finetune; at most all labelled images.",
        greater_than=0,
        pretraining=False,
    )
    finetune_seed: int = option(
        0,
        "Seed of --mode=finetune: which images keep their labels, their order and "
        "their views. In --mode=distill: the teacher's seed.",
        minimum=0,
        maximum=2**31 - 1,
        pretraining=False,
    )
    teacher_dir: str = option(
        "",
        "Run folder of the teacher of --mode=distill: a run with a fine-tuned "
        "network, or an earlier student. The student gets a run folder of its "
        "own.",
        pretraining=False,
    )

    # Export

    formats: str | None = option(
        None,
        "Formats of the export, separated by commas: saved_model (TensorFlow; encoder, "
        "head, classifier), and of the encoder alone keras, safetensors (torchvision's "
        "and timm's names, for ResNets), onnx (needs pip install 'tfsimclr[onnx]') and "
        "litert. Default: saved_model, keras and, for ResNets, safetensors.",
        pretraining=False,
        since="0.3",
    )

    # Embeddings and search

    images: str = option(
        "",
        "What --mode=embed embeds: a folder of images, an image file, or the name of a "
        "data set (textures, stl10, ...).",
        pretraining=False,
        since="0.3",
    )
    layers: str | None = option(
        None,
        "Layers that --mode=embed writes, with commas: h,head_1,z. In --mode=search: "
        "the layer to compare. Default h.",
        pretraining=False,
        since="0.3",
    )
    output: str = option(
        "",
        "In --mode=embed: the file to write, .parquet, .npz or .csv; default "
        "embeddings.parquet in the run folder. In --mode=search: the folder for tables "
        "and pictures; default the folder search beside the embedding file.",
        pretraining=False,
        since="0.3",
    )
    embeddings: str = option(
        "",
        "Embedding file (.parquet) of --mode=search; default embeddings.parquet in "
        "--workdir.",
        pretraining=False,
        since="0.3",
    )
    query: str = option(
        "",
        "An image, or a folder of images, of which --mode=search finds the most "
        "similar images. Needs --workdir, the model.",
        pretraining=False,
        since="0.3",
    )
    top: int = option(
        12,
        "Similar images that --mode=search shows for each query.",
        greater_than=0,
        pretraining=False,
        since="0.3",
    )
    duplicates: float | None = option(
        None,
        "Find groups of near-duplicates: images of at least this cosine similarity. "
        "Start at 0.99; lower it until the groups hold different images.",
        greater_than=0,
        maximum=1,
        pretraining=False,
        since="0.3",
    )
    outliers: int = option(
        0,
        "List this many outliers: the images with the lowest mean similarity to their "
        "--neighbors nearest images.",
        minimum=0,
        pretraining=False,
        since="0.3",
    )
    neighbors: int = option(
        10,
        "Nearest images of which --outliers takes the mean similarity. Raise it above "
        "the size of a group of odd images that are alike.",
        greater_than=0,
        pretraining=False,
        since="0.3",
    )
    select: int = option(
        0,
        "Select this many images that differ as much as possible, for example to label "
        "them first.",
        minimum=0,
        pretraining=False,
        since="0.3",
    )

    search_index: str = option(
        "auto",
        "How --mode=search compares vectors: none compares all of them; ivf builds an "
        "index (pip install 'tfsimclr[search]'), which finds about 99.5 % of the "
        "nearest ten; auto uses the index above a million images, for more than 1,000 "
        "queries, --duplicates and --outliers.",
        choices=("auto", "none", "ivf"),
        pretraining=False,
        since="0.3",
    )

    # Report

    compare: str = option(
        "",
        "Run folders, separated by commas, that --mode=report shows side by side. The "
        "page, comparison.html, is written into --workdir, by default the folder that "
        "holds the first run.",
        pretraining=False,
        since="0.3",
    )

    # Planning

    memory_gb: float = option(
        0.0,
        "Memory for which --mode=plan finds the largest batch, in GB (10^9 "
        "bytes); 0 is the memory of the GPU, or else of the machine.",
        minimum=0,
        pretraining=False,
    )

    # Checkpoints

    keep_checkpoints: int = option(
        2, "Number of checkpoints to keep.", greater_than=0, pretraining=False
    )
    checkpoint_minutes: float = option(
        15.0,
        "Longest time between checkpoints in minutes. There is one after every "
        "epoch in any case.",
        greater_than=0,
        pretraining=False,
    )

    def __post_init__(self):
        options.check(self)
        allowed = feature_names(self.proj_layers)
        if self.feature not in allowed:
            raise UserError(
                f"--feature must be one of {allowed} with --proj_layers="
                f"{self.proj_layers}, got {self.feature!r}."
            )
        epochs = self.epochs or optimizers.default_epochs(bool(self.init))
        if self.warmup_epochs is not None and self.warmup_epochs >= epochs:
            raise UserError(
                f"--warmup_epochs must be below --epochs={epochs}, got "
                f"{self.warmup_epochs}."
            )
        if self.local_crop_areas is not None:
            parse_areas(self.local_crop_areas)
        self.export_formats()
        if self.dataset == "folder" and not self.data_dir:
            raise UserError(
                "--dataset=folder needs --data_dir, the folder with your images."
            )

    @property
    def other_dataset(self) -> str:
        """The data set of `--eval_dataset` and `--eval_data_dir`, "" for none."""
        return self.eval_dataset or ("folder" if self.eval_data_dir else "")

    @property
    def total_views(self) -> int:
        """The number of views of each image in a step, local ones included."""
        return self.num_views + self.num_local_views

    def export_formats(self) -> tuple[str, ...]:
        """Returns the formats that `formats` names; none if it is None.

        Raises:
            UserError: If a format is unknown or there is none.
        """
        if self.formats is None:
            return ()
        names = tuple(name.strip() for name in self.formats.split(","))
        for name in names:
            if name not in FORMATS:
                raise UserError(
                    f"--formats must be names among {FORMATS}, separated by commas, "
                    f"got {name!r}."
                )
        return names

    def replace_none(self, **values) -> "Config":
        """Returns the config with `values` for those of the settings that are None."""
        missing = {k: v for k, v in values.items() if getattr(self, k) is None}
        return dataclasses.replace(self, **missing)

    def with_optimizer_defaults(self) -> "Config":
        """Returns the config with the optimizer's defaults in place of None."""
        starts_from_weights = bool(self.init)
        epochs = self.epochs or optimizers.default_epochs(starts_from_weights)
        defaults = optimizers.optimizer_defaults(
            self.optimizer, self.learning_rate_scaling, epochs, starts_from_weights
        )
        return self.replace_none(epochs=epochs, **defaults)

    def changed(self) -> frozenset[str]:
        """Returns the names of the settings that differ from their default."""
        return frozenset(
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )

    def lines(self) -> list[str]:
        """Returns the settings as lines of a flagfile."""
        values = dataclasses.asdict(self)
        return [
            f"--{k}={options.to_flag_value(v)}"
            for k, v in values.items()
            if v is not None
        ]

    def pretraining(self) -> dict[str, str]:
        """Returns the settings that a run folder is tied to, as text."""
        return {
            field.name: options.to_flag_value(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.metadata["pretraining"]
        }

    def default_workdir(self) -> str:
        """Returns runs/<method>-<dataset>-<hash of the settings>."""
        old_names = {name: old for old, name in ALIASES.items()}
        newer = {
            field.name
            for field in dataclasses.fields(self)
            if field.metadata["since"]
            and getattr(self, field.name) in (field.default, field.metadata["before"])
        }
        # A run is not tied to these paths, but a run of other images is another run.
        paths = {"data_dir": self.data_dir, "teacher_dir": self.teacher_dir}
        # Under the names of the first version, so that its run folders are found.
        named = sorted(
            (old_names.get(name, name), value)
            for name, value in {**self.pretraining(), **paths}.items()
            if name not in newer
        )
        digest = hashlib.sha256(repr(named).encode()).hexdigest()[:8]
        # A data set may be called name/config:1.0.0.
        dataset = re.sub("[/:*]", "_", self.dataset)
        return os.path.join("runs", f"{self.method}-{dataset}-{digest}")


def parse_areas(text: str) -> tuple[float, float]:
    """Returns the two numbers of --local_crop_areas.

    Raises:
        UserError: If they are not two numbers with 0 < low <= high <= 1.
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not 0 < low <= high <= 1:
        raise UserError(
            "--local_crop_areas must be two numbers low,high with 0 < low <= high <= "
            f"1, such as 0.05,0.14, got {text!r}."
        )
    return low, high


def rename_old(settings: dict) -> dict:
    """Returns settings of a file of an older version under today's names."""
    return {ALIASES.get(name, name): value for name, value in settings.items()}


def from_saved(settings: dict, **changes) -> Config:
    """Returns the config of a checkpoint or result.json, also of an older version."""
    known = {field.name for field in dataclasses.fields(Config)}
    saved = {k: v for k, v in rename_old(settings).items() if k in known}
    return Config(**{**saved, **changes})


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one absl flag for every field of `Config`, and the old names."""
    options.define_flags(Config, values, ALIASES)


def from_flags(values: flags.FlagValues = flags.FLAGS) -> Config:
    """Returns the config that the parsed flags describe; paths become absolute."""
    given = {f.name: values[f.name].value for f in dataclasses.fields(Config)}
    for name in PATHS:
        if given[name] and "\0" not in given[name]:  # a null byte is refused below
            given[name] = os.path.abspath(os.path.expanduser(given[name]))
    if given["init"] not in ("", "imagenet") and "\0" not in given["init"]:
        given["init"] = os.path.abspath(os.path.expanduser(given["init"]))
    return Config(**given)
