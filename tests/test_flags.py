"""Every flagfile has valid settings, and a header with its command and result."""

import pathlib
import re
import shlex

import pytest
from command_line import check

from tfsimclr.settings import config as configs
from tfsimclr.settings import flagfiles
from tfsimclr.study import plan

pytestmark = pytest.mark.quick
ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ROOT / "flags"
PATHS = sorted(FLAGS.rglob("*.flags"))
RUN = "python -m tfsimclr.run "
STUDY = "python scripts/study.py "
STUDY_OPTIONS = ("--vary", "--seeds=", "--out=", "--experiments=", "--jobs=")


def by_path(paths):
    ids = [path.relative_to(FLAGS).as_posix() for path in paths]
    return pytest.mark.parametrize("path", paths, ids=ids)


def header(path):
    """Returns {"Run": ..., "Result": ..., ...} of the comment at the start of a file.

    The entry "" is the description.
    """
    entries, key = {"": []}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        line = line[1:].strip()
        match = re.match(r"(Result|Run|Study|Then|Differs): +(.*)", line)
        if match:
            key, line = match.groups()
            assert key not in entries, f"two lines {key}:"
        entries.setdefault(key, []).append(line)
    return {key: " ".join(lines) for key, lines in entries.items()}


def test_every_flagfile_is_in_one_of_the_five_folders():
    folders = {path.relative_to(FLAGS).parts[0] for path in PATHS}
    assert folders == {"base", "recipes", "paper", "methods", "study"}


@by_path(PATHS)
def test_the_header_has_a_result_and_a_command_with_valid_settings(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    entries = header(path)
    assert len(entries[""]) > 20 and entries["Result"]
    assert entries["Run"].startswith(RUN)
    arguments = shlex.split(entries["Run"].removeprefix(RUN))
    assert f"--flagfile={path.relative_to(ROOT).as_posix()}" in arguments
    config = check(*arguments)
    assert config.with_optimizer_defaults().learning_rate > 0


@by_path([path for path in PATHS if "Study" in header(path)])
def test_the_command_of_a_study_has_valid_settings(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = header(path)["Study"]
    assert command.startswith(STUDY)
    arguments = shlex.split(command.removeprefix(STUDY))
    assert f"--flagfile={path.relative_to(ROOT).as_posix()}" in arguments
    check(*[x for x in arguments if not x.startswith(STUDY_OPTIONS)])
    for argument in arguments:
        if argument.startswith("--experiments="):
            assert plan.experiment_files(argument.partition("=")[2])


@by_path(PATHS)
def test_the_names_of_the_settings_are_the_present_ones(path):
    words = re.findall(r"--(?:no)?(\w+)", path.read_text(encoding="utf-8"))
    assert not set(words) & set(configs.ALIASES)


@by_path(PATHS)
def test_other_flagfiles_in_the_header_exist(path):
    for name in re.findall(r"flags/[\w/]+\.flags", path.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


@by_path(PATHS)
def test_a_result_names_what_made_it(path):
    result = header(path)["Result"]
    if " %" in result and not result.startswith("not run yet"):
        assert re.search(r"seeds?\b", result)
        assert re.search(r"\b[Cc]ommit [0-9a-f]{7}", result)
        assert (
            "TensorFlow 2." in result
            and "Keras 3." in result
            or ("versions of TensorFlow and Keras were not recorded" in result)
        )


STUDIES = {"methods": "study/methods", "study/rates": "study/textures"}


@by_path([path for folder in STUDIES for path in (FLAGS / folder).glob("*.flags")])
def test_the_command_of_an_experiment_has_the_settings_of_its_study(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = STUDIES[path.parent.relative_to(FLAGS).as_posix()]
    overrides = flagfiles.expand([f"--flagfile=flags/{study}.flags"])
    _, (run,) = plan.plan({path.stem: path}, overrides, 1, pathlib.Path("runs"))
    config = check(*shlex.split(header(path)["Run"].removeprefix(RUN)))
    assert plan.compared(config.with_optimizer_defaults()) == plan.compared(run.config)


@by_path(sorted((FLAGS / "base").glob("*.flags")))
@pytest.mark.parametrize("method", ["simclr", "moco", "byol"])
def test_a_base_suits_every_method_with_a_momentum_network(path, method):
    check(f"--flagfile={path}", f"--method={method}")


@by_path([FLAGS / "base/stl10.flags", FLAGS / "base/moco.flags"])
def test_a_base_of_data_or_optimizer_suits_simsiam(path):
    check(f"--flagfile={path}", "--method=simsiam")


BASE = {
    **{"dataset": "stl10", "image_size": 96, "backbone": "resnet18", "width": 1},
    **{"stem": "imagenet", "batch_size": 128, "epochs": 40, "temperature": 0.5},
    **{"proj_layers": 2, "proj_dim": 64, "proj_hidden": 0, "proj_batch_norm": "false"},
    **{"proj_activation": "relu", "optimizer": "adam", "learning_rate": 3e-4},
    **{"learning_rate_scaling": "none", "warmup_epochs": 0, "schedule": "constant"},
    **{"weight_decay": 0, "crop_min_area": 0.08, "jitter_strength": 1, "blur": 0},
    **{"flip": True, "grayscale": 0.2, "feature": "h", "probe_epochs": 100},
    **{"probe_optimizer": "adam", "probe_learning_rate": 3e-4, "probe_batch_size": 256},
    **{"num_pretrain_images": 0, "num_train_images": 0, "selective_kernel": False},
}
LARS = {
    **{"optimizer": "lars", "learning_rate": 0.075, "learning_rate_scaling": "sqrt"},
    **{"warmup_epochs": 1, "schedule": "cosine", "weight_decay": 1e-6},
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("baseline_128", {}),
        ("baseline_256", {"batch_size": 256}),
        ("simclr_z", {"feature": "z"}),
        ("tanh", {"proj_activation": "tanh"}),
        ("leaky_relu", {"proj_activation": "leaky_relu"}),
        ("lars", LARS),
        ("layer3", {"proj_layers": 3}),
        ("layer4", {"proj_layers": 4}),
        ("lars_layer4", {**LARS, "proj_layers": 4}),
    ],
)
def test_flagfiles_of_the_paper_have_its_settings(name, changes):
    config = check(f"--flagfile={ROOT}/flags/paper/{name}.flags")
    assert {name: getattr(config, name) for name in BASE} == {**BASE, **changes}
