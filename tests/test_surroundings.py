"""What the user's surroundings set: keras.json and environment variables."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

from tfsimclr import run

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def keras_settings():
    """Restores what a test sets in Keras."""
    before = keras.config.floatx(), keras.config.image_data_format()
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_image_data_format(before[1])
    keras.config.set_epsilon(1e-7)
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)


def test_no_setting_of_keras_reaches_a_run(keras_settings, monkeypatch):
    """F11: `~/.keras/keras.json` and variables changed a run, or ended it early.

    Siblings: every key of keras.json (floatx, epsilon, image_data_format, backend,
    nnx_enabled) and every variable of Keras 3.15: KERAS_BACKEND, also empty;
    KERAS_MAX_EPOCHS and KERAS_MAX_STEPS_PER_EPOCH, which ended a run early and called
    it finished; KERAS_HOME; KERAS_NNX_ENABLED. Of TensorFlow,
    TF_FUNCTION_JIT_COMPILE_DEFAULT ended a run in a traceback. Tried as well, each with
    the same weights or a difference of rounding: TF_USE_LEGACY_KERAS, TF2_BEHAVIOR=0,
    TF_DETERMINISTIC_OPS, TF_ENABLE_ONEDNN_OPTS=0, TF_XLA_FLAGS with auto-clustering,
    unknown XLA_FLAGS, TF_CPP_MIN_LOG_LEVEL=0, OMP_NUM_THREADS=1, TF_NUM_INTRAOP_THREADS
    and TF_NUM_INTEROP_THREADS that are no numbers.
    """
    monkeypatch.setenv("TF_FUNCTION_JIT_COMPILE_DEFAULT", "1")
    keras.config.set_floatx("float16")
    keras.config.set_epsilon(0.1)
    keras.config.set_image_data_format("channels_first")
    keras.config.set_max_epochs(1)
    keras.config.set_max_steps_per_epoch(1)
    monkeypatch.setenv("KERAS_BACKEND", "")
    run._tensorflow()
    assert os.environ["KERAS_BACKEND"] == "tensorflow"
    assert "TF_FUNCTION_JIT_COMPILE_DEFAULT" not in os.environ
    assert keras.config.floatx() == "float32"
    assert keras.config.epsilon() == 1e-7
    assert keras.config.image_data_format() == "channels_last"
    assert keras.config.max_epochs() is keras.config.max_steps_per_epoch() is None


def test_another_backend_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax is set"):
        run._tensorflow()
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="Keras runs on torch in this process"):
        run._tensorflow()


def test_every_key_of_keras_json_at_once_changes_nothing(tmp_path):
    keys = {
        **{"floatx": "float16", "epsilon": 0.1, "backend": "jax"},
        **{"image_data_format": "channels_first", "nnx_enabled": True},
    }
    (tmp_path / "keras.json").write_text(json.dumps(keys))
    code = (
        "from tfsimclr import run; run._tensorflow(); import keras; c = keras.config; "
        "print(c.floatx(), c.epsilon(), c.backend(), c.image_data_format(), "
        "c.is_nnx_enabled())"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KERAS_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(ROOT), "KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "float32 1e-07 tensorflow channels_last False\n", done.stderr


def test_a_keras_json_that_keras_refuses_is_one_line(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"floatx": "bfloat16"}))
    done = subprocess.run(
        [sys.executable, "-m", "tfsimclr.run", f"--workdir={tmp_path / 'run'}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("tfsimclr: Keras cannot start: Invalid `floatx`")
    assert f"{tmp_path}/keras.json" in line
    assert not (tmp_path / "run").exists()
