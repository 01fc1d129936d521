"""The benchmark of memory: what a line says, and the task of its worker."""

import types

from bench import harness, memory, report


def test_lines_are_relative_to_the_plain_step(monkeypatch):
    class Fake:
        def __init__(self, task, gpu, **settings):
            pieces = settings.get("microbatch_size", 0) or settings["batch"]
            factor = 0.5 if settings.get("remat") else 1.0
            self.measured = {"bytes": 1e6 * pieces * factor, "seconds": 2e-3 / factor}

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def ready(self):
            return {}

        def __call__(self):
            return {"measured": self.measured}

    monkeypatch.setattr(harness, "tensorflow_worker", Fake)
    record = memory.measure(types.SimpleNamespace(size="full"))
    rows = {row["what"]: (row["median"], row["most"]) for row in record["rows"]}
    what = "ResNet-18, width 0.25, 32 px, batch 4096 in micro-batches of 128"
    assert rows[f"{what}: peak memory"] == (1.0, 1.25)
    assert rows[f"{what}: processor time per image"] == (1.0, 1.5)
    lines = {line[:3]: line[3:] for line in record["grid"]}
    small = "ResNet-18, width 0.25, 32 px"
    assert lines[small, "plain", "2,048"][:2] == ("2048 MB", "16.00x")
    assert lines[small, "micro-batches of 128", "8,192"] == (
        *("128 MB", "1.00x", "2.00 ms", "1.00x"),
    )
    assert lines["ResNet-50, 96 px, batch 32", "--remat", "32"] == (
        *("16 MB", "0.50x", "4.00 ms", "2.00x"),
    )
    for heading in record["grid"][0]:
        assert heading in report.table(record["grid"][0], record["grid"][1:])


def test_the_task_measures_a_training_step(shallow):
    settings = {"depth": 10, "width": 0.125, "stem": "medium", "size": 16, "batch": 4}
    task, _ = memory.memory({**settings, "microbatch_size": 2})
    measured = task()["measured"]
    assert measured["bytes"] > 0 and measured["seconds"] > 0
