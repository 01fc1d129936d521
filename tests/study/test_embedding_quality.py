"""The measurement of search: what is planted counts, and the page holds the numbers."""

import numpy as np
import pytest
from PIL import Image

from tfsimclr.study import embedding_quality as quality


@pytest.mark.quick
def test_precision_counts_neighbours_of_the_class():
    rng = np.random.default_rng(0)
    centres = np.eye(3, 8)[np.repeat(np.arange(3), 20)]
    features = centres + 0.01 * rng.normal(size=(60, 8))
    labels = np.repeat(["a", "b", "c"], 20)
    assert quality.precision_at(features, labels) == {"all": 1, "a": 1, "b": 1, "c": 1}
    mixed = np.tile(["a", "b"], 30)
    scores = quality.precision_at(features, mixed)
    assert scores["all"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.quick
def test_duplicates_are_found_at_a_threshold():
    rng = np.random.default_rng(0)
    originals = rng.normal(size=(50, 16)).astype("float32")
    copied = np.array([3, 8, 20])
    noise = 0.01 * rng.normal(size=(12, 16))
    planted = np.repeat(originals[copied], 4, axis=0) + noise
    planted[2] = -planted[2]  # the mirrored copy of the first is not found
    high, _ = quality.duplicate_scores(originals, planted, copied)
    assert high["precision"] >= 0.9 and high["recall"]["jpeg"] == 1
    assert high["recall"]["mirror"] == pytest.approx(2 / 3)
    assert 0.6 < high["threshold"] < 1


def test_the_page_of_a_run(finished, tmp_path):
    config, dataset, folder = finished
    for index, label in enumerate(dataset.train.labels):
        path = tmp_path / "images" / str(label % 3) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.train.images[index]).save(path)
    out = tmp_path / "out"
    quality.main(
        [str(folder), f"--images={tmp_path / 'images'}", f"--out={out}", "--copied=5"]
    )
    page = (out / "quality.md").read_text("utf-8")
    for name in ("pixels", "random_h", "h", "z"):
        assert f"| {name} |" in page
    assert "mirrored" in page and "60 images" in page
