"""The benchmarks' harness: in turn, in processes, into a report; what is skipped."""

import json
import pathlib
import sys
import textwrap
import types

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import bench  # noqa: E402  (after the path)
import bench_gpu  # noqa: E402
import bench_loss  # noqa: E402
import bench_onednn  # noqa: E402
import bench_plan  # noqa: E402
import bench_profile  # noqa: E402
import bench_report  # noqa: E402
import bench_runs  # noqa: E402
import bench_step  # noqa: E402
import bench_tools  # noqa: E402

TINY = types.SimpleNamespace(size="tiny", pairs=2, torch_python="")


def worker(name, seconds, said):
    """Returns work that notes its name and takes the next of some made times."""
    times = iter(seconds)

    def work():
        said.append(name)
        return {"wall": next(times), "cpu": 1.0}

    return work


def test_works_are_measured_in_turn_and_the_warm_round_does_not_count():
    said: list = []
    works = {"a": worker("a", [9, 2, 4], said), "b": worker("b", [9, 1, 1], said)}
    taken = bench_tools.rounds(works, 2)
    assert said == ["a", "b"] * 3
    assert bench_tools.ratios(taken["a"], taken["b"]) == [2, 4]
    assert bench_tools.ratios(taken["a"], taken["b"], "cpu") == [1, 1]


def test_a_row_has_the_median_and_the_range():
    row = bench_tools.row("x", "y", [3.0, 1.0, 10.0], least=2.0)
    assert (row["low"], row["median"], row["high"], row["rounds"]) == (1, 3, 10, 3)
    assert bench_report.met(row) is True
    assert bench_report.met(bench_tools.row("x", "y", [1.0], least=2.0)) is False
    assert bench_report.met(bench_tools.row("x", "y", [3.0], 1.0, 2.0)) is False
    assert bench_report.met(bench_tools.row("x", "y", [3.0])) is None


def program(tmp_path, body):
    path = tmp_path / "child.py"
    head = f"import sys\nsys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
    path.write_text(head + "import bench_tools, os, time\n" + textwrap.dedent(body))
    return [sys.executable, "-S", str(path)]


def test_a_child_works_when_told_whatever_it_prints(tmp_path):
    command = program(
        tmp_path,
        """
        def prepare():
            os.system("echo noise of a library")
            count = [0]
            def work():
                print("more noise")
                count[0] += 1
                time.sleep(0.02)
                return {"count": count[0], "seen": os.environ["SEEN"]}
            return work, {"parameters": 7}
        bench_tools.serve(prepare)
        """,
    )
    with bench_tools.Child(command, {"SEEN": "yes"}) as child:
        assert child.ready() == {"parameters": 7}
        first, second = child(), child()
    assert (first["count"], second["count"], first["seen"]) == (1, 2, "yes")
    assert first["wall"] >= 0.02 > first["cpu"]


def test_work_may_say_itself_what_it_took():
    assert bench_tools.timed(lambda: {"wall": 5.0})["wall"] == 5.0


def test_a_child_that_ends_is_an_error_with_its_last_words(tmp_path):
    command = program(tmp_path, "raise SystemExit('no memory left')")
    with bench_tools.Child(command) as child:
        with pytest.raises(RuntimeError, match="ended with 1: no memory left"):
            child.ready()


def result(**more):
    rows = [
        bench_tools.row("ours", "theirs", [1.1, 1.3, 1.2], least=1.0),
        bench_tools.row("waste", "all", [0.3], most=0.08, form="{:+.1%}"),
    ]
    return {"rows": rows, "paragraphs": ["Because."], **more}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Returns a function: arguments -> exit code, with two made benchmarks.

    `fake.answers` says what each gives; `fake.out` is the folder.
    """
    answers = {"one": result(), "two": result(skipped=["no such device."])}
    module = types.ModuleType("bench_made")
    for name in answers:

        def measure(options, name=name):
            if isinstance(answers[name], Exception):
                raise answers[name]
            return dict(answers[name])

        setattr(module, name, measure)
    monkeypatch.setitem(sys.modules, "bench_made", module)
    made = {name: ("bench_made", name) for name in answers}
    monkeypatch.setattr(bench, "BENCHMARKS", made)

    def call(*arguments):
        try:
            bench.main([*arguments, f"--out={tmp_path / 'bench'}"])
        except SystemExit as stop:
            return stop.code
        return 0

    call.answers, call.out = answers, tmp_path / "bench"
    call.report = lambda: (tmp_path / "bench.md").read_text()
    return call


def test_one_benchmark_is_measured_again_and_the_others_stay(fake):
    assert fake("all") == 0
    before = (fake.out / "two.json").read_bytes()
    fake.answers["one"]["paragraphs"] = ["Because of something else."]
    assert fake("one", "--pairs=7") == 0
    assert (fake.out / "two.json").read_bytes() == before
    found = json.loads((fake.out / "one.json").read_text())
    assert found["command"] == "python scripts/bench.py one --pairs=7"
    assert found["machine"]["cores"] >= 1 and found["machine"]["cpu"]
    assert {"python", "numpy"} <= set(found["versions"])
    assert found["commit"] is None or len(found["commit"]) >= 7
    report = fake.report()
    assert "Because of something else." in report and "--pairs=7" in report
    assert "Skipped: no such device." in report


def test_the_report_has_what_was_wanted_and_what_came(fake):
    assert fake("one") == 0
    report = fake.report()
    assert "| ours | theirs | >= 1.00x | 1.20x | 1.10x to 1.30x | 3 |" in report
    line = "| waste | all | <= +8.0% | +30.0% (short of it) |  | 1 |"
    assert line in report
    assert "Not measured yet: two." in report
    found = json.loads((fake.out / "one.json").read_text())
    for part in (found["date"], found["machine"]["cpu"], found["versions"]["numpy"]):
        assert part in report


def test_a_benchmark_that_fails_does_not_cost_the_others(fake):
    fake.answers["one"] = RuntimeError("the child\nended")
    code = fake("all")
    assert code == "bench: one: the child ended"
    assert "## two" in fake.report() and "Not measured yet: one." in fake.report()


def test_no_path_of_this_machine_gets_into_the_report(fake):
    assert fake("one", "--torch_python=/somewhere/bin/python") == 0
    assert "--torch_python=..." in fake.report()
    assert "/somewhere" not in fake.report() + (fake.out / "one.json").read_text()


def test_tiny_sizes_are_not_taken_for_results(fake):
    assert fake("one", "--size=tiny") == 0
    assert "Sizes: tiny." in fake.report()


@pytest.mark.parametrize("arguments", [["three"], ["one", "--pairs=0"]])
def test_bad_arguments_are_refused(fake, arguments, capsys):
    assert fake(*arguments) == 2
    assert not fake.out.exists()


def test_every_benchmark_of_the_list_exists():
    for module, function in bench.BENCHMARKS.values():
        assert callable(getattr(__import__(module), function))


def fake_children(monkeypatch, parameters=None):
    """Replaces children by objects that answer at once; returns what was started."""
    started: list = []

    class Fake:
        def __init__(self, name):
            started.append(name)
            self.name = name

        def ready(self):
            return {"parameters": (parameters or {}).get(self.name, 5)}

        def __call__(self):
            return {"wall": 1.0 if "float32" in self.name else 0.5, "cpu": 1.0}

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(
        bench_tools,
        "tensorflow_child",
        lambda work, precision="float32", **x: Fake(f"ours {precision}"),
    )
    monkeypatch.setattr(
        bench_step, "torch_child", lambda python, precision, **x: Fake(f"t {precision}")
    )
    monkeypatch.setattr(bench_onednn, "paragraph", lambda case, gain: f"gain {gain}")
    return started


def test_without_torch_its_rows_are_left_out(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    started = fake_children(monkeypatch)
    options = types.SimpleNamespace(size="tiny", pairs=2, torch_python=str(python))
    found = bench_step.measure(options)
    assert found["skipped"] == ["PyTorch is not installed: see --torch_python."]
    assert not any("PyTorch" in row["against"] for row in found["rows"])
    assert not any(name.startswith("t ") for name in started)
    assert [x["median"] for x in found["rows"] if x["least"] == 1.3] == [2.0]
    assert "gain 2.0" in found["paragraphs"]


def test_with_torch_every_comparison_is_there(monkeypatch):
    fake_children(monkeypatch)
    monkeypatch.setattr(bench_step, "torch_version", lambda python: "9.9")
    found = bench_step.measure(TINY)
    assert found["versions"] == {"torch": "9.9"} and not found["skipped"]
    wanted = {x["against"]: x["median"] for x in found["rows"]}
    assert wanted["PyTorch, float32"] == 2.0 or wanted["PyTorch, float32"] == 1.0
    assert "gain 2.0" in found["paragraphs"]  # of ours, not of PyTorch's


def test_networks_of_different_size_are_not_compared(monkeypatch):
    fake_children(monkeypatch, {"t float32": 6})
    case = bench_step.CASES["tiny"][0]
    with pytest.raises(ValueError, match="not the same"):
        bench_step.against_torch(case, "python", 2)


def test_a_python_that_is_not_there_has_no_torch():
    assert bench_step.torch_version("/no/such/python") is None


def test_without_a_gpu_it_says_so_and_skips(monkeypatch):
    monkeypatch.setattr(bench_gpu, "has_gpu", lambda: False)
    found = bench_gpu.measure(TINY)
    assert found["rows"] == []
    assert "No GPU here" in found["skipped"][0] and "tf32" in found["skipped"][0]


def test_with_a_gpu_every_precision_is_measured_with_xla_and_without(monkeypatch):
    fake_children(monkeypatch)
    monkeypatch.setattr(bench_gpu, "has_gpu", lambda: True)
    whats = [row["what"] for row in bench_gpu.measure(TINY)["rows"]]
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


def test_what_onednn_says_is_added_up_for_the_second_step():
    assert bench_onednn.parsed(VERBOSE) == {
        "forward": (2.5, {"jit:a"}),
        "reorder": (0.5, {"jit:uni"}),
        "gradient of the maps": (4.0, {"jit:b"}),
    }
    assert bench_onednn.parsed("") == {}


def test_the_paragraph_on_bfloat16_has_the_measured_gains(monkeypatch):
    times = {"float32": 8.0, "mixed_bfloat16": 4.0}
    monkeypatch.setattr(
        bench_onednn,
        "kernels",
        lambda case, precision: {"forward": (times[precision], {"jit_bf16:x"})},
    )
    text = bench_onednn.paragraph({}, 1.5)
    assert "forward 2.00x" in text and "The whole step gains 1.50x" in text
    monkeypatch.setattr(bench_onednn, "kernels", lambda case, precision: {})
    assert "said nothing" in bench_onednn.paragraph({}, 1.5)


def test_growth_compares_images_with_images(monkeypatch):
    class Fake:
        def __init__(self, work, images, **settings):
            self.images = images

        def ready(self):
            return {}

        def __call__(self):
            # Five seconds an epoch's end, a second an image.
            memory = {"RssAnon": 1e9, "RssFile": 1e6 * self.images}
            return {"wall": 5.0 + self.images, **memory}

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(bench_tools, "tensorflow_child", Fake)
    time, memory = bench_runs.growth(TINY)["rows"]
    assert time["median"] == pytest.approx(1.0)
    assert memory["median"] == 1.0
    assert bench_report.met(time) and bench_report.met(memory)


def test_a_plan_is_held_against_reality(monkeypatch):
    class Fake:
        def __init__(self, work, gpu, real, flags):
            factor = 1.0 if real else 1.2
            self.found = {
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
            return {"wall": 1.0, "found": self.found}

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(bench_tools, "tensorflow_child", Fake)
    found = bench_plan.measure(TINY)
    assert [row["median"] for row in found["rows"]] == pytest.approx([1.2] * 3)
    assert [row["rounds"] for row in found["rows"]] == [1, 2, 2]
    assert "beyond the data set" in found["skipped"][0]


def test_operations_are_sorted_into_parts():
    names = {
        "sim_clr_1/encoder_1/stem_conv_1/convolution": "encoder",
        "gradient_tape/sim_clr_1/encoder_1/stage1_block1_1_relu_1/Relu": "encoder",
        "gradient_tape/sim_clr_1/projection_head_1/z_1/MatMul": "head",
        "sgd/AssignSubVariableOp": "optimizer",
        "BatchMatMulV2_1": bench_profile.REST,
    }
    assert {name: bench_profile.part_of(name) for name in names} == names


def test_the_difference_of_gradients_is_relative(tmp_path):
    for name, value in (("a", [1.0, -4.0]), ("b", [1.0, -4.2])):
        np.save(tmp_path / f"{name}.npy", value)
    found = bench_loss.relative_difference(tmp_path / "a.npy", tmp_path / "b.npy")
    assert found == pytest.approx(0.05)


def test_a_real_step_in_a_child():
    case = bench_step.CASES["tiny"][0]
    with bench_tools.tensorflow_child("step", **case) as child:
        said = child.ready()
        taken = bench_tools.rounds({"step": child}, 2)["step"]
    assert said["parameters"] > 10_000
    assert all(took["wall"] > 0 and took["cpu"] > 0 for took in taken)
