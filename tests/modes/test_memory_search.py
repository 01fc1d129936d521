"""The search for the fastest step that fits into a memory."""

import pytest

from tfsimclr.modes import dry_run, memory_search
from tfsimclr.runs import hardware


@pytest.fixture
def bfloat16(monkeypatch):
    machine = {**hardware.describe(), "instruction_sets": ["avx512_bf16"]}
    monkeypatch.setattr(hardware, "describe", lambda: machine)


def fake(monkeypatch, bytes_of, seconds_of):
    """Replaces the dry runs by two functions of the config; returns what was tried."""
    tried = []

    def answer(config, images, timed_steps, memory_limit):
        tried.append((config.precision, config.microbatch_size, config.remat))
        if bytes_of(config) > memory_limit:
            raise MemoryError
        return {
            "batch_size": config.batch_size,
            "peak_bytes": bytes_of(config),
            "step_seconds": seconds_of(config),
        }

    monkeypatch.setattr(dry_run, "measure_in_subprocess", answer)
    return tried


def peak(config):
    rows = config.microbatch_size or config.batch_size
    return 1e9 + 1e7 * rows * (0.5 if config.remat else 1)


def seconds(config):
    slow = config.microbatch_size or config.remat
    return (1.5 if slow else 1.0) * (
        0.5 if config.precision == "mixed_bfloat16" else 1.0
    )


def test_the_fastest_combination_that_fits(tiny, monkeypatch, bfloat16):
    config, dataset, _ = tiny(batch_size=64)
    tried = fake(monkeypatch, peak, seconds)
    results = memory_search.search(config, dataset.pretrain.images, int(1.33e9))
    # Not the plain step (1.64 GB); of the micro-batches the largest that fits.
    assert tried == [
        (precision, *step)
        for precision in ("float32", "mixed_bfloat16")
        for step in ((0, False), (0, True), (32, False))
    ]
    best = results[0]
    assert best.config.precision == "mixed_bfloat16"
    assert best.images_per_second == pytest.approx(64 / 0.75)
    text = memory_search.describe(results, int(1.33e9))
    assert "Batch 64 in 1.33 GB:" in text and "too much" in text
    line = text.splitlines()[-1]
    assert line.startswith("The fastest that fits: python -m tfsimclr.run --")
    assert "--precision=mixed_bfloat16" in line and "--mode" not in line
    assert "--remat=true" in line and "--memory_gb" not in line


def test_smaller_pieces_until_one_fits(tiny, monkeypatch):
    config, dataset, _ = tiny(batch_size=64)
    fake(monkeypatch, peak, seconds)
    results = memory_search.search(config, dataset.pretrain.images, int(1.2e9))
    assert results[0].config.microbatch_size == 16
    results = memory_search.search(config, dataset.pretrain.images, int(1e9))
    assert results[0].peak_bytes is None
    text = memory_search.describe(results, int(1e9))
    assert text.splitlines()[-1].startswith("Nothing that was tried fits.")


def test_large_batches_have_row_blocks(tiny, monkeypatch):
    config, dataset, _ = tiny(batch_size=64)
    object.__setattr__(config, "batch_size", 4096)
    fake(monkeypatch, peak, seconds)
    results = memory_search.search(config, dataset.pretrain.images, int(3e9))
    pieces = [r for r in results if r.config.microbatch_size and r.peak_bytes]
    assert pieces[0].config.loss_block_rows == 256
    # The plain step does not fit: it is tried with row blocks too.
    blocks = {r.config.loss_block_rows for r in results if not r.config.microbatch_size}
    assert blocks == {0, 256}
    assert "--loss_block_rows=256" in memory_search.describe(results, int(3e9))


def test_the_step_that_the_plan_measured_is_not_measured_again(tiny, monkeypatch):
    config, dataset, _ = tiny(batch_size=64)
    tried = fake(monkeypatch, peak, seconds)
    run = {"batch_size": 64, "peak_bytes": 1e9, "step_seconds": 0.25}
    results = memory_search.search(
        config, dataset.pretrain.images, int(2e9), measured=run
    )
    assert ("float32", 0, False) not in tried and ("float32", 0, True) in tried
    plain = next(r for r in results if r.config == config)
    assert plain.images_per_second == 256


def test_the_groups_of_moco_follow_the_micro_batches(tiny, monkeypatch):
    config, dataset, _ = tiny(batch_size=64, method="moco", queue_size=64, bn_groups=2)
    fake(monkeypatch, peak, seconds)
    results = memory_search.search(config, dataset.pretrain.images, int(1.05e9))
    groups = {r.config.microbatch_size: r.config.bn_groups for r in results}
    assert groups == {0: 2, 32: 2, 16: 8}
    results = memory_search.search(config, dataset.pretrain.images, int(1.2e9))
    text = memory_search.describe(results, int(1.2e9))
    assert "--microbatch_size=16" in text.splitlines()[-1]


def test_a_dry_run_ends_at_its_memory_limit(tiny):
    config, dataset, _ = tiny()
    with pytest.raises(MemoryError):
        dry_run.measure_in_subprocess(config, dataset.pretrain.images, 1, int(1e7))
