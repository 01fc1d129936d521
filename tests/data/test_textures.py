"""Textures: deterministic, balanced, and hard without learning."""

import time
import zlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tfsimclr.data import textures


@pytest.fixture(scope="module")
def splits():
    return {split: textures.make(split) for split in textures.SPLITS}


def linear_top1(train_features, train_labels, test_features, test_labels, **settings):
    scaler = StandardScaler().fit(train_features)
    probe = LogisticRegression(**settings)
    probe.fit(scaler.transform(train_features), train_labels)
    return probe.score(scaler.transform(test_features), test_labels)


def color_statistics(images):
    pixels = images.reshape(len(images), -1, 3) / 255.0
    spread = pixels.std(axis=(1, 2))[:, None]
    return np.concatenate([pixels.mean(axis=1), spread], axis=1)  # [n, 4]


def test_there_are_ten_distinct_class_names():
    assert len(set(textures.CLASS_NAMES)) == len(textures.CLASS_NAMES) == 10
    assert all(name and isinstance(name, str) for name in textures.CLASS_NAMES)


@pytest.mark.parametrize("split", textures.SPLITS)
def test_shapes_and_types(splits, split):
    images, labels = splits[split]
    assert images.shape == (textures.SPLITS[split], 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (textures.SPLITS[split],)
    assert labels.dtype == np.int32


@pytest.mark.parametrize("split", ["train", "test"])
def test_labelled_splits_are_exactly_balanced(splits, split):
    counts = np.bincount(splits[split][1], minlength=10)
    assert counts.tolist() == [textures.SPLITS[split] // 10] * 10


def test_unlabeled_images_carry_no_label(splits):
    assert set(splits["unlabeled"][1].tolist()) == {-1}


def test_unlabeled_images_come_from_the_same_classes(splits):
    train_images, train_labels = splits["train"]
    unlabeled = splits["unlabeled"][0]
    # Images are made class by class in turn, so a class is every tenth image. A class
    # has its own frequencies: its mean spectrum must match that of its labelled images.
    ours = np.stack([mean_spectrum(unlabeled[c::10][:100]) for c in range(10)])
    theirs = np.stack(
        [mean_spectrum(train_images[train_labels == c]) for c in range(10)]
    )
    distances = np.square(ours[:, None] - theirs[None]).sum(axis=(2, 3))
    np.testing.assert_array_equal(distances.argmin(axis=1), np.arange(10))


def mean_spectrum(images):
    gray = images.mean(axis=3) / 255.0
    gray = gray - gray.mean(axis=(1, 2), keepdims=True)
    return np.abs(np.fft.rfft2(gray)).mean(axis=0)


def test_every_call_gives_the_same_images(splits):
    again, labels = textures.make("test")
    np.testing.assert_array_equal(again, splits["test"][0])
    np.testing.assert_array_equal(labels, splits["test"][1])


def test_an_image_does_not_depend_on_how_many_are_made(splits, monkeypatch):
    monkeypatch.setitem(textures.SPLITS, "train", 40)
    images, labels = textures.make("train")
    np.testing.assert_array_equal(images, splits["train"][0][:40])
    np.testing.assert_array_equal(labels, splits["train"][1][:40])


def test_no_image_occurs_twice(splits):
    digests = [
        zlib.crc32(image.tobytes()) for images, _ in splits.values() for image in images
    ]
    repeated = len(digests) - len(set(digests))
    # 32-bit digests of 6,000 different images collide about 0.004 times.
    assert repeated <= 1


@pytest.mark.parametrize("image_size", [8, 33, 64, 96])
def test_other_sizes_show_the_same_scenes(splits, monkeypatch, image_size):
    monkeypatch.setitem(textures.SPLITS, "train", 50)
    images, _ = textures.make("train", image_size)
    assert images.shape == (50, image_size, image_size, 3)
    assert images.dtype == np.uint8
    assert images.std(axis=(1, 2, 3)).min() > 10
    if image_size % 32 == 0:
        factor = image_size // 32
        blocks = images.reshape(50, 32, factor, 32, factor, 3).mean(axis=(2, 4))
        small = splits["train"][0][:50]
        for large_image, small_image in zip(blocks, small, strict=True):
            similarity = np.corrcoef(large_image.ravel(), small_image.ravel())[0, 1]
            assert similarity > 0.7


def test_raw_pixels_do_not_give_the_class_away(splits):
    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    flat = [images.reshape(len(images), -1) / 255.0 for images in (train, test)]
    top1 = linear_top1(flat[0], train_labels, flat[1], test_labels, C=1e-3, max_iter=50)
    assert top1 <= 0.30


def test_colors_do_not_give_the_class_away(splits):
    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    features = [color_statistics(images) for images in (train, test)]
    top1 = linear_top1(features[0], train_labels, features[1], test_labels)
    assert top1 <= 0.20


def test_the_class_is_in_the_local_structure(splits):
    """Counts of 3x3 light-dark patterns, blind to position and colour, tell classes."""
    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    features = [local_patterns(images) for images in (train, test)]
    top1 = linear_top1(
        features[0], train_labels, features[1], test_labels, C=0.01, max_iter=100
    )
    assert top1 >= 0.80


def local_patterns(images):
    gray = images.mean(axis=3)
    light = (gray > np.median(gray, axis=(1, 2), keepdims=True)).astype(int)
    codes = sum(
        light[:, dy : dy + 30, dx : dx + 30] << (3 * dy + dx)
        for dy in range(3)
        for dx in range(3)
    )
    counts = [np.bincount(code.ravel(), minlength=512) for code in codes]
    return np.sqrt(np.stack(counts))  # [n, 512]


def test_all_splits_take_seconds():
    start = time.process_time()
    for split in textures.SPLITS:
        textures.make(split)
    assert time.process_time() - start < 15


@pytest.mark.parametrize("split", ["valid", "", None])
def test_an_unknown_split_is_answered_with_the_choices(split):
    with pytest.raises(ValueError, match="unlabeled.*train.*test.*got split="):
        textures.make(split)


@pytest.mark.parametrize("image_size", [0, 7])
def test_a_size_without_room_for_a_pattern_is_refused(image_size):
    with pytest.raises(ValueError, match=f"got image_size={image_size}"):
        textures.make("train", image_size)
