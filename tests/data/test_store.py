"""The store: complete or absent, checked on opening; the order of its batches."""

import json
import multiprocessing
import os
import pathlib
import signal
import time

import numpy as np
import pytest

from tfsimclr import files
from tfsimclr.data import batches, store, store_writer

pytestmark = pytest.mark.quick

SIZE = 4


def pictures(n, first=0):
    """Returns images that spell their own index: uint8 [n, 4, 4, 3]."""
    index = np.arange(first, first + n)
    images = np.zeros((n, SIZE, SIZE, 3), np.uint8)
    images[..., 0], images[..., 1] = (
        (index // 256)[:, None, None],
        (index % 256)[:, None, None],
    )
    return images


def indices(batch):
    batch = np.asarray(batch).astype(int)
    return batch[:, 0, 0, 0] * 256 + batch[:, 0, 0, 1]


def chunks():
    yield "unlabeled", pictures(5), np.full(5, -1)
    yield "train", pictures(3, 5), np.array([0, 1, 0])
    yield "train", pictures(2, 8), np.array([1, 1])
    yield "test", pictures(4, 10), np.array([0, 1, 0, 1])


def make(path, rows=None, fingerprint="f"):
    return store_writer.create(
        path,
        chunks() if rows is None else rows,
        SIZE,
        class_names=("cat", "dög"),
        fingerprint=fingerprint,
        skipped=("bad.png: \udcff",),
    )


def only(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


def test_round_trip(tmp_path):
    made = make(tmp_path / "a" / "s")
    for opened in (made, store.open(tmp_path / "a" / "s", "f")):
        np.testing.assert_array_equal(opened.images, pictures(14))
        assert (
            isinstance(opened.images, np.memmap) and not opened.images.flags.writeable
        )
        assert opened.labels.dtype == np.int64
        assert opened.class_names == ("cat", "dög") and len(opened.skipped) == 1
        images, labels = opened.split("train")
        np.testing.assert_array_equal(indices(images), [5, 6, 7, 8, 9])
        np.testing.assert_array_equal(labels, [0, 1, 0, 1, 1])
        np.testing.assert_array_equal(indices(opened.split("test")[0]), range(10, 14))
        assert opened.split("validation") is None
    assert only(tmp_path / "a") == ["s"]


def test_npy_header_is_what_numpy_reads(tmp_path):
    make(tmp_path / "s", rows=[("train", pictures(7), np.zeros(7))])
    np.testing.assert_array_equal(np.load(tmp_path / "s" / "images.npy"), pictures(7))


@pytest.mark.promise("store")
@pytest.mark.parametrize("file", ["images.npy", "labels.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "append", "remove", "empty"])
def test_damage_is_found_and_the_store_replaced(tmp_path, file, damage):
    make(tmp_path / "s")
    path = tmp_path / "s" / file
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 128]) + data[middle + 1 :]
        path.write_bytes(
            {
                "flip": flipped,
                "truncate": data[:-1],
                "append": data + b"}",
                "empty": b"",
            }[damage]
        )
    with pytest.raises(store.InvalidStoreError):
        store.open(tmp_path / "s", "f")
    make(tmp_path / "s")
    np.testing.assert_array_equal(store.open(tmp_path / "s", "f").images, pictures(14))
    assert only(tmp_path) == ["s"]


def test_every_byte_of_the_description_counts(tmp_path):
    make(tmp_path / "s")
    path = tmp_path / "s" / "meta.json"
    whole = path.read_text()
    for old, new in (('"cat"', '"cap"'), ('"train": 5', '"train": 4'), ("bad", "mad")):
        assert whole.count(old) == 1
        path.write_text(whole.replace(old, new))
        with pytest.raises(store.InvalidStoreError, match="meta.json"):
            store.open(tmp_path / "s", "f")


@pytest.mark.parametrize("key,value", [("format", 0), ("fingerprint", "other")])
def test_other_format_or_data_is_out_of_date(tmp_path, key, value):
    make(tmp_path / "s")
    meta = json.loads((tmp_path / "s" / "meta.json").read_text())
    meta[key] = value
    (tmp_path / "s" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(store.InvalidStoreError, match="format 0|other data"):
        store.open(tmp_path / "s", "f")


def test_missing_store():
    with pytest.raises(FileNotFoundError):
        store.open("/nonexistent/store")


def test_a_large_file_is_checked_in_pieces_spread_over_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE_BYTES", 100)
    monkeypatch.setattr(store, "_MAX_PIECES", 3)
    make(tmp_path / "s")
    path = tmp_path / "s" / "images.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(store.InvalidStoreError, match="checksums"):
        store.open(tmp_path / "s", "f")
    path.write_bytes(bytes(data[:-1]) + bytes([data[-1] ^ 1]))
    store.open(tmp_path / "s", "f")


@pytest.mark.parametrize(
    "rows",
    [
        [("train", pictures(2).astype(float), np.zeros(2))],
        [("train", pictures(2)[:, :3], np.zeros(2))],
        [("train", pictures(2), np.zeros(3))],
        [(s, pictures(1), np.zeros(1)) for s in ("train", "test", "train")],
    ],
)
def test_wrong_chunks_leave_nothing(tmp_path, rows):
    with pytest.raises(ValueError, match="expected|adjacent"):
        make(tmp_path / "s", rows)
    assert only(tmp_path) == []


def build_slowly(path, started):
    def rows():
        for first in range(14):
            yield "train", pictures(1, first), np.zeros(1)
            started.set()
            time.sleep(0.1 if started is not None else 0)

    make(path, rows())


@pytest.mark.promise("store")
def test_a_killed_build_leaves_no_store_and_is_cleaned_up(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=build_slowly, args=(tmp_path / "s", started))
    process.start()
    assert started.wait(20)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    leftovers = only(tmp_path)
    assert len(leftovers) == 1 and leftovers[0].startswith(".s.")
    with pytest.raises(FileNotFoundError):
        store.open(tmp_path / "s", "f")
    with pytest.raises(store.InvalidStoreError):  # not even by its temporary name
        store.open(tmp_path / leftovers[0], "f")
    make(tmp_path / "s")
    assert only(tmp_path) == ["s"]


@pytest.mark.promise("store")
def test_two_builders_of_one_store_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=build_slowly, args=(tmp_path / "s", started))
    process.start()
    assert started.wait(20)
    winner = make(tmp_path / "s")  # finishes while the other still writes
    inode = os.stat(tmp_path / "s").st_ino
    process.join(30)
    assert process.exitcode == 0
    assert os.stat(tmp_path / "s").st_ino == inode  # the loser took the winner's
    np.testing.assert_array_equal(winner.images, pictures(14))
    np.testing.assert_array_equal(store.open(tmp_path / "s", "f").images, pictures(14))
    assert only(tmp_path) == ["s"]


def test_a_living_builder_is_not_cleaned_up(tmp_path):
    def rows():
        yield "train", pictures(3), np.zeros(3)
        make(tmp_path / "s")
        yield "train", pictures(3, 3), np.zeros(3)

    loser = make(tmp_path / "s", rows())
    np.testing.assert_array_equal(loser.images, pictures(14))


@pytest.mark.parametrize("n,size", [(103, 10), (64, 64), (7, 1), (1000, 33)])
@pytest.mark.parametrize("seed", [0, 5, -3, 2**70])
def test_epochs_visit_every_index_at_most_once_and_differ(n, size, seed):
    per_epoch = n // size
    seen = [
        indices(b)
        for b in batches.training_batches(pictures(n), size, seed, 0, 3 * per_epoch)
    ]
    epochs = np.concatenate(seen).reshape(3, per_epoch * size)
    for number, epoch in enumerate(epochs):
        assert len(set(epoch)) == per_epoch * size and set(epoch) <= set(range(n))
        order = batches.permutation(n, seed, number)
        np.testing.assert_array_equal(np.sort(order), np.arange(n))
        np.testing.assert_array_equal(epoch, order[: len(epoch)])
    assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()
    assert not (
        batches.permutation(n, seed, 0) == batches.permutation(n, seed + 1, 0)
    ).all()


def test_order_does_not_follow_the_file():
    n = 100_000
    for epoch in range(3):
        order = batches.permutation(n, 0, epoch)
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.015  # 4.7 sigma
        firsts = order.reshape(100, -1).mean(axis=1)  # no hundredth of an epoch drifts
        assert np.abs(firsts - n / 2).max() < 5 * n / np.sqrt(12 * 1000)


@pytest.mark.promise("order")
@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 13, 19, 20])
def test_starting_anywhere_gives_the_tail_of_the_whole_run(start):
    images = pictures(53)
    whole = [indices(b) for b in batches.training_batches(images, 10, 7, 0, 20)]
    tail = [indices(b) for b in batches.training_batches(images, 10, 7, start, 20)]
    assert (
        len(tail)
        == 20 - start
        == len(batches.training_batches(images, 10, 7, start, 20))
    )
    for resumed, uninterrupted in zip(tail, whole[start:], strict=True):
        np.testing.assert_array_equal(resumed, uninterrupted)


@pytest.mark.promise("order")
def test_threads_change_nothing():
    import tensorflow as tf

    orders = []
    for threads in (1, 8):
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        loaded = batches.training_batches(pictures(300), 16, 3, 0, 60).with_options(
            options
        )
        orders.append(np.stack([indices(batch) for batch in loaded]))
    np.testing.assert_array_equal(*orders)


def test_nothing_tunes_the_batches():
    # The tuner's thread sleeps; a fit that ends waits until it wakes up.
    images = np.zeros((8, 2, 2, 3), np.uint8)
    assert (
        batches.training_batches(images, 4, 0, 0, 2).options().autotune.enabled is False
    )


def test_batches_have_a_static_shape_and_read_from_the_map(tmp_path):
    opened = make(tmp_path / "s")
    loaded = batches.training_batches(opened.split("unlabeled")[0], 2, 0, 0, 2)
    assert loaded.element_spec.shape == (2, SIZE, SIZE, 3)
    assert loaded.element_spec.dtype == np.uint8
    assert set(np.concatenate([indices(b) for b in loaded])) <= set(range(5))


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_batch_larger_than_the_data_set_says_what_to_do(size):
    with pytest.raises(ValueError, match=r"10 images.*--batch_size=5"):
        batches.training_batches(pictures(10), size, 0, 0, 1)


@pytest.mark.parametrize("start,stop", [(-1, 3), (4, 3)])
def test_steps_are_checked(start, stop):
    with pytest.raises(ValueError, match="start_step"):
        batches.training_batches(pictures(10), 2, 0, start, stop)
