"""What `--mode` can do: each mode is a list of functions of a run."""

from tfsimclr.modes import distill, evaluate, export, finetune, plan, pretrain


def _finetune(config, dataset, workdir):
    export.export_classifier(finetune.finetune(config, dataset, workdir))


def _distill(config, dataset, workdir):
    export.export_classifier(distill.distill(config, dataset, workdir))


# Mode -> functions (config, data set, run folder), called in order. `plan` is called
# before there is a run folder.
MODES = {
    "all": (pretrain.pretrain, evaluate.evaluate, export.export),
    "pretrain": (pretrain.pretrain,),
    "evaluate": (evaluate.evaluate,),
    "export": (export.export,),
    "finetune": (_finetune,),
    "distill": (_distill,),
    "plan": (plan.plan,),
}
