"""Every command of docs/own_images.md runs, on a few small images."""

import pathlib
import re
import shlex

import numpy as np
import pytest
from command_line import command
from PIL import Image

from tfsimclr.modes import encoder_files
from tfsimclr.networks import resnet

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "own_images.md").read_text(encoding="utf-8")
SMALL = ("--image_size=32", "--batch_size=8", "--epochs=1", "--cache_dir=cache")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def execute(line, *more):
    """Runs a command in this process: starting TensorFlow takes most of its time."""
    python, module, name, *arguments = shlex.split(line)
    assert (python, module, name) == ("python", "-m", "tfsimclr.run")
    command(*arguments, *more)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home with 30 photographs, the recipes, and weights of a tiny ResNet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flags").symlink_to(ROOT / "flags")
    rng = np.random.default_rng(0)
    for i in range(30):
        folder = tmp_path / "photos" / "2024" / f"day{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 36 + i, 3)).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{i}.png")
    encoder = resnet.resnet(10, 0.125, "imagenet")
    content = encoder_files.safetensors_content(encoder, "imagenet", 0)
    (tmp_path / "resnet18.safetensors").write_bytes(content)
    return tmp_path


def test_from_the_folder_to_the_features(place, capsys):
    _, train, tensorboard, export, *searches = map(str.strip, blocks("bash"))
    execute(train, *SMALL)
    about = place / "runs" / "photos"
    assert "resnet18.safetensors" in capsys.readouterr().out
    assert (about / "result.json").exists() and (about / "history.csv").exists()
    _, folder = tensorboard.split("=")
    assert list((place / folder).rglob("events*"))
    execute(export)
    names = {path.name for path in (about / "exported").iterdir()}
    assert names == {*encoder_files.FILES.values(), encoder_files.CONFIG}
    (block,) = (b for b in blocks("python") if "similarity" in b)
    names = {"files": sorted((place / "photos").rglob("*.png"))[:5]}
    exec(block, names)
    assert names["similarity"].shape == (5, 5)
    np.testing.assert_allclose(np.diag(names["similarity"]), 1, atol=1e-5)
    check_searches(searches, about)


def check_searches(commands, about):
    """Runs the commands of the last section, but for the report: training wrote it."""
    embed, similar, others, report = commands
    execute(embed, "--cache_dir=cache")
    (picture, *_) = sorted((about.parent.parent / "photos").rglob("*.png"))
    Image.open(picture).save("cat.jpg")
    execute(similar)
    execute(others)
    tables = {path.stem: path.read_text() for path in (about / "search").glob("*.csv")}
    assert set(tables) == {"similar", "duplicates", "outliers", "selected"}
    assert len(tables["similar"].splitlines()) == 1 + 12
    assert len(tables["selected"].splitlines()) == 1 + 24
    assert "--mode=report" in report and (about / "report.html").exists()


@pytest.mark.slow
def test_the_plan_makes_no_run_folder(place, capsys):
    execute(blocks("bash")[0].strip(), *SMALL)
    assert "photos" in capsys.readouterr().out
    assert not (place / "runs").exists()
