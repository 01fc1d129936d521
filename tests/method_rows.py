"""The rows of the generic method tests: a new method adds one here."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """A method with settings, as on the command line, for small images.

    Attributes:
        settings: Settings of the run; batch size 16 and 80 images.
        learning: More settings for a thousand steps at batch 64, with SGD.
        slow: Whether its micro-batches are a slow test.
        collapses: For methods without negatives: pairs of settings and attributes of
            the model with which the features collapse within 200 steps.
        survives: Likewise, with which they do not.
    """

    settings: dict
    learning: dict
    slow: bool = False
    collapses: tuple = ()
    survives: tuple = ()


ROWS = {
    "simclr": Row({}, {"learning_rate": 0.2}),
    "dcl": Row({"loss": "dcl"}, {"learning_rate": 0.2}, slow=True),
    "dclw": Row(
        {"loss": "dclw", "loss_block_rows": 8},
        {"learning_rate": 0.2},
        slow=True,
    ),
    "momentum_simclr": Row(
        {"ema_decay": 0.99, "ema_schedule": "cosine"},
        {"learning_rate": 0.2, "ema_schedule": "constant"},
        slow=True,
    ),
    "group_norm": Row(
        {"norm": "group", "proj_batch_norm": "true"},
        {"learning_rate": 0.2},
        slow=True,
    ),
    "hcl": Row({"loss": "hcl", "hcl_beta": 0.5}, {"learning_rate": 0.2}, slow=True),
    # Three views, one of them local, so that resuming is tested with both.
    "sogclr": Row(
        {"loss": "sogclr", "num_local_views": 1, "loss_block_rows": 8},
        {"learning_rate": 0.2, "num_local_views": 0, "loss_block_rows": 0},
        slow=True,
    ),
    "many_views": Row(
        {
            **{"num_views": 3, "num_local_views": 2, "local_image_size": 10},
            **{"local_crop_areas": "0.1,0.4", "ema_decay": 0.9, "loss": "dcl"},
            "loss_block_rows": 8,
        },
        {"learning_rate": 0.2, "loss_block_rows": 0, "ema_decay": 0.0},
        slow=True,
    ),
    # With SGD at 0.2 MoCo v3 learns on some processors only: rounding decides.
    "moco": Row(
        {
            "method": "moco",
            "temperature": 0.2,
            "ema_decay": 0.99,
            "queue_size": 48,
        },
        {"learning_rate": 0.05, "queue_size": 256, "bn_groups": 8},
    ),
    "moco_v3": Row(
        {
            "method": "moco",
            "temperature": 0.2,
            "ema_decay": 0.99,
            "queue_size": 0,
            "proj_batch_norm": "true",
        },
        {"learning_rate": 0.05},
    ),
    "byol": Row(
        {"method": "byol", "ema_decay": 0.99},
        {"learning_rate": 0.2, "ema_schedule": "constant"},
        collapses=(
            ({"pred_layers": 0}, {}),
            ({"pred_layers": 0, "ema_decay": 0.0}, {}),
        ),
        # As SimSiam found, the predictor is enough without a moving average.
        survives=(({}, {}), ({"ema_decay": 0.0}, {})),
    ),
    "byol_of_many_views": Row(
        {"method": "byol", "ema_decay": 0.99, "num_views": 3, "num_local_views": 1},
        {"learning_rate": 0.2, "ema_schedule": "constant"},
        slow=True,
    ),
    "simsiam_of_many_views": Row(
        {"method": "simsiam", "pred_hidden": 16, "num_views": 2, "num_local_views": 2},
        {"learning_rate": 0.2, "proj_layers": 3},
        slow=True,
    ),
    # The experiment with which BYOL begins: the target network stays untrained.
    "fixed_target": Row(
        {"method": "byol", "ema_decay": 1.0},
        {"learning_rate": 0.2, "ema_schedule": "constant"},
    ),
    "simsiam": Row(
        {"method": "simsiam", "proj_layers": 3, "pred_hidden": 16},
        {"learning_rate": 0.2},
        # Batch norm on z would keep its standard deviation at 1 in a collapse.
        collapses=(
            ({"pred_layers": 0, "proj_batch_norm": "hidden"}, {}),
            ({"proj_batch_norm": "hidden"}, {"stop_gradient": False}),
        ),
        survives=(({}, {}), ({"proj_batch_norm": "hidden"}, {})),
    ),
}
