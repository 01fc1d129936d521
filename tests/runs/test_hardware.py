"""What result.json and the plan say about the machine."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

from tfsimclr.runs import hardware

ROOT = pathlib.Path(__file__).resolve().parents[2]
CPU_INFO = """processor\t: 0
model name\t: AMD EPYC 7763
flags\t\t: fpu sse4_1 avx2 avx512f_not

processor\t: 1
model name\t: AMD EPYC 7763
flags\t\t: fpu sse4_1 avx2 avx512f_not
"""


@pytest.mark.quick
def test_the_instruction_sets_are_those_of_the_processor(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(CPU_INFO)
    monkeypatch.setattr(hardware, "CPU_INFO", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(hardware, "uses_onednn", lambda: True)
    monkeypatch.setattr(hardware, "gpu_name", lambda: None)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    described = hardware.describe()
    assert described == {
        "gpu": None,
        "processor": "AMD EPYC 7763",
        "cores": 2,
        "instruction_sets": ["sse4_1", "avx2"],
        "onednn": True,
        "onednn_max_cpu_isa": "AVX2",
    }
    text = "AMD EPYC 7763, 2 cores, avx2, oneDNN on (at most AVX2)"
    assert hardware.summary(described) == text


@pytest.mark.quick
def test_a_system_that_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(hardware, "uses_onednn", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    described = hardware.describe()
    assert described["instruction_sets"] is None
    assert hardware.summary(described).endswith("1 core")


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="other builds of TensorFlow have no oneDNN to turn on",
)
@pytest.mark.parametrize(("value", "on"), [("0", "False"), ("1", "True")])
def test_onednn_is_what_tensorflow_uses_and_the_user_decides(value, on):
    code = (
        "import tfsimclr; from tfsimclr.runs import hardware; "
        "print(hardware.uses_onednn())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_ENABLE_ONEDNN_OPTS": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == on
