"""Each benchmark with fake workers: what is compared with what, and what is skipped."""

import types

import numpy as np
import pytest
from bench import gpu, growth, harness, nt_xent, onednn, plan, profile, report, step

TINY = types.SimpleNamespace(size="tiny", pairs=2, torch_python="")
# Name of a fake worker -> seconds of its step.
SECONDS = {
    "ours float32": 1.0,
    "ours mixed_bfloat16": 0.5,
    "torch float32": 3.0,
    "torch mixed_bfloat16": 2.0,
}


def fake_workers(monkeypatch, parameters=None):
    """Replaces workers by objects that answer at once; returns the started ones."""
    started: list = []

    class Fake:
        def __init__(self, name):
            started.append(name)
            self.name = name

        def ready(self):
            return {"parameters": (parameters or {}).get(self.name, 5)}

        def __call__(self):
            return {"wall": SECONDS.get(self.name, 0.25), "cpu": 1.0}

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(
        harness,
        "tensorflow_worker",
        lambda task, precision="float32", **settings: Fake(f"ours {precision}"),
    )
    monkeypatch.setattr(
        step,
        "torch_worker",
        lambda python, precision, **settings: Fake(f"torch {precision}"),
    )
    monkeypatch.setattr(onednn, "paragraph", lambda case, gain: f"gain {gain}")
    return started


def test_without_torch_its_rows_are_left_out(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    started = fake_workers(monkeypatch)
    options = types.SimpleNamespace(size="tiny", pairs=2, torch_python=str(python))
    result = step.measure(options)
    assert result["skipped"] == ["PyTorch is not installed: see --torch_python."]
    assert not any("PyTorch" in row["against"] for row in result["rows"])
    assert not any(name.startswith("torch") for name in started)
    assert [x["median"] for x in result["rows"] if x["least"] == 1.3] == [2.0]
    assert "gain 2.0" in result["paragraphs"]


def test_with_torch_every_comparison_is_there(monkeypatch):
    fake_workers(monkeypatch)
    monkeypatch.setattr(step, "torch_version", lambda python: "9.9")
    result = step.measure(TINY)
    assert result["versions"] == {"torch": "9.9"} and not result["skipped"]
    of_network = result["rows"][: -len(CHOICES)]
    assert [(row["against"], row["median"]) for row in of_network] == [
        ("PyTorch, float32", 3.0),  # ours in float32
        ("ours in float32", 2.0),  # ours in bfloat16
        ("PyTorch, bfloat16", 4.0),  # ours in bfloat16
        ("PyTorch, float32", 1.5),  # PyTorch in bfloat16
    ]
    of_choices = result["rows"][-len(CHOICES) :]
    assert [row["against"] for row in of_choices] == CHOICES
    assert "gain 2.0" in result["paragraphs"]  # of ours, not of PyTorch's


CHOICES = ["the plain graph", "float32"] + 2 * ["Keras's own batch norm, not fused"]


def test_networks_of_different_size_are_not_compared(monkeypatch):
    fake_workers(monkeypatch, {"torch float32": 6})
    case = step.CASES["tiny"][0]
    with pytest.raises(ValueError, match="not the same"):
        step.against_torch(case, "python", 2)


def test_a_missing_python_has_no_torch():
    assert step.torch_version("/no/such/python") is None


def test_without_a_gpu_it_says_so_and_skips(monkeypatch):
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    result = gpu.measure(TINY)
    assert result["rows"] == []
    assert "No GPU here" in result["skipped"][0] and "tf32" in result["skipped"][0]


def test_with_a_gpu_every_precision_is_measured_with_xla_and_without(monkeypatch):
    fake_workers(monkeypatch)
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    whats = [row["what"] for row in gpu.measure(TINY)["rows"]]
    assert len(whats) == 2 * 4 - 1
    for name in ("float32, XLA", "tf32:", "bfloat16, XLA", "float16:"):
        assert any(name in what for what in whats)


VERBOSE = """
onednn_verbose,v1,info,oneDNN v3.7.3
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:a,forward_training,m,,,p,90
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,m,,,p,90
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:b,backward_data,m,,,p,90
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:a,forward_training,m,,,p,2.5
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,m,,,p,0.5
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:b,backward_data,m,,,p,4
"""


def test_the_output_of_onednn_is_summed_for_the_second_step():
    assert onednn.parse(VERBOSE) == {
        "forward": (2.5, {"jit:a"}),
        "reorder": (0.5, {"jit:uni"}),
        "gradient of the maps": (4.0, {"jit:b"}),
    }
    assert onednn.parse("") == {}


def test_the_paragraph_on_bfloat16_has_the_measured_gains(monkeypatch):
    times = {"float32": 8.0, "mixed_bfloat16": 4.0}
    monkeypatch.setattr(
        onednn,
        "kernels",
        lambda case, precision: {"forward": (times[precision], {"jit_bf16:x"})},
    )
    text = onednn.paragraph({}, 1.5)
    assert "forward 2.00x" in text and "The whole step gains 1.50x" in text
    monkeypatch.setattr(onednn, "kernels", lambda case, precision: {})
    assert "printed nothing" in onednn.paragraph({}, 1.5)


def test_growth_ignores_the_constant_time_of_an_epoch(monkeypatch):
    class Fake:
        def __init__(self, work, images, **settings):
            self.images = images

        def ready(self):
            return {}

        def __call__(self):
            # Five seconds for the end of an epoch, one second per image.
            memory = {"RssAnon": 1e9, "RssFile": 1e6 * self.images}
            return {"wall": 5.0 + self.images, **memory}

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(harness, "tensorflow_worker", Fake)
    time, memory = growth.measure(TINY)["rows"]
    assert time["median"] == pytest.approx(1.0)
    assert memory["median"] == 1.0
    assert report.meets_target(time) and report.meets_target(memory)


def test_a_plan_is_compared_with_the_run(monkeypatch):
    class Fake:
        def __init__(self, work, gpu, real, flags):
            factor = 1.0 if real else 1.2
            self.measured = {
                "peak_memory_bytes": 1e9 * factor,
                "images_per_second": 100 * factor,
                "seconds": 60 * factor,
                "largest_batch": 5000,
            }

        def __enter__(self):
            return self

        def ready(self):
            return {}

        def __call__(self):
            return {"wall": 1.0, "measured": self.measured}

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(harness, "tensorflow_worker", Fake)
    result = plan.measure(TINY)
    assert [row["median"] for row in result["rows"]] == pytest.approx([1.2] * 3)
    assert [row["rounds"] for row in result["rows"]] == [1, 2, 2]
    assert "beyond the data set" in result["skipped"][0]


def test_operations_are_sorted_into_parts():
    names = {
        "sim_clr_1/encoder_1/stem_conv_1/convolution": "encoder",
        "gradient_tape/sim_clr_1/encoder_1/stage1_block1_1_relu_1/Relu": "encoder",
        "gradient_tape/sim_clr_1/projection_head_1/z_1/MatMul": "head",
        "sgd/AssignSubVariableOp": "optimizer",
        "BatchMatMulV2_1": profile.OTHER,
    }
    assert {name: profile.part_of(name) for name in names} == names


def test_the_difference_of_gradients_is_relative(tmp_path):
    for name, value in (("a", [1.0, -4.0]), ("b", [1.0, -4.2])):
        np.save(tmp_path / f"{name}.npy", value)
    difference = nt_xent.relative_difference(tmp_path / "a.npy", tmp_path / "b.npy")
    assert difference == pytest.approx(0.05)
