"""The package as a user meets it: its names, its start, its wheel."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

import tfsimclr

ROOT = pathlib.Path(__file__).resolve().parents[1]


def python(code: str, path: pathlib.Path = ROOT, **variables: str) -> str:
    """Returns what a program prints in a fresh process that finds the package."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=path,
        env={**os.environ, "PYTHONPATH": str(path), **variables},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.quick
@pytest.mark.parametrize("module", ["tfsimclr", "tfsimclr.settings.config"])
def test_settings_and_names_do_not_load_tensorflow(module):
    code = f"import sys, {module}; print({{'tensorflow', 'keras'}} & set(sys.modules))"
    assert python(code) == "set()"


@pytest.mark.quick
def test_help_answers_without_tensorflow():
    code = (
        "import sys\n"
        "from tfsimclr import run\n"
        "sys.argv = ['tfsimclr', '--help']\n"
        "try:\n    run.main()\n"
        "except SystemExit:\n    pass\n"
        "print('tensorflow' in sys.modules)"
    )
    lines = python(code).splitlines()
    assert lines[-1] == "False"
    assert any("--label_fraction" in line for line in lines)


@pytest.mark.quick
def test_every_public_name_is_there():
    for name in tfsimclr.__all__:
        assert getattr(tfsimclr, name) is not None
    assert set(tfsimclr.__all__) <= set(dir(tfsimclr))
    assert tfsimclr.nt_xent is tfsimclr.losses.nt_xent
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tfsimclr.nothing  # noqa: B018  (the access is the test)


@pytest.mark.quick
def test_every_registered_name_is_the_class_in_its_module():
    """Keras loads a class of ours in a fresh process only if it is listed."""
    import keras

    registry = keras.saving.get_custom_objects()
    for name, module in tfsimclr._REGISTERED.items():
        cls = getattr(__import__(module, fromlist=[name]), name)
        assert registry[f"tfsimclr>{name}"] is cls
    ours = {name for name in registry if name.startswith("tfsimclr>")}
    assert ours == {f"tfsimclr>{name}" for name in tfsimclr._REGISTERED}


@pytest.mark.parametrize("first", ["keras, tfsimclr", "tfsimclr, keras"])
def test_import_of_the_package_is_enough_to_load_a_model(tmp_path, first):
    path = tmp_path / "model.keras"
    encoder = tfsimclr.resnet.resnet(10, 0.125, "medium")
    head, views = tfsimclr.ProjectionHead(2, dim=8), tfsimclr.Views(16)
    model = tfsimclr.BYOL(encoder, head, views, tfsimclr.ProjectionHead(1, dim=8))
    model.compile(optimizer=tfsimclr.LARS(0.1))
    model.save(path)
    code = f"import {first}; print(type(keras.models.load_model({str(path)!r})))"
    assert python(code).endswith("<class 'tfsimclr.methods.byol.BYOL'>")


@pytest.mark.quick
@pytest.mark.parametrize("value", [None, "0"])
def test_onednn_is_on_unless_the_user_has_decided(value):
    code = "import os, tfsimclr; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    environment = {**os.environ}
    os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)
    try:
        variables = {} if value is None else {"TF_ENABLE_ONEDNN_OPTS": value}
        assert python(code, **variables) == (value or "1")
    finally:
        os.environ.update(environment)


def test_the_wheel_has_every_room_and_runs_elsewhere(tmp_path):
    """A checkout works without `packages = find:`; the wheel would lack the rooms."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = tmp_path / "wheels"
    source = tmp_path / "source"
    files = ["tfsimclr", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]
    # A copy: setuptools leaves build/ and an egg-info folder in the source.
    source.mkdir()
    for name in files:
        subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, source], check=True)
    (wheel,) = wheels.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(ROOT)) for path in (ROOT / "tfsimclr").rglob("*.py")
    }
    assert modules <= packed
    templates = (ROOT / "tfsimclr/report/templates").iterdir()
    assert {str(path.relative_to(ROOT)) for path in templates} <= packed
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "-t", site, wheel], check=True)
    code = "import tfsimclr.modes; print(tfsimclr.__file__)"
    assert python(code, site).endswith(str(site / "tfsimclr" / "__init__.py"))
