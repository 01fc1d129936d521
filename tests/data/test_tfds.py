"""TFDS data sets by name: on disk in TFDS's own format, or out of reach."""

import contextlib
import http.server
import os
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest

from tfsimclr.data import dataset as datasets
from tfsimclr.data import sampling
from tfsimclr.data import tfds as tfds_source


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def prepared(folder, name, size, splits, num_classes=10, channels=3):
    """Writes a TFDS data set to disk; `splits` maps a name to its labels."""
    import tensorflow_datasets as tfds

    def examples(labels):
        for index, label in enumerate(labels):
            image = np.full((*size, channels), 10 * index, np.uint8)
            yield index, {"image": image, "label": label}

    shape = (None, None, channels) if size[0] != size[1] else (*size, channels)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=num_classes),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=features,
        split_datasets={k: list(examples(v)) for k, v in splits.items()},
        data_dir=folder,
    )
    return str(folder)


def test_stl10_keeps_the_unlabelled_apart(tmp_path, cache):
    splits = {"train": range(10), "test": [3, 4, 5], "unlabelled": [-1] * 20}
    folder = prepared(tmp_path / "tfds", "stl10", (96, 96), splits)
    assert (
        "stl10_dataset_builder" in type(tfds_source.builder("stl10", folder)).__module__
    )
    dataset = datasets.load("stl10", data_dir=folder, cache_dir=cache)
    assert dataset.image_size == 96 and dataset.num_classes == 10
    assert dataset.pretrain.images.shape == (20, 96, 96, 3)
    assert (dataset.unlabeled.labels == -1).all()
    for split, labels in (("train", range(10)), ("test", [3, 4, 5])):
        part = getattr(dataset, split)
        np.testing.assert_array_equal(np.sort(part.labels), labels)
        # Image i is of gray 10 i: TFDS shuffles, but label and image stay together.
        grays = part.images[:, 5, 5, 0] // 10
        np.testing.assert_array_equal(part.labels, np.asarray(labels)[grays])


@pytest.mark.promise("labels")
@pytest.mark.parametrize("other", [None, "validation"])
def test_tfds_without_a_test_split(tmp_path, cache, capsys, other):
    splits = {"train": [0, 1] * 10, **({other: [0, 1]} if other else {})}
    folder = prepared(tmp_path, "own_photos", (40, 30), splits, 2, channels=1)
    dataset = datasets.load("own_photos", data_dir=folder, cache_dir=cache)
    assert dataset.image_size == 30 and dataset.train.images.shape[1:] == (30, 30, 3)
    assert len(dataset.train.images) == (20 if other else 16)
    assert np.bincount(dataset.test.labels).tolist() == ([1, 1] if other else [2, 2])
    assert ("validation" if other else "fifth") in capsys.readouterr().out
    if not other:
        grays = [
            set(split.images[:, 0, 0, 0]) for split in (dataset.train, dataset.test)
        ]
        assert not grays[0] & grays[1] and len(grays[0] | grays[1]) == 20


def test_tfds_test_split_without_labels_is_not_used(tmp_path, cache):
    splits = {"train": [0, 1], "test": [-1] * 3, "validation": [1, 0]}
    splits["unsupervised"] = [0, 1, 1]  # what must not be used has no label here
    folder = prepared(tmp_path, "own_photos", (8, 8), splits, 2)
    dataset = datasets.load("own_photos", data_dir=folder, cache_dir=cache)
    assert sorted(dataset.test.labels) == [0, 1]
    assert dataset.unlabeled.labels.tolist() == [-1] * 3


@pytest.mark.promise("download")
def test_tfds_names_are_checked(tmp_path, cache):
    for name, match in (
        ("stl11", "stl10"),
        ("texture", "textures"),
        ("glue", "no data set of images"),
        ("huggingface:mnist", "namespace"),
        ("", "--dataset"),
    ):
        with pytest.raises(ValueError, match=match):
            datasets.load(name, data_dir=str(tmp_path), cache_dir=cache)
    assert not any(os.scandir(cache))


@pytest.mark.promise("download")
@pytest.mark.parametrize("name", ["stl10", "cifar10"])
def test_a_download_out_of_reach_fails_in_seconds(tmp_path, cache, monkeypatch, name):
    def hang(*_, **__):
        time.sleep(60)

    assert 2 * tfds_source._CONNECT_SECONDS < 9
    monkeypatch.setattr(tfds_source, "_CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(urllib.request, "urlopen", hang)
    start = time.time()
    with pytest.raises(ValueError) as caught:
        datasets.load(name, data_dir=str(tmp_path / "tfds"), cache_dir=cache)
    assert time.time() - start < 5
    for part in (name, str(tmp_path / "tfds"), "--data_dir", "--dataset=textures"):
        assert part in str(caught.value)
    assert not any(os.scandir(cache))
    assert not (tmp_path / "tfds" / name).exists()


def test_a_failing_download_is_one_line(tmp_path, cache, monkeypatch):
    builder = tfds_source.builder("cifar10", str(tmp_path))

    def fail(*_, **__):
        raise AssertionError("disk\n\nfull")

    monkeypatch.setattr(tfds_source, "unreachable", lambda _: "")
    monkeypatch.setattr(type(builder), "download_and_prepare", fail)
    with pytest.raises(ValueError, match="disk full.*--data_dir"):
        datasets.load("cifar10", data_dir=str(tmp_path), cache_dir=cache)


@contextlib.contextmanager
def server():
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200 if self.path == "/there" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_unreachable(monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with server() as url:
        assert tfds_source.unreachable(f"{url}/there") == ""
        assert tfds_source.unreachable(f"{url}/404") == ""  # an answer is an answer
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but not listening
        port = closed.getsockname()[1]
        assert "refused" in tfds_source.unreachable(f"http://127.0.0.1:{port}/")
    assert tfds_source.unreachable("no address")


def test_held_out_is_stratified_and_ignores_missing_labels():
    labels = np.array([0] * 50 + [1] * 10 + [2] + [-1] * 9)
    chosen = sampling.held_out_fifth(labels)
    assert np.bincount(labels[chosen], minlength=3).tolist() == [10, 2, 0]
    np.testing.assert_array_equal(chosen, sampling.held_out_fifth(labels))
    np.testing.assert_array_equal(chosen[:50], sampling.held_out_fifth(labels[:50]))
