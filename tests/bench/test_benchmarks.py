"""Each benchmark with fake workers: what is compared with what, and what is skipped."""

import types

import numpy as np
import pytest
import tensorflow as tf
from bench import (
    command_line,
    gpu,
    growth,
    harness,
    nt_xent,
    onednn,
    plan,
    processor,
    profile,
    report,
    step,
)

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


def test_without_a_gpu_it_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "gpu_name", lambda: None)
    with pytest.raises(SystemExit) as stop:
        command_line.main(["gpu", f"--out={tmp_path / 'bench'}"])
    message = stop.value.code
    assert message.startswith("bench: gpu: TensorFlow sees no GPU")
    assert "\n" not in message and "--size=tiny" in message
    assert not (tmp_path / "bench").exists()  # an earlier record is not overwritten


def test_among_all_benchmarks_it_is_skipped_without_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "gpu_name", lambda: None)
    options = types.SimpleNamespace(**{**vars(TINY), "size": "full"}, benchmark="all")
    result = gpu.measure(options)
    assert result["rows"] == []
    assert "No GPU here" in result["skipped"][0] and "tf32" in result["skipped"][0]


def test_the_table_of_a_gpu_has_every_precision_with_xla_and_without(monkeypatch):
    """Forms: 2 s a step without XLA and 1 s with it; float16 with XLA fails."""

    class Fake:
        def __init__(self, task, gpu, case, forms, rounds, extent):
            assert gpu and rounds == 2
            self.batch, self.forms = case["batch"], iter(forms)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def ready(self):
            return {}

        def __call__(self):
            form = next(self.forms)
            if form == ("float16", True):
                return {"error": "ResourceExhaustedError"}
            seconds = 1.0 if form[1] else 2.0
            return {
                "batch": self.batch,
                "macs": 50.0,
                "peak_flops": 1000.0,
                "bytes": 3e9,
                "seconds": {
                    "store": [seconds] * 2,
                    "resident": [seconds / 1.25] * 2,
                    "every_step": [seconds * 1.1] * 2,
                },
            }

    monkeypatch.setattr(gpu, "gpu_name", lambda: "Fast Card")
    monkeypatch.setattr(harness, "tensorflow_worker", Fake)
    monkeypatch.setattr(step, "torch_version", lambda python: "9.9")
    monkeypatch.setattr(gpu, "measure_torch", lambda *arguments: {"float32": 8.0})
    result = gpu.measure(TINY)
    assert result["grid"][0] == gpu.HEADINGS
    lines = {tuple(line[1:3]): line[3:] for line in result["grid"][1:]}
    assert len(lines) == 2 * 4
    both = ["20%", "3.00 GB", "+25.0%", "+10.0%"]
    assert lines["float32", "off"] == ["2", "1.00x", *both, "8", "0.25x"]
    both[0] = "40%"
    assert lines["tf32", "on"] == ["4", "2.00x", *both, "", ""]
    assert lines["float16", "on"] == ["ResourceExhaustedError", *[""] * 7]
    assert "Fast Card" in result["paragraphs"][0]


@pytest.fixture
def restored_tf32():
    yield
    tf.config.experimental.enable_tensor_float_32_execution(True)


def test_the_steps_of_the_gpu_table_run_on_a_processor(restored_tf32, shallow):
    case, forms = gpu.CASES["tiny"][0], [("float32", False), ("float16", True)]
    settings = {"case": case, "forms": forms, "rounds": 1, "extent": gpu.EXTENT["tiny"]}
    task, _ = gpu.gpu_steps(settings)
    for form, reported in zip(forms, (task(), task()), strict=True):
        assert reported["batch"] == 4, form
        assert set(reported["seconds"]) == {"store", "resident", "every_step"}
        assert all(s > 0 for values in reported["seconds"].values() for s in values)
        assert reported["peak_flops"] > 0 and reported["bytes"] > 1e6
    with pytest.raises(StopIteration):
        task()


def test_the_step_is_compared_by_instruction_set(monkeypatch):
    """Ours takes 1 s with oneDNN, 4 s without; PyTorch 2 s."""
    started = []

    class Fake:
        def __init__(self, seconds, environment):
            started.append(environment.get("ONEDNN_MAX_CPU_ISA"))
            self.seconds = seconds

        def ready(self):
            return {"parameters": 5}

        def __call__(self):
            return {"wall": self.seconds}

        def __exit__(self, *error):
            pass

    def ours(task, environment, **settings):
        seconds = 1.0 if environment["TF_ENABLE_ONEDNN_OPTS"] == "1" else 4.0
        return Fake(seconds, environment)

    def torch(python, precision, environment, **settings):
        return Fake(2.0, environment)

    monkeypatch.setattr(harness, "tensorflow_worker", ours)
    monkeypatch.setattr(step, "torch_worker", torch)
    monkeypatch.setattr(step, "torch_version", lambda python: "9.9")
    monkeypatch.setattr(harness, "machine", lambda: {"fast_types": ["avx512f"]})
    result = processor.measure(TINY)
    assert [(row["median"], row["least"]) for row in result["rows"]] == 2 * [
        (4.0, None),
        (2.0, 1.3),
    ]
    assert started == [None] * 3 + ["AVX2"] * 3
    seconds = ["1.000 s", "4.000 s", "2.000 s"]
    assert [line[1:] for line in result["grid"][1:]] == [
        ["all", *seconds],
        ["AVX2", *seconds],
    ]
    monkeypatch.setattr(harness, "machine", lambda: {"fast_types": ["avx2"]})
    assert len(processor.measure(TINY)["rows"]) == 2


VERBOSE = """
onednn_verbose,v1,info,oneDNN v3.7.3
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:a,forward_training,m,,,p,90
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,m,,,p,90
onednn_verbose,v1,primitive,exec,cpu,convolution,brg:amx,forward_training,m,,,p,90
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:b,backward_data,m,,,p,90
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:a,forward_training,f32,,,p,2.5
onednn_verbose,v1,primitive,exec,cpu,convolution,brg:amx,forward_training,bf16,,,p,1.5
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,m,,,p,0.5
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:b,backward_data,m,,,p,4
"""


def test_the_output_of_onednn_is_summed_for_the_second_step():
    assert onednn.parse(VERBOSE) == {
        "forward": (4.0, {"jit:a", "brg:amx"}, {"brg:amx"}),
        "reorder": (0.5, {"jit:uni"}, set()),
        "gradient of the maps": (4.0, {"jit:b"}, set()),
    }
    assert onednn.parse("") == {}


def test_the_paragraph_on_bfloat16_has_the_measured_gains(monkeypatch):
    times = {"float32": 8.0, "mixed_bfloat16": 4.0}
    monkeypatch.setattr(
        onednn,
        "kernels",
        lambda case, precision: {
            "forward": onednn.Kind(times[precision], {"brg:amx", "jit"}, {"brg:amx"})
        },
    )
    text = onednn.paragraph({}, 1.5)
    assert "1 of its 2 kernels read or write bfloat16" in text
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
