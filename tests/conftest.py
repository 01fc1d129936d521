"""A data set and settings small enough for a test."""

import dataclasses
import gc
import os
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "PYTEST_XDIST_WORKER" in os.environ:  # one core each
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import pytest
import tensorflow as tf

from tfsimclr import build, resolve
from tfsimclr.data import textures
from tfsimclr.modes import finetune, pretrain
from tfsimclr.networks import resnet
from tfsimclr.runs import folder as run_folder
from tfsimclr.settings.config import Config

# For tests of several devices. TensorFlow allows it only before its first operation,
# and all other tests use the first device.
LOGICAL_CPUS = 4
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * LOGICAL_CPUS,
)


def pytest_collection_finish():
    """The garbage collector need not look at all modules again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture
def shallow(monkeypatch):
    """Makes `resnet10` half as deep: graphs are built in less time.

    For tests of what does not depend on the encoder.
    """
    make_shallow(monkeypatch)


@pytest.fixture(scope="module")
def shallow_module():
    """Does the same for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        make_shallow(patch)
        yield


def make_shallow(patch):
    patch.setitem(resnet._ARCHITECTURES, 10, ("basic", (1, 1)))


@pytest.fixture(autouse=True)
def float32_policy():
    """Every test starts and ends in float32, whatever it sets between."""
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


SPLITS = {"unlabeled": 80, "train": 60, "test": 40}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Returns a function: settings -> (resolved config, data set, run folder)."""
    monkeypatch.setattr(textures, "SPLITS", SPLITS)
    return maker_of_runs(tmp_path)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory):
    """Returns config, data set and folder of a run that is trained but not scored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textures, "SPLITS", SPLITS)
        made = maker_of_runs(tmp_path_factory.mktemp("finished"))(epochs=1)
    config, dataset, folder = made
    run_folder.prepare(config)
    pretrain.pretrain(config, dataset, folder)
    return made


@pytest.fixture
def finished(finished_once, tmp_path):
    """Returns the same with a copy of the run folder of the test's own."""
    config, dataset, folder = finished_once
    shutil.copytree(folder, tmp_path / "run")
    config = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    return config, dataset, tmp_path / "run"


@pytest.fixture(scope="session")
def finetuned_once(finished_once, tmp_path_factory):
    """Returns the same with a network fine-tuned from head_1, and its folder."""
    config, dataset, folder = finished_once
    copy = tmp_path_factory.mktemp("finetuned") / "run"
    shutil.copytree(folder, copy)
    config = dataclasses.replace(
        config,
        mode="finetune",
        workdir=str(copy),
        label_fraction=0.5,
        finetune_epochs=4,
        finetune_batch_size=10,
        finetune_learning_rate=0.05,
    )
    made = finetune.finetune(config, dataset, copy)
    keras.config.set_dtype_policy("float32")
    return config, dataset, copy, made


def maker_of_runs(tmp_path):
    """Returns a function: settings -> (resolved config, data set, run folder)."""

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
        return resolve.resolve(config, dataset), dataset, tmp_path / "run"

    return make
