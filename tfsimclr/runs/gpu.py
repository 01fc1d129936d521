"""Why TensorFlow cannot use the machine's GPU, and what to do about it."""

import glob
import importlib.metadata
import os
import subprocess

import tensorflow as tf

from tfsimclr.errors import UserError

# A card makes a file /dev/nvidia0; in WSL the driver lies in a folder of its own.
DEVICE_FILES = ("/dev/nvidia[0-9]*", "/usr/lib/wsl/lib/libcuda.so*")
PROCESSOR = "To use the processor without this message, set CUDA_VISIBLE_DEVICES=-1."


def check() -> str | None:
    """Returns a line about a GPU that is not used, or is used with an effort.

    A user who hides the GPU by CUDA_VISIBLE_DEVICES gets none.

    Raises:
        UserError: If TensorFlow would use a GPU for which it has no kernels.
    """
    gpus = tf.config.list_physical_devices("GPU")
    build = tf.sysconfig.get_build_info()
    if gpus:
        return _check_kernels(gpus[0], build)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if hidden or not any(glob.glob(pattern) for pattern in DEVICE_FILES):
        return None
    name, capability = _ask_driver()
    kernels = build.get("cuda_compute_capabilities", [])
    if not build.get("is_cuda_build"):
        reason = "this TensorFlow is a build for the processor only"
        remedy = "pip uninstall tensorflow-cpu, then pip install 'tfsimclr[gpu]'"
    elif capability and not has_kernels(capability, kernels):
        reason = _no_kernels(capability, kernels)
        remedy = "Install a TensorFlow that was built for it"
    elif not _has_cuda_libraries():
        reason = "TensorFlow finds no CUDA libraries"
        remedy = "pip install 'tfsimclr[gpu]'"
    else:
        reason = "TensorFlow does not find it"
        remedy = (
            "See whether `nvidia-smi` does, and update the driver to one for CUDA "
            f"{build.get('cuda_version', '12')}"
        )
    return f"Note: the GPU ({name}) is not used: {reason}. {remedy}. {PROCESSOR}"


def has_kernels(capability: tuple[int, int], kernels) -> bool:
    """Returns whether a TensorFlow has kernels for a compute capability.

    Args:
        capability: Major and minor number.
        kernels: Of the build, such as `["sm_80", "compute_90"]`. A kernel runs on cards
            of the same major and at least the same minor number. Later cards compile
            the newest `compute_` kernels, which fails with stock TensorFlow 2.18 to
            2.21 on cards of capability 12.
    """
    numbers = [kernel.split("_")[-1].rstrip("af") for kernel in kernels]
    built = [(int(number[:-1]), int(number[-1])) for number in numbers]
    return any(
        major == capability[0] and minor <= capability[1] for major, minor in built
    )


def _check_kernels(gpu, build) -> str | None:
    details = tf.config.experimental.get_device_details(gpu)
    capability = details.get("compute_capability")
    kernels = build.get("cuda_compute_capabilities", [])
    if not capability or not kernels or has_kernels(capability, kernels):
        return None
    name = details.get("device_name", gpu.name)
    reason = _no_kernels(capability, kernels)
    try:
        with tf.device("GPU:0"):
            (tf.ones([8]) * 2.0).numpy()
    except tf.errors.OpError as error:
        raise UserError(
            f"the GPU ({name}) cannot be used: {reason}. Install a TensorFlow that was "
            "built for it, such as NVIDIA's container nvcr.io/nvidia/tensorflow, or "
            "set CUDA_VISIBLE_DEVICES=-1 to use the processor."
        ) from error
    return (
        f"Note: {reason} ({name}). It compiles its kernels at the first step, which "
        "can take 30 minutes."
    )


def _no_kernels(capability, kernels) -> str:
    number = ".".join(map(str, capability))
    return (
        f"this TensorFlow has no kernels for compute capability {number}, only for "
        f"{', '.join(kernels)}"
    )


def _ask_driver() -> tuple[str, tuple[int, int] | None]:
    """Returns the name and compute capability of the first card, as far as known."""
    command = "nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader"
    try:
        answer = subprocess.run(
            command.split(), capture_output=True, text=True, timeout=20, check=True
        )
        name, number = answer.stdout.splitlines()[0].rsplit(",", 1)
        major, minor = number.strip().split(".")
        return name.strip(), (int(major), int(minor))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return "NVIDIA", None


def _has_cuda_libraries() -> bool:
    """Returns whether pip installed the CUDA libraries that TensorFlow loads."""
    names = {str(d.name).lower() for d in importlib.metadata.distributions()}
    return any(name.startswith("nvidia-cudnn-cu") for name in names)
