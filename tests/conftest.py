"""A data set and settings small enough for a test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402  (after the environment)
import pytest  # noqa: E402

from tfsimclr import build, textures  # noqa: E402
from tfsimclr.config import Config  # noqa: E402


@pytest.fixture(autouse=True)
def float32_policy():
    """Every test starts and ends in float32, whatever it sets between."""
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Returns a function: settings -> (resolved config, data set, run folder)."""
    splits = {"unlabeled": 80, "train": 60, "test": 40}
    monkeypatch.setattr(textures, "SPLITS", splits)

    def make(**settings):
        defaults = {
            "dataset": "textures",
            "cache_dir": str(tmp_path / "cache"),
            "workdir": str(tmp_path / "run"),
            "backbone": "resnet10",
            "width": 0.125,
            "image_size": 16,
            "stem": "medium",
            "batch_size": 16,
            "epochs": 2,
            "probe_epochs": 5,
            "probe_learning_rate": 3e-3,
            "deterministic": False,
        }
        config = Config(**{**defaults, **settings})
        dataset = build.dataset(config)
        return build.resolve(config, dataset), dataset, tmp_path / "run"

    return make
