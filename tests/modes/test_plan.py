"""The plan of a run: counts, memory, speed and text; and that it writes nothing."""

import dataclasses
import types

import pytest
import tensorflow as tf

from tfsimclr import run
from tfsimclr.modes import dry_run, plan
from tfsimclr.networks import flops, resnet
from tfsimclr.settings.config import Config


def convolution(stride, padding):
    def call(images, kernel):
        return tf.nn.conv2d(images, kernel, stride, padding)

    return call


@pytest.mark.quick
@pytest.mark.parametrize(
    ("stride", "padding", "side"), [(1, "SAME", 8), (2, "SAME", 4), (1, "VALID", 6)]
)
def test_a_convolution_and_its_gradients_by_hand(stride, padding, side):
    images, kernel = tf.TensorSpec([2, 8, 8, 3]), tf.TensorSpec([3, 3, 3, 5])
    call = convolution(stride, padding)
    by_hand = 2 * side * side * 5 * (3 * 3 * 3)
    assert flops.multiply_adds(call, images, kernel) == by_hand

    def gradients(images, kernel):
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            total = tf.reduce_sum(tf.square(call(images, kernel)))
        return tape.gradient(total, [images, kernel])

    assert flops.multiply_adds(gradients, images, kernel) == 3 * by_hand


@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_products_by_hand(transposed):
    left = tf.TensorSpec([7, 2, 3] if transposed else [7, 3, 2])
    count = flops.multiply_adds(
        lambda a, b: tf.matmul(a, b, transpose_a=transposed),
        left,
        tf.TensorSpec([7, 2, 5]),
    )
    assert count == 7 * 3 * 5 * 2
    flat = tf.TensorSpec([2, 3] if transposed else [3, 2])
    count = flops.multiply_adds(
        lambda a, b: tf.matmul(a, b, transpose_a=transposed),
        flat,
        tf.TensorSpec([2, 5]),
    )
    assert count == 3 * 5 * 2


def test_operations_that_no_output_needs_are_not_counted():
    def call(a):
        tf.matmul(a, a)
        return a + 1.0

    assert flops.multiply_adds(call, tf.TensorSpec([4, 4])) == 0


@pytest.mark.quick
@pytest.mark.parametrize(("depth", "giga"), [(18, 1.81), (50, 4.09)])
def test_published_resnets(depth, giga):
    """He et al. 2015, table 1 (there 1.8 and 3.8: the stride of v1.5 costs 0.3)."""
    encoder = resnet.resnet(depth)
    image = tf.TensorSpec([1, 224, 224, 3])
    count = flops.multiply_adds(lambda x: encoder(x, training=False), image)
    assert count / 1e9 == pytest.approx(giga, abs=0.01)


def test_counts_of_a_whole_resnet_18(tiny):
    config, _, _ = tiny(backbone="resnet18", width=1, stem="small", batch_size=4)
    estimate = plan.counts(config)
    # torchvision's resnet18 without its classifier and with the small stem, then the
    # head; moving statistics and the step counter are not learned.
    encoder = 11_689_512 - 513_000 - 64 * 3 * (49 - 9)
    assert estimate["learned"] == encoder + 512 * 512 + 512 * 64
    assert estimate["encoder"] == encoder + 2 * 4800
    assert estimate["parameters"] == estimate["learned"] + 2 * 4800 + 1
    # Two views, forward and both gradients, without the gradient of the image.
    whole = 2 * 3 * (estimate["forward_macs"] + 512 * 512 + 512 * 64)
    stem = 2 * 16 * 16 * 64 * 27
    assert estimate["step_macs"] == pytest.approx(whole - stem, rel=1e-3)


def test_more_views_take_more_multiplications(tiny):
    two = plan.counts(tiny()[0])["step_macs"]
    three = plan.counts(tiny(num_views=3, loss="sogclr")[0])["step_macs"]
    # The loss and the stem, whose images have no gradient, are the same share.
    assert three / two == pytest.approx(1.5, rel=0.02)
    local = plan.counts(tiny(num_local_views=4)[0])["step_macs"]
    assert 1.3 * two < local < 2.6 * two  # a quarter of the pixels, or somewhat more


def peaks(steps, end=0):
    """Returns the peaks of a dry run: of its steps, and with the end of an epoch."""
    return {"step_peak_bytes": steps, "peak_bytes": max(steps, end)}


def fake_dry_run(monkeypatch, fixed=1e9, per_image=1e6, base=0.9e9):
    """Replaces dry runs by constant results; returns the batch sizes measured."""
    measured = []

    def answer(config, images, *limits):
        measured.append(config.batch_size)
        return {
            "batch_size": config.batch_size,
            "base_bytes": base,
            **peaks(fixed + per_image * config.batch_size),
            "start_seconds": 5.0,
            "step_seconds": 0.01 * config.batch_size,
            "first_end_seconds": 2.0,
            "epoch_end_seconds": 0.5,
        }

    monkeypatch.setattr(dry_run, "measure_in_subprocess", answer)
    return measured


def test_the_estimate_follows_from_the_dry_runs(tiny, monkeypatch):
    measured = fake_dry_run(monkeypatch)
    config, dataset, _ = tiny(epochs=3, memory_gb=10)
    estimate = plan.measure(config, dataset)
    assert measured == [2, 16]
    mapped = 80 * 16 * 16 * 3
    assert estimate["mapped_bytes"] == mapped
    assert estimate["peak_memory_bytes"] == pytest.approx(1e9 + 16e6 + mapped)
    assert estimate["images_per_second"] == pytest.approx(100)
    assert estimate["steps_per_epoch"] == 5
    assert estimate["seconds"] == pytest.approx(5 + 3 * 5 * 0.16 + 2 + 2 * 0.5)
    assert estimate["fits"]


def test_a_batch_that_does_not_fit_is_not_measured(tiny, monkeypatch):
    measured = fake_dry_run(monkeypatch, per_image=1e9)
    config, dataset, _ = tiny(memory_gb=10)
    estimate = plan.measure(config, dataset)
    assert measured == [2, 4]
    assert not estimate["fits"]
    assert estimate["largest_batch"] == 8  # 1 GB, 1 GB per image, and the loss
    assert estimate["peak_memory_bytes"] == pytest.approx(17e9, rel=0.01)
    assert "too much" in plan.describe(estimate, config)
    assert "steps of 4" in plan.describe(estimate, config)


def test_a_pessimistic_bound_is_checked_by_a_second_dry_run(tiny, monkeypatch):
    # The bound counts TensorFlow's fixed memory once per image.
    measured = fake_dry_run(monkeypatch, fixed=2e9)
    config, dataset, _ = tiny(memory_gb=4)
    assert plan.measure(config, dataset)["fits"]
    assert measured == [2, 4, 16]


def test_the_largest_batch_grows_with_the_memory(tiny):
    config, _, _ = tiny()
    runs = [
        {"batch_size": b, "base_bytes": 5e8, **peaks(6e8 + 1e6 * b)} for b in (2, 16)
    ]
    peak_of = plan.peak_estimate(config, runs)
    sizes = [plan.largest_batch(peak_of, int(x * 1e9)) for x in (0.1, 0.7, 1, 2, 64)]
    assert sizes == sorted(sizes) and sizes[0] == 0 and len(set(sizes)) == 5
    for batch, memory in zip(sizes[1:], (0.7e9, 1e9, 2e9, 64e9), strict=True):
        assert peak_of(batch) <= memory < peak_of(batch + 1)
    assert plan.largest_batch(peak_of, None) is None


def test_the_end_of_an_epoch_needs_the_same_memory_at_every_batch(tiny):
    config, _, _ = tiny()
    runs = [
        {"batch_size": b, "base_bytes": 5e8, **peaks(6e8 + 1e7 * b, end=9e8 + b)}
        for b in (2, 16)
    ]
    peak_of = plan.peak_estimate(config, runs)
    assert peak_of(8) == peak_of(16) == pytest.approx(9e8)  # end of the epoch
    assert peak_of(100) == pytest.approx(6e8 + 1e7 * 100, rel=1e-3)  # steps


def test_row_blocks_let_larger_batches_fit(tiny):
    config, _, _ = tiny()
    blocks = dataclasses.replace(config, loss_block_rows=32)
    one = [{"batch_size": 16, "base_bytes": 0, **peaks(16e5)}]
    sizes = [
        plan.largest_batch(plan.peak_estimate(c, one), int(8e9))
        for c in (config, blocks)
    ]
    assert sizes[0] < sizes[1]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optimizer": "lars"}, {"none": 0.3, "linear": 0.15, "sqrt": 0.8485}),
        ({"learning_rate": 1.0}, {"none": 1.0, "linear": 0.5, "sqrt": 11.31}),
        ({}, {"none": 3e-4, "linear": 3e-4, "sqrt": 3e-4}),
    ],
)
def test_learning_rates_under_each_rule(settings, expected):
    config = Config(batch_size=128, **settings).with_optimizer_defaults()
    rates = {rule: rate for rule, (_, rate) in plan.learning_rates(config).items()}
    assert rates == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("batch_size", [2, 8, 20])
def test_another_batch_keeps_the_settings_of_a_method_valid(tiny, batch_size):
    config, _, _ = tiny(method="moco", queue_size=32)
    smaller = plan.with_batch(config, batch_size)
    assert smaller.queue_size % batch_size == 0 and smaller.queue_size > 0
    assert batch_size % smaller.bn_groups == 0
    config, _, _ = tiny(loss_block_rows=8)
    smaller = plan.with_batch(config, batch_size)
    assert 2 * batch_size % smaller.loss_block_rows == 0


ITEMS = (
    *("parameters", "FLOPs per image", "multiply-adds", "peak memory", "images/s"),
    *("hours: 2 epochs of 5 steps of 16", "none 0.3", "linear 0.01875", "sqrt 0.3"),
    *("(this run)", "largest batch", "by --memory_gb"),
)


@pytest.mark.parametrize("method", ["simclr", "moco", "byol"])
def test_a_plan_prints_every_item_and_writes_nothing(
    method, shallow, tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "STEPS", 2)
    # In a process of its own, which takes seconds to start, for one method.
    real, results = dry_run.measure_in_subprocess, []
    if method != "simclr":
        real = lambda config, images, *_: dry_run.measure_steps(config, images, 2)  # noqa: E731

    def once(config, images, *limits):
        """Measures the smallest batch only; larger ones are a multiple of it."""
        if not results:
            results.append(real(config, images))
        factor = config.batch_size / results[0]["batch_size"]
        peak = results[0]["peak_bytes"] + 1e6 * factor
        return {**results[0], "batch_size": config.batch_size, **peaks(peak)}

    monkeypatch.setattr(dry_run, "measure_in_subprocess", once)
    config, _, folder = tiny(method=method, optimizer="lars", memory_gb=20)
    before = sorted(tmp_path.iterdir())
    run.run(dataclasses.replace(config, mode="plan"))
    text = capsys.readouterr().out
    assert [item for item in ITEMS if item not in text] == []
    assert not folder.exists()
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_measures_real_steps(tiny):
    config, dataset, _ = tiny()
    estimate = dry_run.measure_steps(config, dataset.pretrain.images)
    assert estimate["batch_size"] == 16
    assert (
        0
        < estimate["base_bytes"]
        <= estimate["step_peak_bytes"]
        <= estimate["peak_bytes"]
    )
    # The start includes the compilation.
    assert 0 < estimate["step_seconds"] < estimate["start_seconds"]
    assert estimate["epoch_end_seconds"] > 0
    assert estimate["first_end_seconds"] > 0


def test_a_dry_run_that_is_killed_had_not_enough_memory(tiny, monkeypatch):
    config, dataset, _ = tiny()
    images = dataset.pretrain.images

    def ended(code, words):
        done = types.SimpleNamespace(returncode=code, stderr=words, stdout=b"")
        monkeypatch.setattr(dry_run.subprocess, "run", lambda *a, **k: done)
        return dry_run.measure_in_subprocess(config, images)

    with pytest.raises(MemoryError, match="batch 16"):
        ended(-9, b"")
    with pytest.raises(MemoryError, match="batch 16"):
        ended(1, b"Traceback\ntensorflow...ResourceExhaustedError: OOM")
    with pytest.raises(RuntimeError, match="at batch 16 failed.*no such thing"):
        ended(1, b"no such thing")


def test_a_batch_that_runs_out_of_memory_does_not_fit(tiny, monkeypatch):
    measured = fake_dry_run(monkeypatch)
    real = dry_run.measure_in_subprocess

    def answer(config, images, *limits):
        result = real(config, images)
        if config.batch_size == 16:
            raise MemoryError("batch 16")
        return result

    monkeypatch.setattr(dry_run, "measure_in_subprocess", answer)
    config, dataset, _ = tiny(memory_gb=10)
    estimate = plan.measure(config, dataset)
    assert measured == [2, 16] and not estimate["fits"]
    assert estimate["tried_batch_size"] == 2


def test_the_memory_of_this_machine_is_found():
    assert dry_run.device_memory() > 1e8


def test_the_memory_of_a_gpu_comes_from_nvidia_smi(monkeypatch):
    monkeypatch.setattr(dry_run, "has_gpu", lambda: True)
    answer = types.SimpleNamespace(stdout="81559\n81559\n")
    monkeypatch.setattr(dry_run.subprocess, "run", lambda *a, **k: answer)
    assert dry_run.device_memory() == 81559 * 2**20

    def missing(*arguments, **more):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(dry_run.subprocess, "run", missing)
    assert dry_run.device_memory() is None


def test_memory_gb_does_not_tie_a_run_folder():
    assert "memory_gb" not in Config(memory_gb=8.0).pretraining()
    with pytest.raises(ValueError, match="--memory_gb must be at least 0"):
        Config(memory_gb=-1.0)
