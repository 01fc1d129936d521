"""Training on micro-batches: the loss of the whole batch in the memory of a part."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from method_rows import ROWS

from tfsimclr import build, resolve
from tfsimclr.errors import UserError
from tfsimclr.methods import base
from tfsimclr.methods.classifier import Classifier
from tfsimclr.methods.simclr import SimCLR
from tfsimclr.modes import dry_run
from tfsimclr.networks import heads, norms, resnet
from tfsimclr.views.random_view import Views

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), "uint8")
INDICES = np.arange(16)
METHODS = [
    pytest.param(row, id=name, marks=[pytest.mark.slow] * row.slow)
    for name, row in ROWS.items()
]


@pytest.fixture
def small(tiny, monkeypatch):
    """Returns a function: settings -> config of a method with the small encoder."""
    monkeypatch.setattr(build, "encoder", lambda config: encoder())
    return lambda **settings: tiny(image_size=16, stem="small", **settings)[0]


@pytest.fixture
def in_float64(monkeypatch):
    """Networks in float64: fused batch norm, which is not over groups, is left out."""

    def start(config):
        keras.config.set_dtype_policy("float64")
        keras.utils.set_random_seed(config.seed)

    monkeypatch.setattr(build, "start", start)


def encoder():
    images = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(6, 3, strides=2, use_bias=False)(images)
    x = keras.layers.ReLU()(norms.SplitBatchNormalization()(x))
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def simclr(microbatch_size=0, policy="float32", **settings):
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    head = heads.ProjectionHead(2, dim=8, batch_norm=True)
    model = SimCLR(
        encoder(), head, Views(16), microbatch_size=microbatch_size, **settings
    )
    model.compile(keras.optimizers.SGD(0.1))
    return model


def gradients(model, images=IMAGES):
    """Returns loss, logs and gradients of the first step, by the graph of training."""

    @tf.function(autograph=False)
    def compute(images):
        with tf.GradientTape() as tape:
            loss, logs = model.objective(
                *model.prepare_batch(images, INDICES[: images.shape[0]])
            )
        return loss, logs, tape.gradient(loss, model.learned_variables)

    loss, logs, grads = compute(tf.constant(images))
    logs = {name: value.numpy() for name, value in logs.items()}
    return loss.numpy(), logs, [g.numpy() for g in grads]


def assert_equal_steps(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a[0], b[0], rtol=tolerance)
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        # Rounding of z may change the rank of one anchor, of 32 or more.
        near = 1.01 / 32 if name == "contrastive_top1" else 1e-5
        np.testing.assert_allclose(a[1][name], b[1][name], rtol=tolerance, atol=near)
    largest = max(np.abs(g).max() for g in b[2])
    assert largest > 0
    for one, other in zip(a[2], b[2], strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * largest)


@pytest.mark.parametrize("row", METHODS)
def test_one_micro_batch_is_the_plain_step(small, row):
    config = small(**row.settings)
    plain = gradients(build.method(config, 10, num_images=16))
    config = dataclasses.replace(config, microbatch_size=config.batch_size)
    assert_equal_steps(gradients(build.method(config, 10, num_images=16)), plain, 1e-4)


@pytest.mark.promise("microbatches")
@pytest.mark.parametrize("row", METHODS)
def test_micro_batches_are_the_step_of_sub_batches(small, in_float64, row):
    """The plain step, with batch norm over as many groups as there are micro-batches.

    Siblings: views are made per piece and equal those of the whole batch; MoCo's keys
    are shuffled over the whole batch; local views are pieces of their own size.
    """
    config = small(**row.settings, microbatch_size=4)
    result = gradients(build.method(config, 10, num_images=16))
    plain = build.method(
        dataclasses.replace(config, microbatch_size=0), 10, num_images=16
    )
    if config.method != "moco":  # which has as many groups already
        networks = [plain.encoder, plain.head, plain.predictor]
        if getattr(plain, "average", None):
            networks += plain.average.target()
        in_order = config.method == "simclr"
        for network in filter(None, networks):
            norms.set_bn_groups(network, 4)
        if in_order:
            plain.pass_through = _interleaved(plain, pieces=4)
    elif config.queue_size == 0:
        for network in (plain.encoder, plain.head, plain.predictor):
            norms.set_bn_groups(network, 4)
        for network in plain.average.target():
            norms.set_bn_groups(network, 4)
        plain._divide_into_groups = lambda n: None
    assert_equal_steps(result, gradients(plain), 1e-4)


def _interleaved(model, pieces):
    """Returns `pass_through` with both views of an image in the same sub-batch."""

    def pass_through(call, networks, views, order=None, training=True):
        n = views[0].shape[0]
        rows = np.arange(n).reshape(pieces, -1)
        rows = np.concatenate([rows + n * i for i in range(len(views))], axis=1).ravel()
        back = np.argsort(rows)
        outputs = call(tf.gather(tf.concat(views, axis=0), rows))
        split = [tf.split(tf.gather(o, back), len(views)) for o in outputs]
        return [list(of_view) for of_view in zip(*split, strict=True)]

    return pass_through


@pytest.mark.promise("microbatches")
def test_with_group_norm_micro_batches_are_the_plain_step():
    def model(microbatch_size):
        keras.utils.set_random_seed(0)
        network = resnet.resnet(10, 0.125, "small", norm="group")
        head = heads.ProjectionHead(2, dim=8, batch_norm=True, norm="group")
        return SimCLR(network, head, Views(16), microbatch_size=microbatch_size)

    assert_equal_steps(gradients(model(4)), gradients(model(0)), 1e-4)


def test_remat_is_the_plain_step(tiny):
    config, _, _ = tiny(remat=True)
    checkpointed = gradients(build.method(config, 10))
    plain = gradients(build.method(dataclasses.replace(config, remat=False), 10))
    assert_equal_steps(checkpointed, plain, 1e-4)


@pytest.mark.slow
def test_2048_in_micro_batches_need_less_memory_than_1024_at_once(tiny):
    images = np.random.default_rng(0).integers(0, 256, (2048, 32, 32, 3), "uint8")
    plain, _, _ = tiny(image_size=32)
    plain = dataclasses.replace(plain, batch_size=1024)
    pieces = dataclasses.replace(plain, batch_size=2048, microbatch_size=128)
    pieces = resolve.resolve_memory(pieces)
    peaks = []
    for config in (plain, pieces):
        run = dry_run.measure_in_subprocess(config, images, timed_steps=1)
        peaks.append(run["step_peak_bytes"] - run["base_bytes"])
    assert peaks[1] < 0.6 * peaks[0]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("row", METHODS)
def test_half_precision_is_one_tape_over_the_pieces(small, monkeypatch, row, policy):
    """In one precision: float32 differs by more than rounding of one operation.

    Batch norm of four images amplifies the rounding of half precision.
    """

    def one_tape(call, networks, num_pieces):
        pieces = [call(tf.constant(i)) for i in range(num_pieces)]
        return tf.nest.map_structure(lambda *outputs: tf.stack(outputs), *pieces)

    config = small(**row.settings, microbatch_size=4, precision=policy)
    result = gradients(build.method(config, 10, num_images=16))
    monkeypatch.setattr(base, "in_pieces", one_tape)
    expected = gradients(build.method(config, 10, num_images=16))
    assert_equal_steps(result, expected, 1e-3)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(policy):
    half, full = gradients(simclr(4, policy)), gradients(simclr(4))
    assert_equal_steps(half[:1] + ({}, half[2]), full[:1] + ({}, full[2]), 0.05)


def test_many_views_and_row_blocks():
    settings = {"num_views": 3, "num_local_views": 2, "loss_block_rows": 10}
    plain = gradients(simclr(**settings))
    assert_equal_steps(gradients(simclr(16, **settings)), plain, 1e-4)
    pieces = gradients(simclr(4, **settings))
    assert np.isfinite(pieces[0]) and pieces[0] != plain[0]


def test_a_skipped_float16_step_still_skips():
    model = simclr(4, "mixed_float16")
    model.optimizer.initial_scale = 2.0**60
    model.optimizer.build(model.learned_variables)
    model.optimizer.dynamic_scale.assign(2.0**60)
    before = [v.numpy() for v in model.learned_variables]
    logs = model.fit(IMAGES, batch_size=16, epochs=1, verbose=0).history
    assert logs["skipped_steps"] == [1]
    for old, variable in zip(before, model.learned_variables, strict=True):
        np.testing.assert_array_equal(old, variable)


def test_moving_statistics_move_once():
    model = simclr(4)
    batch_norm = next(
        v for v in model.encoder.layers if isinstance(v, norms.SplitBatchNormalization)
    )
    view = [np.ones([16, 16, 16, 3], "float32") * np.arange(16)[:, None, None, None]]
    momentum = batch_norm.momentum
    kernel = model.encoder.layers[1].kernel
    kernel.assign(np.ones(kernel.shape) / np.prod(kernel.shape[:3]))
    model.project(*map(tf.constant, view))
    expected = (1 - momentum) * np.mean(np.arange(16))
    np.testing.assert_allclose(batch_norm.moving_mean, expected, rtol=1e-5)


def test_saved_and_loaded_with_its_settings(tmp_path):
    model = simclr(4)
    model.fit(IMAGES, batch_size=16, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.microbatch_size == 4
    assert_equal_steps(gradients(loaded), gradients(model))


@pytest.mark.parametrize(("n", "size"), [(16, 5), (16, 32)])
def test_a_size_that_does_not_divide_the_batch_is_refused(n, size):
    with pytest.raises(UserError, match="must divide the batch of every device"):
        gradients(simclr(size), IMAGES[:n])


def test_a_classifier_trains_on_whole_batches():
    head = heads.ProjectionHead(1, dim=3)
    with pytest.raises(UserError, match="whole batches"):
        Classifier(encoder(), head, Views(16), microbatch_size=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"microbatch_size": 5}, "must divide --batch_size=16, got 5. Use 4"),
        ({"microbatch_size": 32}, "must divide --batch_size=16, got 32. Use 16"),
        (
            {"microbatch_size": 2, "method": "moco", "bn_groups": 4, "queue_size": 48},
            "must be a multiple of the 8 micro-batches",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, settings, message):
    with pytest.raises(UserError, match=message):
        tiny(**settings)


def test_defaults_follow_the_micro_batches(tiny):
    config, _, _ = tiny(method="moco", queue_size=48, microbatch_size=2)
    assert config.bn_groups == 8  # 4 without micro-batches
    config, _, _ = tiny(microbatch_size=4)
    assert config.loss_block_rows == 0
