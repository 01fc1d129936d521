"""Every method under the one step: precision, resuming, evaluation, export, flags."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from interruption import assert_same_checkpoints, stopped_at
from method_rows import ROWS

from tfsimclr import build, resolve
from tfsimclr.methods import LOCAL_VIEWS, METHODS, PREDICTOR
from tfsimclr.methods.base import PARTS, Method, MomentumMethod
from tfsimclr.modes import evaluate, export, pretrain
from tfsimclr.networks.names import feature_names
from tfsimclr.runs import folder as run_folder
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints

# The loss sogclr needs it; the other methods look at no labels.
INDEX = np.arange(16)
by_row = pytest.mark.parametrize("name", ROWS)


@pytest.mark.quick
def test_every_method_has_a_row():
    assert {row.settings.get("method", "simclr") for row in ROWS.values()} == set(
        METHODS
    )


@pytest.mark.quick
@pytest.mark.parametrize("method", METHODS)
def test_what_an_entry_uses_are_settings_and_arguments(method):
    entry = METHODS[method]
    settings = {field.name for field in dataclasses.fields(Config)}
    assert set(entry.uses) <= settings and set(entry.defaults) <= settings
    arguments = inspect.signature(entry.method).parameters
    own = set(entry.uses) - set(PREDICTOR)
    own -= set(LOCAL_VIEWS)
    for base in (Method, MomentumMethod):
        own -= set(inspect.signature(base).parameters)
    assert own <= set(arguments)


def small_model(tiny, name):
    config, dataset, _ = tiny(**ROWS[name].settings)
    model = build.method(config, 10, num_images=80)
    # For a few steps, building a graph would take most of the time.
    model.compile(optimizer=keras.optimizers.SGD(0.05), run_eagerly=True)
    model.optimizer.build(model.learned_variables)
    return model, dataset.pretrain.images[:16]


@by_row
def test_all_that_is_learned_moves_and_the_stopped_side_has_no_gradient(
    shallow, tiny, name
):
    model, images = small_model(tiny, name)
    # By identity: a momentum network's variables have the paths of the originals.
    learned = {id(variable) for variable in model.learned_variables}
    with tf.GradientTape() as tape:
        batch = model.prepare_batch(tf.constant(images), tf.range(16, dtype=tf.int64))
        loss, logs = model.objective(*batch)
    assert set(logs) == set(model.metric_names)
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        if id(variable) in learned:
            assert gradient is not None, variable.path
        else:  # a momentum network's
            assert gradient is None, variable.path
    before = {v.path: v.numpy() for v in model.learned_variables}
    model.fit(images, INDEX, batch_size=16, shuffle=False, verbose=0)
    still = [
        v.path for v in model.learned_variables if (v.numpy() == before[v.path]).all()
    ]
    assert not still


@by_row
def test_a_keras_file_brings_everything_back(shallow, tiny, name, tmp_path):
    model, images = small_model(tiny, name)
    model.fit(images, INDEX, batch_size=16, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    own = inspect.signature(type(model)).parameters.keys() - {*PARTS, "kwargs"}
    own |= {"num_views", "num_local_views"}
    for argument in own - {"loss"}:
        assert getattr(loaded, argument) == getattr(model, argument), argument
    for each in (model, loaded):
        each.fit(images, INDEX, batch_size=16, shuffle=False, verbose=0)
    assert int(loaded.step) == 2
    for one, other in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=one.path)


def run(tiny, **settings):
    config, dataset, folder = tiny(**settings)
    run_folder.prepare(config)
    pretrain.pretrain(config, dataset, folder)
    return config, dataset, folder


# The others differ from these in what is float32 in any case (loss, decay), in
# the number of views (`many_views`) or in the norm (test_group_norm).
FLOAT16 = ("simclr", "sogclr", "many_views", "moco", "moco_v3", "byol", "simsiam")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in FLOAT16))
        for name in ROWS
    ],
)
def test_float16_trains(tiny, name):
    """The loss scale starts at 2^15 and comes down over skipped steps, queue or not."""
    _, _, folder = run(tiny, precision="mixed_float16", **ROWS[name].settings)
    header, *rows = (folder / "history.csv").read_text().splitlines()
    assert len(rows) == 2
    numbers = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    assert np.isfinite(float(numbers["loss"]))
    assert float(numbers["skipped_steps"]) < 5  # of 5


# The others have no more state than SimCLR (test_pretrain), and `momentum_simclr` no
# other than `many_views`.
@pytest.mark.promise("methods")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("momentum_simclr", marks=pytest.mark.slow),
        *("many_views", "sogclr", "moco", "moco_v3", "byol", "simsiam"),
    ],
)
def test_it_is_resumed_scored_and_exported(tiny, name, tmp_path):
    tf.config.experimental.enable_op_determinism()
    settings = {"deterministic": True, "formats": "saved_model"}
    settings |= ROWS[name].settings
    if name == "moco_v3":
        settings["microbatch_size"] = 4
    _, _, folder = run(tiny, **settings)
    config, dataset, _ = tiny(**settings, workdir=str(tmp_path / "stopped"))
    whole, folder = folder, run_folder.prepare(config)
    with stopped_at(7):  # of 10; an epoch has 5
        pretrain.pretrain(config, dataset, folder)
    assert checkpoints.load_latest(folder / "checkpoints")[1]["step"] == 7
    pretrain.pretrain(config, dataset, folder)
    assert_same_checkpoints(folder, whole)

    result = evaluate.evaluate(config, dataset, folder)
    layers = feature_names(config.proj_layers)
    assert set(result["features"]) == {"pixels", "random_h", *layers}
    export.export(config, dataset, folder)
    serve = tf.saved_model.load(str(folder / "saved_model")).signatures
    outputs = serve["serving_default"](images=tf.zeros([2, 20, 24, 3]))
    assert set(outputs) == {*layers, "feature_map", "logits"}


@pytest.mark.quick
@pytest.mark.promise("unused-settings")
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
        (
            {"method": "moco", "norm": "group", "bn_groups": 4},
            "--bn_groups=4 means nothing to --norm=group",
        ),
        (
            {"loss_block_rows": 32, "num_views": 3},
            "--loss_block_rows must divide 48, the rows of all views, got 32",
        ),
        ({"method": "moco", "num_views": 3}, "--num_views means nothing to --method"),
        ({"loss": "hcl", "hcl_tau_plus": 1.0}, "--hcl_tau_plus must be below 1"),
        ({"hcl_beta": 1.0}, "--hcl_beta means nothing to --loss=nt_xent"),
        ({"loss": "hcl", "sogclr_gamma": 1.0}, "--sogclr_gamma means nothing to --lo"),
        ({"local_image_size": 12}, "--local_image_size means nothing without local"),
        (
            {"num_local_views": 2, "local_image_size": 8},
            "--local_image_size=8 is too small for --stem=medium.*at least 9",
        ),
        ({"local_crop_areas": "0.5,0.1"}, "--local_crop_areas must be two numbers"),
    ],
)
def test_settings_of_another_method_or_batch_are_refused(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


@pytest.mark.quick
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
