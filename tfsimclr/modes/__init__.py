"""What `--mode` can do: each mode is a list of functions of a run."""

from collections.abc import Callable

from tfsimclr.distribution import workers
from tfsimclr.modes import (
    distill,
    embed,
    evaluate,
    export,
    finetune,
    pretrain,
    report,
    search,
    transfer,
)


def _evaluate(config, dataset, workdir):
    if config.other_dataset:
        transfer.evaluate(config, workdir)
    else:
        evaluate.evaluate(config, dataset, workdir)


def _evaluate_all(config, dataset, workdir):
    evaluate.evaluate(config, dataset, workdir)
    if config.other_dataset:
        transfer.evaluate(config, workdir)


def _finetune(config, dataset, workdir):
    folder = finetune.finetune(config, dataset, workdir)
    if workers.is_chief():
        export.export_classifier(folder)


def _distill(config, dataset, workdir):
    folder = distill.distill(config, dataset, workdir)
    if workers.is_chief():
        export.export_classifier(folder)


# Modes that train, and so may have several devices and machines.
TRAINING = ("all", "pretrain", "finetune", "distill")
# Mode -> functions (config, data set, run folder), called in order. `plan` is not among
# them: it has no run folder.
MODES: dict[str, tuple[Callable, ...]] = {
    "all": (
        pretrain.pretrain,
        _evaluate_all,
        export.export,
        report.report_if_possible,
    ),
    "pretrain": (pretrain.pretrain,),
    "evaluate": (_evaluate,),
    "export": (export.export,),
    "report": (report.report,),
    "finetune": (_finetune,),
    "distill": (_distill,),
}
# Mode -> function of the settings, for modes that take a trained network as it is.
OF_TRAINED: dict[str, Callable] = {
    "embed": embed.embed_images,
    "search": search.search,
}
