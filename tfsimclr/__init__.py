"""Self-supervised image representations for small batches, in Keras and TensorFlow.

The classes and functions below are imported on first use, so that the command line
answers `--help` without loading TensorFlow.
"""

import importlib
import importlib.abc
import importlib.util
import os
import sys

__version__ = "0.2.0"

# TensorFlow itself turns oneDNN on only for processors with AVX-512 VNNI or later. On
# older ones it makes a step two to three times as fast. A value of the user's stays.
if "tensorflow" not in sys.modules:
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# Public name -> where it is defined.
_NAMES = {
    "SimCLR": "tfsimclr.methods.simclr",
    "MoCo": "tfsimclr.methods.moco",
    "BYOL": "tfsimclr.methods.byol",
    "SimSiam": "tfsimclr.methods.simsiam",
    "Views": "tfsimclr.views.random_view",
    "ProjectionHead": "tfsimclr.networks.heads",
    "LARS": "tfsimclr.optimizers.lars",
    "nt_xent": "tfsimclr.losses",
    "embed": "tfsimclr.modes.embed",
}
_MODULES = {
    "augment": "tfsimclr.views.random_view",
    "heads": "tfsimclr.networks.heads",
    "lars": "tfsimclr.optimizers.lars",
    "losses": "tfsimclr.losses",
    "resnet": "tfsimclr.networks.resnet",
    "simclr": "tfsimclr.methods.simclr",
}
# Registered name in saved models -> module that registers it.
_REGISTERED = {
    "SimCLR": "tfsimclr.methods.simclr",
    "MoCo": "tfsimclr.methods.moco",
    "BYOL": "tfsimclr.methods.byol",
    "SimSiam": "tfsimclr.methods.simsiam",
    "Classifier": "tfsimclr.methods.classifier",
    "Student": "tfsimclr.methods.classifier",
    "Views": "tfsimclr.views.random_view",
    "ProjectionHead": "tfsimclr.networks.heads",
    "SplitBatchNormalization": "tfsimclr.networks.norms",
    "StandardizedConv2D": "tfsimclr.networks.standardization",
    "MomentumNetwork": "tfsimclr.networks.momentum",
    "LARS": "tfsimclr.optimizers.lars",
    "Schedule": "tfsimclr.optimizers.schedules",
}

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'tfsimclr' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})


class _Registered:
    """Stands in for a class of ours in Keras's registry until it is first loaded."""

    def __init__(self, name: str):
        self.__name__ = name

    def from_config(self, config):
        module = importlib.import_module(_REGISTERED[self.__name__])
        return getattr(module, self.__name__).from_config(config)


def _register(keras) -> None:
    registry = keras.saving.get_custom_objects()
    for name in _REGISTERED:
        registry.setdefault(f"tfsimclr>{name}", _Registered(name))


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Registers our classes once Keras is imported, so it can load saved models."""

    def find_spec(self, fullname, path, target=None):
        if fullname != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("keras")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "keras" in sys.modules:
    _register(sys.modules["keras"])
else:
    sys.meta_path.insert(0, _AfterKeras())
