"""Every method under the one step: precision, resuming, evaluation, export, flags."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfsimclr import build, resolve
from tfsimclr.modes import evaluate, export, pretrain
from tfsimclr.runs import folder as run_folder
from tfsimclr.training import checkpoints, recorder

METHODS = {
    "dcl": {"loss": "dcl"},
    "dclw": {"loss": "dclw", "loss_block_rows": 8},
    "momentum_simclr": {"ema_decay": 0.9, "ema_schedule": "cosine"},
    "moco": {"method": "moco", "ema_decay": 0.9, "queue_size": 48},
    "moco_v3": {"method": "moco", "queue_size": 0, "proj_batch_norm": "true"},
    "byol": {"method": "byol", "ema_decay": 0.9},
}
by_method = pytest.mark.parametrize("name", METHODS)


def run(tiny, **settings):
    config, dataset, folder = tiny(**settings)
    run_folder.prepare(config)
    pretrain.pretrain(config, dataset, folder)
    return config, dataset, folder


@by_method
def test_float16_trains(tiny, name):
    """The loss scale starts at 2^15 and comes down over skipped steps, queue or not."""
    _, _, folder = run(tiny, precision="mixed_float16", **METHODS[name])
    header, *rows = (folder / "history.csv").read_text().splitlines()
    assert len(rows) == 2
    numbers = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    assert np.isfinite(float(numbers["loss"]))
    assert float(numbers["skipped_steps"]) < 5  # of 5


# The others keep nothing that SimCLR does not (test_pretrain).
@pytest.mark.parametrize("name", ["momentum_simclr", "moco", "moco_v3", "byol"])
def test_it_is_resumed_scored_and_exported(tiny, name, tmp_path, monkeypatch):
    tf.config.experimental.enable_op_determinism()
    settings = {"deterministic": True, **METHODS[name]}
    _, _, folder = run(tiny, **settings)
    whole, _ = checkpoints.load_latest(folder / "checkpoints")
    config, dataset, _ = tiny(**settings, workdir=str(tmp_path / "stopped"))
    folder = run_folder.prepare(config)
    journal_s = recorder.Recorder.on_train_batch_end

    def interrupting(self, batch, logs=None):
        self.interrupted = int(self.model.step) == 7  # of 10; an epoch has 5
        journal_s(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "on_train_batch_end", interrupting)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(config, dataset, folder)
    assert checkpoints.load_latest(folder / "checkpoints")[1]["step"] == 7
    pretrain.pretrain(config, dataset, folder)
    resumed, _ = checkpoints.load_latest(folder / "checkpoints")
    assert whole.keys() == resumed.keys()
    for key in whole:
        np.testing.assert_array_equal(whole[key], resumed[key], err_msg=key)

    result = evaluate.evaluate(config, dataset, folder)
    assert set(result["features"]) == {"pixels", "random_h", "h", "head_1", "z"}
    export.export(config, folder)
    serve = tf.saved_model.load(str(folder / "saved_model")).signatures
    outputs = serve["serving_default"](images=tf.zeros([2, 20, 24, 3]))
    assert set(outputs) == {"h", "head_1", "z", "logits"}


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"method": "byol", "temperature": 0.1}, "--temperature means nothing to"),
        ({"method": "byol", "queue_size": 16}, "--queue_size means nothing to"),
        ({"method": "moco", "loss": "dcl"}, "--loss means nothing to --method=moco"),
        ({"pred_layers": 2}, "--pred_layers means nothing to --method=simclr"),
        ({"method": "moco", "queue_size": 20}, "multiple of --batch_size=16, got 20"),
        ({"method": "moco", "queue_size": 80}, "would hold every one of the 80"),
        ({"method": "moco", "bn_groups": 3}, "--bn_groups must divide .*=16, got 3"),
        ({"loss_block_rows": 5}, "--loss_block_rows must divide 32"),
    ],
)
def test_settings_of_another_method_or_batch_are_refused(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_defaults_of_the_methods(tiny):
    config, _, _ = tiny()
    assert (config.ema_decay, config.proj_batch_norm) == (0, "false")
    assert config.queue_size is config.bn_groups is config.pred_layers is None
    config, _, _ = tiny(method="moco")
    assert (config.ema_decay, config.ema_schedule) == (0.999, "constant")
    assert config.queue_size == 32  # half of the 80 images, in whole batches
    assert (config.bn_groups, config.pred_layers) == (4, 0)
    config, _, _ = tiny(method="moco", queue_size=0)
    assert (config.bn_groups, config.pred_layers) == (1, 2)
    config, _, _ = tiny(method="byol")
    assert (config.ema_decay, config.ema_schedule) == (0.996, "cosine")
    assert (config.pred_layers, config.proj_batch_norm) == (2, "hidden")
    model = build.method(config, 10)
    assert model.average.total_steps == 10
    assert model.predictor.batch_norm == model.head.batch_norm == "hidden"
    # A run folder's own flags give the same run again.
    assert resolve.resolve_method(config, 80) == config
    assert dataclasses.replace(config, proj_batch_norm=True).proj_batch_norm == "true"
