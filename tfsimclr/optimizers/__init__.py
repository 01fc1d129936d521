"""Optimizers, their schedules, and the defaults of each optimizer.

The defaults are here, in a module that imports no TensorFlow, because the study reads
them to plan.
"""

# The settings of the same name; the learning rate per scaling rule. LARS has SimCLR's
# two bases, the others one rate at batch 128 under every rule.
OPTIMIZER_DEFAULTS: dict[str, dict] = {
    "adam": {
        "learning_rate": {"none": 3e-4, "linear": 6e-4, "sqrt": 2.65e-5},
        "learning_rate_scaling": "none",
        "warmup_epochs": 0.0,
        "schedule": "constant",
        "weight_decay": 0.0,
    },
    "lars": {
        "learning_rate": {"none": 0.3, "linear": 0.3, "sqrt": 0.075},
        "learning_rate_scaling": "sqrt",
        "warmup_epochs": 1.0,
        "schedule": "cosine",
        "weight_decay": 1e-6,
    },
    "sgd": {
        "learning_rate": {"none": 0.03, "linear": 0.06, "sqrt": 2.65e-3},
        "learning_rate_scaling": "none",
        "warmup_epochs": 0.0,
        "schedule": "cosine",
        "weight_decay": 1e-4,
    },
}


# A start from weights needs fewer epochs. The rate stays: half of it was not better in
# results/init. It warms up, since the projection head starts at random.
EPOCHS = 40
EPOCHS_FROM_WEIGHTS = 20
WARMUP_FROM_WEIGHTS = 1.0


def default_epochs(starts_from_weights: bool) -> int:
    """Returns the default of `--epochs`, without or with `--init`."""
    return EPOCHS_FROM_WEIGHTS if starts_from_weights else EPOCHS


def optimizer_defaults(
    name: str, rule: str | None, epochs: int, starts_from_weights: bool = False
) -> dict:
    """Returns an optimizer's defaults as `{setting: value}`.

    Args:
        name: One of `OPTIMIZER_DEFAULTS`.
        rule: The scaling of the learning rate, or None for the optimizer's own.
        epochs: Epochs of the run. The warm-up takes at most a tenth of them; otherwise
            a run of one epoch would be warm-up only.
        starts_from_weights: Whether the encoder starts from weights (`--init`).
    """
    defaults = dict(OPTIMIZER_DEFAULTS[name])
    rates = defaults["learning_rate"]
    defaults["learning_rate"] = rates[rule or defaults["learning_rate_scaling"]]
    if starts_from_weights:
        warmup = max(defaults["warmup_epochs"], WARMUP_FROM_WEIGHTS)
        defaults["warmup_epochs"] = warmup
    defaults["warmup_epochs"] = min(defaults["warmup_epochs"], epochs / 10)
    return defaults
