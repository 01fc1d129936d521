"""The comparison with lightly, with fake workers in place of both libraries."""

import pathlib
import types

import numpy as np
import pytest
from bench import harness, peer
from PIL import Image

OPTIONS = {"size": "tiny", "pairs": 2, "torch_python": "", "data_dir": ""}


def measure(**changes):
    return peer.measure(types.SimpleNamespace(**{**OPTIONS, **changes}))


@pytest.fixture
def fake_workers(monkeypatch):
    """Replaces both libraries; returns the settings of every worker started.

    Epochs of ours take 8, 1, 1, ... seconds, those of lightly 4 and then 2.
    """
    started = []

    class Fake:
        def __init__(self, seconds, parameters, settings):
            folder = pathlib.Path(settings["folder"])
            started.append({**settings, "found": len(list(folder.glob("*.jpg")))})
            self.seconds, self.parameters = iter(seconds), parameters

        def ready(self):
            return {}

        def __call__(self):
            seconds = next(self.seconds)
            return {"wall": seconds, "cpu": seconds, "parameters": self.parameters}

        def __exit__(self, *error):
            pass

    def ours(task, **settings):
        return Fake([8, 1, 1], started_parameters["ours"], settings)

    def lightly(python, task, settings):
        return Fake([4, 2, 2], started_parameters["lightly"], settings)

    started_parameters = {"ours": 5, "lightly": 5}
    monkeypatch.setattr(harness, "tensorflow_worker", ours)
    monkeypatch.setattr(peer, "lightly_worker", lightly)
    monkeypatch.setattr(peer, "lightly_version", lambda python: "9.9")
    return types.SimpleNamespace(started=started, parameters=started_parameters)


@pytest.fixture
def jpegs(tmp_path):
    folder = tmp_path / "jpegs"
    peer.make_photos(folder / "class", 30, 12, 16)
    return folder


def test_the_first_epoch_is_compared_apart_from_the_later_ones(fake_workers, jpegs):
    result = measure(data_dir=str(jpegs))
    assert result["versions"] == {"lightly": "9.9"} and not result["skipped"]
    rows = result["rows"]
    assert [(row["median"], row["rounds"]) for row in rows] == 2 * [
        (0.5, 1),  # first epoch: 4 s of lightly, 8 s of ours
        (2.0, 2),  # later epochs
        (2.0, 2),  # views without a network; its first round is a warm-up
        (0.5, 2),  # processor time
        (2.0, 2),  # images without views
    ]
    assert all(settings["found"] == 24 for settings in fake_workers.started)


def test_without_data_dir_only_its_size_is_skipped(fake_workers):
    result = measure()
    assert len(result["rows"]) == 5
    assert len(result["skipped"]) == 1 and "--data_dir" in result["skipped"][0]


def test_different_networks_are_not_compared(fake_workers):
    fake_workers.parameters["lightly"] = 6
    with pytest.raises(ValueError, match="not the same"):
        measure()


def test_too_few_images_are_an_error(fake_workers, tmp_path):
    peer.make_photos(tmp_path / "few", 3, 12, 16)
    with pytest.raises(ValueError, match="has 3 JPEG files, expected at least 24"):
        measure(data_dir=str(tmp_path / "few"))


def test_without_lightly_nothing_is_measured():
    assert peer.lightly_version("/no/such/python") is None
    result = measure(torch_python="/no/such/python")
    assert result["rows"] == []
    assert result["skipped"] == ["lightly is not installed: see --torch_python."]


def test_made_photos_are_different_jpegs_of_the_given_size(tmp_path):
    peer.make_photos(tmp_path / "photos", 2 * peer.NUM_PATTERNS, 12, 16)
    files = sorted((tmp_path / "photos").iterdir())
    assert len({path.read_bytes() for path in files}) == 2 * peer.NUM_PATTERNS
    with Image.open(files[0]) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (16, 12), "RGB")
        assert np.asarray(image).std() > 20


def test_our_tasks_train_and_read_a_folder_of_images(tmp_path):
    peer.make_photos(tmp_path / "photos", 24, 30, 40)
    settings = {
        **peer.CASES["tiny"][0],
        "folder": str(tmp_path / "photos"),
        "cache": str(tmp_path / "cache"),
    }
    train, _ = peer.peer_train(settings)
    assert train() == train()
    for views in (True, False):
        feed, _ = peer.peer_feed({**settings, "views": views})
        feed()
