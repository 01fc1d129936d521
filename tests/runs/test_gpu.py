"""GPUs that TensorFlow does not use; the cards are imitated."""

import subprocess
import types

import pytest
import tensorflow as tf

from tfsimclr.runs import gpu

STOCK = ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"]
RTX_5090 = "NVIDIA GeForce RTX 5090, 12.0\n"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Returns a function that imitates a machine."""

    def make(
        *,
        file=True,
        listed=None,
        cuda=True,
        driver=RTX_5090,
        libraries=True,
        works=True,
    ):
        (tmp_path / "nvidia0").touch()
        pattern = str(tmp_path / ("nvidia[0-9]" if file else "none"))
        monkeypatch.setattr(gpu, "DEVICE_FILES", (pattern,))
        devices = [types.SimpleNamespace(name="GPU:0")] if listed else []
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: devices)
        build = {"is_cuda_build": cuda, "cuda_version": "12.5.1"}
        build |= {"cuda_compute_capabilities": STOCK} if cuda else {}
        monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: build)
        details = {"device_name": "RTX", "compute_capability": listed}
        monkeypatch.setattr(
            tf.config.experimental, "get_device_details", lambda device: details
        )
        monkeypatch.setattr(gpu, "_has_cuda_libraries", lambda: libraries)

        def run(command, **options):
            if driver is None:
                raise FileNotFoundError(command[0])
            return types.SimpleNamespace(stdout=driver)

        monkeypatch.setattr(subprocess, "run", run)

        def device(name):
            if not works:
                raise tf.errors.InternalError(None, None, "CUDA_ERROR_INVALID_HANDLE")
            return tf.name_scope("gpu")

        monkeypatch.setattr(tf, "device", device)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return make


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"cuda": False}, ["RTX 5090", "for the processor only", "tfsimclr[gpu]"]),
        ({}, ["RTX 5090", "no kernels for compute capability 12.0", "sm_89"]),
        (
            {"driver": "Tesla T4, 7.5\n", "libraries": False},
            ["Tesla T4", "no CUDA libraries", "tfsimclr[gpu]"],
        ),
        ({"driver": "Tesla T4, 7.5\n"}, ["does not find it", "CUDA 12.5.1"]),
        ({"driver": None}, ["(NVIDIA)", "does not find it", "nvidia-smi"]),
        ({"driver": "Tesla K80, 3.7\n"}, ["compute capability 3.7", "only for sm_60"]),
        ({"driver": "gibberish"}, ["(NVIDIA)", "does not find it"]),
    ],
)
def test_a_line_says_why_a_card_is_not_used(machine, settings, parts):
    """F26: a run on a GPU that TensorFlow does not support said nothing.

    Siblings: a build for the processor only, missing CUDA libraries, a driver that does
    not answer, cards that are too old; all of them trained on the processor without a
    word. A card that TensorFlow lists but has no kernels for failed at the first step
    with CUDA_ERROR_INVALID_HANDLE (tensorflow#97387): refused before it, or noted if it
    compiles its kernels. No line where the user hides the card, or there is none.
    """
    machine(**settings)
    line = gpu.check()
    assert all(part in line for part in [*parts, "CUDA_VISIBLE_DEVICES=-1"]), line
    assert "\n" not in line


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_nothing_is_said_of_a_hidden_card_or_of_none(machine, monkeypatch, hidden):
    machine()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert gpu.check() is None
    machine(file=False)
    assert gpu.check() is None


def test_a_card_without_kernels_is_refused_or_noted(machine):
    machine(listed=(12, 0), works=False)
    with pytest.raises(ValueError, match="compute capability 12.0.*nvcr.io"):
        gpu.check()
    machine(listed=(12, 0))
    assert "can take 30 minutes" in gpu.check()
    machine(listed=(8, 6), works=False)  # not even tried
    assert gpu.check() is None


@pytest.mark.quick
@pytest.mark.parametrize(
    ("capability", "kernels", "expected"),
    [
        ((8, 6), STOCK, True),
        ((9, 0), STOCK, True),
        ((7, 5), STOCK, True),
        ((12, 0), STOCK, False),
        ((10, 0), STOCK, False),
        ((12, 0), [*STOCK, "sm_120"], True),
        ((12, 1), ["sm_120a"], True),
        ((8, 0), ["sm_86"], False),
        ((5, 2), STOCK, False),
    ],
)
def test_which_cards_a_build_has_kernels_for(capability, kernels, expected):
    assert gpu.has_kernels(capability, kernels) == expected
