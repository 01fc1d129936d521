"""TFDS data sets by name: on disk in TFDS's own format, or out of reach."""

import contextlib
import http.server
import os
import shutil
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest

from tfsimclr import resolve
from tfsimclr.data import dataset as datasets
from tfsimclr.data import images, sampling
from tfsimclr.data import tfds as tfds_source
from tfsimclr.errors import UserError
from tfsimclr.settings.config import Config


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
        ("cifar10:three", "name:1.0.0"),
        ("cifar11:1.0.0", "cifar10"),
        ("./photos", "is a path"),
        ("cifar10/no_such", "no_such"),
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


def with_labels(folder, features, rows, **options):
    """Writes a TFDS data set `twice` of these features beside an image."""
    import tensorflow_datasets as tfds

    gray = [np.full((8, 8, 3), 10 * i, np.uint8) for i in range(len(rows))]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="twice",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(8, 8, 3)), **features}
        ),
        split_datasets={
            "train": [(i, {"image": gray[i], **row}) for i, row in enumerate(rows)]
        },
        data_dir=str(folder),
        **options,
    )
    return str(folder)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A TFDS folder with a data set of two class labels, a number and a text."""
    import tensorflow_datasets as tfds

    features = {
        "fine": tfds.features.ClassLabel(names=["oak", "elm", "cat", "dog"]),
        "coarse": tfds.features.ClassLabel(names=["tree", "animal"]),
        "camera": np.int64,
        "place": tfds.features.Text(),
    }
    rows = [
        {"fine": i % 4, "coarse": i % 4 // 2, "camera": 7 * (i % 3) - 7, "place": p}
        for i, p in enumerate(["sea", "wood"] * 10)
    ]
    return with_labels(tmp_path_factory.mktemp("tfds"), features, rows)


@pytest.mark.parametrize(
    ("label_key", "names", "counts"),
    [
        ("fine", ("oak", "elm", "cat", "dog"), [5, 5, 5, 5]),
        ("coarse", ("tree", "animal"), [10, 10]),
        ("camera", ("0", "7"), [7, 6]),  # a negative number is no label
        ("place", ("sea", "wood"), [10, 10]),
    ],
)
def test_label_key_chooses_a_label(twice, cache, label_key, names, counts):
    """F15: data sets of two class labels, or of integers, "had no class labels".

    Siblings looked for, and what they did: text labels (the same); a wrong key, and
    --label_key with a folder or the textures (now refused, with the choices); labels of
    too many values, such as numbers of images (refused); labels in a sequence, such as
    those of objects (no label of the image); a float (no class label); boolean
    (classes); a version (refused as a namespace), also with stars; name/config (refused
    as a path); --data_dir that names the data set's or the version's folder (proposed
    another data set), also of another name.
    """
    options = {"data_dir": twice, "cache_dir": cache, "image_size": 8}
    dataset = datasets.load("twice", label_key=label_key, **options)
    assert dataset.class_names == names
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    assert np.bincount(labels[labels >= 0]).tolist() == counts
    grays = (
        np.concatenate([dataset.train.images, dataset.test.images])[:, 0, 0, 0] // 10
    )
    truth = {
        "fine": grays % 4,
        "coarse": grays % 4 // 2,
        "camera": grays.astype(int) % 3 - 1,
        "place": grays % 2,
    }
    np.testing.assert_array_equal(labels, truth[label_key])


def test_several_labels_are_named(twice, cache, capsys):
    options = {"data_dir": twice, "cache_dir": cache, "image_size": 8}
    with pytest.raises(UserError, match="several labels: .*--label_key=") as several:
        datasets.load("twice", **options)
    with pytest.raises(UserError, match="=fin is no label of twice") as wrong:
        datasets.load("twice", label_key="fin", **options)
    labels = "fine (4 classes)", "coarse (2 classes)", "camera (int64)", "place (text)"
    for message in (str(several.value), str(wrong.value)):
        assert all(label in message for label in labels)
    dataset = datasets.load("twice", label_key="none", **options)
    assert dataset.train is None and len(dataset.unlabeled.images) == 20
    output = capsys.readouterr().out
    assert "no labels are used; there are: " in output and "fine (4 classes)" in output
    for name, data_dir in (("textures", ""), ("folder", twice)):
        with pytest.raises(UserError, match="--label_key=fine means nothing"):
            resolve.check(Config(dataset=name, data_dir=data_dir, label_key="fine"))


def test_integer_labels_are_named(tmp_path, cache, capsys):
    rows = [{"label": i % 2, "depth": 0.5} for i in range(10)]
    folder = with_labels(tmp_path, {"label": np.int64, "depth": np.float32}, rows)
    options = {"data_dir": folder, "cache_dir": cache, "image_size": 8}
    assert datasets.load("twice", **options).unlabeled is not None
    assert "--label_key=label makes classes of the values" in capsys.readouterr().out
    assert datasets.load("twice", label_key="label", **options).num_classes == 2
    with pytest.raises(UserError, match="=depth is no label.*label .int64.\\."):
        datasets.load("twice", label_key="depth", **options)


def test_a_number_of_every_image_is_no_label(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(tfds_source, "_MAX_VALUES", 5)
    folder = with_labels(tmp_path, {"id": np.int64}, [{"id": i} for i in range(10)])
    with pytest.raises(UserError, match="--label_key=id has more than 5 different"):
        datasets.load("twice", data_dir=folder, cache_dir=cache, label_key="id")


@pytest.mark.parametrize("name", ["twice:1.0.0", "twice:1.*.*", "twice/default:1.0.0"])
def test_versions_and_configs(twice, tmp_path, cache, name):
    if "default" in name:
        import tensorflow_datasets as tfds

        config = tfds.core.BuilderConfig(name="default")
        features = {"coarse": tfds.features.ClassLabel(num_classes=2)}
        rows = [{"coarse": i % 2} for i in range(20)]
        twice = with_labels(tmp_path / "config", features, rows, config=config)
    options = {"data_dir": twice, "cache_dir": cache, "image_size": 8}
    dataset = datasets.load(name, label_key="coarse", **options)
    assert len(dataset.train.images) + len(dataset.test.images) == 20
    workdir = Config(dataset=name).default_workdir()
    assert workdir.count("/") == 1 and ":" not in workdir and "*" not in workdir


def test_a_version_that_is_not_there_is_named(twice, cache):
    with pytest.raises(UserError, match="2.0.0"):
        datasets.load("twice:2.0.0", data_dir=twice, cache_dir=cache)


@pytest.mark.parametrize("inner", ["twice", "twice/1.0.0", "twice/1.0.0/"])
def test_data_dir_that_names_the_data_set_itself(twice, cache, inner):
    data_dir = f"{twice}/{inner}"
    with pytest.raises(UserError, match=f"holds twice/: --data_dir={twice}\\.$"):
        datasets.load("twice", data_dir=data_dir, cache_dir=cache)
    if inner != "twice":
        with pytest.raises(UserError, match="called twice, not other"):
            datasets.load("other", data_dir=data_dir, cache_dir=cache)


@pytest.mark.promise("store")
@pytest.mark.parametrize("keep_times", [True, False])
def test_a_tfds_folder_that_moved_is_found_in_the_cache(
    twice, tmp_path, cache, monkeypatch, keep_times
):
    options = {"cache_dir": cache, "image_size": 8, "label_key": "coarse"}
    before = datasets.load("twice", data_dir=twice, **options)
    copy = shutil.copy2 if keep_times else shutil.copy
    place = shutil.copytree(twice, tmp_path / "far", copy_function=copy)

    def refuse(*arguments):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(images, "read", refuse)
    after = datasets.load("twice", data_dir=str(place), **options)
    np.testing.assert_array_equal(before.train.images, after.train.images)
