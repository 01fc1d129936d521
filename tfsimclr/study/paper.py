"""The experiments and numbers of the paper "Small Batch SimCLR"."""

# Experiment -> its name in the paper and its top-1 in percent, in the paper's order.
PAPER = {
    "baseline_128": ("Baseline 128", 68.59),
    "baseline_256": ("Baseline 256", 71.59),
    "simclr_z": ("SimCLR z", 67.54),
    "tanh": ("Baseline 128 tanh", 67.95),
    "leaky_relu": ("Baseline 128 LeakyReLU", 68.84),
    "lars": ("Baseline 128 LARS", 69.85),
    "layer3": ("Baseline 128 layer3", 69.53),
    "layer4": ("Baseline 128 layer4", 70.25),
    "lars_layer4": ("Baseline 128 LARS layer4 (final)", 70.67),
}
# Every table repeats both baselines; differences are to the reference.
BASELINES = ("baseline_128", "baseline_256")
REFERENCE = "baseline_128"
# Table -> its title and its experiments besides the baselines.
TABLES = {
    "I": ("Baselines", ()),
    "II": ("Classifier on z", ("simclr_z",)),
    "III": ("Activation of the head", ("tanh", "leaky_relu")),
    "IV": ("LARS", ("lars",)),
    "V": ("Layers of the head", ("layer3", "layer4")),
    "VI": ("Final model", ("lars_layer4",)),
}
