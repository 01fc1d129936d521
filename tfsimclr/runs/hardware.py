"""The machine of a run: processor, instruction sets, GPU, and whether oneDNN is on."""

import os
import pathlib
import platform

import tensorflow as tf

CPU_INFO = pathlib.Path("/proc/cpuinfo")
# Instruction sets for which oneDNN has kernels, from slow to fast, as Linux names them.
INSTRUCTION_SETS = (
    "sse4_1",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
)


def describe() -> dict:
    """Returns the machine's parts that decide its speed, for result.json.

    Returns:
        - `gpu`: Name of the first GPU, or None.
        - `processor`: Name of the processor.
        - `cores`: Processor cores that this process may use.
        - `instruction_sets`: Those of INSTRUCTION_SETS that the processor has; None
          where the system does not tell.
        - `onednn`: Whether TensorFlow uses its oneDNN kernels; None if unknown.
        - `onednn_max_cpu_isa`: The user's limit of oneDNN's instruction sets, or None.
    """
    info = _cpu_info()
    flags = info.get("flags", "").split()
    can_choose_cores = hasattr(os, "sched_getaffinity")  # not on macOS
    return {
        "gpu": gpu_name(),
        "processor": info.get("model name") or platform.processor() or None,
        "cores": len(os.sched_getaffinity(0)) if can_choose_cores else os.cpu_count(),
        "instruction_sets": [x for x in INSTRUCTION_SETS if x in flags] or None,
        "onednn": uses_onednn(),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA") or None,
    }


def gpu_name() -> str | None:
    """Returns the name of the first GPU, or None."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return None
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")


def uses_onednn() -> bool | None:
    """Returns whether TensorFlow's oneDNN kernels are on; None if it does not tell."""
    try:
        # Not public, but the variable TF_ENABLE_ONEDNN_OPTS alone does not decide:
        # builds without oneDNN ignore it, and without it the processor decides.
        from tensorflow.python.util import _pywrap_util_port
    except ImportError:
        return None
    return bool(_pywrap_util_port.IsMklEnabled())


def summary(hardware: dict) -> str:
    """Returns `describe()` in one line, such as "AMD EPYC, 2 cores, avx2, oneDNN on".

    Of the instruction sets it has the fastest.
    """
    sets = hardware["instruction_sets"]
    onednn = {True: "oneDNN on", False: "oneDNN off", None: ""}[hardware["onednn"]]
    if hardware["onednn"] and hardware["onednn_max_cpu_isa"]:
        onednn += f" (at most {hardware['onednn_max_cpu_isa']})"
    cores = hardware["cores"]
    parts = (
        hardware["gpu"],
        hardware["processor"],
        f"{cores} core{'s' if cores != 1 else ''}",
        sets[-1] if sets else "",
        onednn,
    )
    return ", ".join(part for part in parts if part)


def _cpu_info() -> dict[str, str]:
    """Returns /proc/cpuinfo's entries of one core; empty on other systems."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
