"""Settings of what is learned from labels: fine-tuning and distillation."""

import dataclasses

from tfsimclr.options import option


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """The labels, the layer and the training of a fine-tuning, and the teacher."""

    labels: float = option(
        0.1,
        "Share of the labelled training images, the same of every class and at least "
        "one image, that --mode=finetune learns from; in --mode=distill the share that "
        "the teacher learned from.",
        above=0,
        most=1,
        pretraining=False,
    )
    finetune_from: str | None = option(
        None,
        "Layer of the head that the classifier of --mode=finetune is put on: h, "
        "head_1, ...; not z, which has no activation. What lies behind it is dropped. "
        "Default, as in SimCLRv2: h with all labels, else head_1 (with one layer h).",
        pretraining=False,
    )
    finetune_epochs: int | None = option(
        None,
        "Passes over the labelled images of --mode=finetune. Default: 60 below a tenth "
        "of the labels, else 30, as in SimCLRv2, but at least 500 steps.",
        above=0,
        pretraining=False,
    )
    finetune_learning_rate: float | None = option(
        None,
        "Learning rate of LARS in --mode=finetune, times the square root of the batch. "
        "Default, as in SimCLRv2: 0.005, and 0.002 for encoders that are wider than 1 "
        "or have selective kernels.",
        above=0,
        pretraining=False,
    )
    finetune_batch_size: int = option(
        128,
        "Images per step of --mode=finetune; at most all of them.",
        above=0,
        pretraining=False,
    )
    finetune_seed: int = option(
        0,
        "Seed of --mode=finetune: which images keep their label, their order and "
        "views. Run several; in --mode=distill the teacher's.",
        least=0,
        most=2**31 - 1,
        pretraining=False,
    )
    teacher: str = option(
        "",
        "Run folder whose fine-tuned network --mode=distill teaches to this one, which "
        "becomes a run of its own; or the run folder of another student.",
    )
