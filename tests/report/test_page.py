"""The page of a run: what it shows, and that no name can inject markup."""

import base64
import dataclasses
import html.parser
import io
import json
import math

import numpy as np
import pytest
import report_runs
import scipy.stats
from PIL import Image

from tfsimclr.errors import UserError
from tfsimclr.evaluation import neighbors
from tfsimclr.modes import report
from tfsimclr.report import charts, comparison, content, image_map, page, sprites
from tfsimclr.report.command import command
from tfsimclr.settings.config import Config


class Tags(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text.replace("\u00a0", " "))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="session")
def tags(hostile_page):
    return Tags(hostile_page.read_text(encoding="utf-8"))


def test_no_name_injects_markup(tags):
    assert len(tags.of("script")) == 4  # two of data, Bokeh, and the map's own
    assert all(image["src"].startswith("data:image/") for image in tags.of("img"))
    assert not tags.of("b") and not tags.of("i")
    for tag, attributes in tags.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
    text = " ".join(tags.text)
    assert "<b>bold</b>" in text and "{{ 7 * 7 }}" in text
    assert "/tmp/<i>images</i>" in text


def test_the_page_loads_nothing(tags):
    for tag, attributes in tags.tags:
        for name in ("src", "href", "action", "srcset", "poster"):
            address = attributes.get(name, "#")
            assert address.startswith(("#", "data:")), (tag, address)


def test_sections_are_in_order_and_have_landmarks(tags):
    ids = [a["id"] for a in tags.of("h2")]
    assert ids == [
        *("training", "curves", "features", "classes", "views", "neighbors"),
        *("image-map", "unusual", "settings"),
    ]
    assert [a["href"][1:] for a in tags.of("a")][1:] == ids
    for landmark in ("header", "nav", "main", "footer"):
        assert len(tags.of(landmark)) == 1
    assert len(tags.of("h1")) == 1 and tags.of("html")[0]["lang"] == "en"
    for attributes in tags.of("svg"):
        assert attributes["role"] == "img" and attributes["aria-label"]
    for attributes in tags.of("img"):
        assert attributes["alt"]
    for attributes in tags.of("span"):
        if attributes.get("class", "").split()[:1] == ["t"]:
            assert attributes["role"] == "img" and attributes["aria-label"]


def test_the_content_is_that_of_the_run(tags):
    text = " ".join(" ".join(tags.text).split())
    assert "The sentence of the verdict." in text
    assert "h minus pixels: +20.0 points, 95 % interval +10.0 to +30.0" in text
    low, high = page.wilson(0.6, 60)
    assert f"({page.percent(low)} to {page.percent(high)}) of 60 test images" in text
    assert "1 min 15 s" in text and "900 images/s" in text
    assert "python <x>" in text
    assert "The most similar pairs of the 60 images" in text
    assert "--crop_min_area" in text


def test_a_run_without_labels_has_no_classes(tmp_path):
    folder = report_runs.write_run(
        tmp_path / "run", features={}, top1=None, class_names=[]
    )
    shown = page.run_page(
        content.read(folder),
        report_runs.CONFIG,
        report_runs.pictures(labelled=False),
        "x",
    )
    found = Tags(shown)
    ids = [a["id"] for a in found.of("h2")]
    assert "classes" not in ids and "features" in ids
    text = " ".join(found.text)
    assert "cluster 1" in text and "With labels" not in text


def test_an_old_run_has_a_page_too(tmp_path):
    folder = report_runs.write_run(tmp_path / "run")
    old = {
        k: v
        for k, v in report_runs.result().items()
        if k not in ("label_free", "class_names", "num_images", "device")
    }
    for name in ("features", "config"):
        old[name] = dict(old[name])
    for scores in old["features"].values():
        scores.pop("mean_class_accuracy", None)
        scores.pop("majority_share", None)
    (folder / "result.json").write_text(json.dumps(old))
    for name in ("history.csv", "confusion.csv"):
        (folder / name).unlink()
    shown = page.run_page(content.read(folder), report_runs.CONFIG, None, "x")
    text = " ".join(Tags(shown).text)
    assert "was not scored without labels" in text and "60.0 %" in text


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"config": 1}'])
def test_a_damaged_result_is_one_line(tmp_path, damage):
    folder = report_runs.write_run(tmp_path / "run")
    (folder / "result.json").write_text(damage)
    with pytest.raises(UserError, match="cannot be read"):
        content.read(folder)
    with pytest.raises(UserError, match=r"no result\.json"):
        content.read(tmp_path)


def test_a_failed_report_does_not_end_the_run(tmp_path, capsys, monkeypatch):
    report.report_if_possible(report_runs.CONFIG, None, tmp_path)
    error = capsys.readouterr().err
    assert "The report was not written" in error and "--mode=report" in error
    assert not list(tmp_path.iterdir())


def test_an_encoder_without_width_or_stem():
    result = report_runs.result()
    assert "width 0.25, stem" in dict(page.facts(result))["encoder"]
    result["config"] |= {"backbone": "convnexttiny", "width": None, "stem": "auto"}
    assert dict(page.facts(result))["encoder"] == "convnexttiny"


@pytest.mark.parametrize(("share", "count"), [(0.0, 10), (0.3, 40), (1.0, 7)])
def test_intervals_are_wilsons(share, count):
    slow = scipy.stats.binomtest(round(share * count), count).proportion_ci(
        method="wilson"
    )
    np.testing.assert_allclose(page.wilson(share, count), slow, atol=1e-6)
    assert page.wilson(None, count) is None and page.wilson(share, 0) is None


def test_the_most_similar_pairs():
    rng = np.random.default_rng(0)
    h = neighbors.normalize(rng.normal(size=(30, 8)))
    h[7], h[20], h[21] = h[5], h[11], h[11]
    pairs = page.most_similar_pairs(h, 4)
    assert [pair[1:] for pair in pairs[:2]] == [(5, 7), (11, 20)]
    used = [row for pair in pairs for row in pair[1:]]
    assert len(set(used)) == len(used) == 8
    similarities = [pair[0] for pair in pairs]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[2] == pytest.approx(h[pairs[2][1]] @ h[pairs[2][2]], abs=1e-6)


@pytest.mark.parametrize(
    ("first", "last", "unit", "text"),
    [
        (-0.000768, -1.46, "nats", "0.00 to −1.46 nats"),
        (0.479, 8.86, "%", "0.48 to 8.86 %"),
        (0.849, 1.43e-6, "", "0.849 to 0.000"),
        (3e-4, 3e-4, "", "0.000300 to 0.000300"),
        (10, 1000, "", "10 to 1,000"),
        (0, 0, "", "0 to 0"),
        (math.nan, 2, "", "– to 2"),
    ],
)
def test_spans_have_as_many_decimals_as_the_larger_end(first, last, unit, text):
    assert page.span(first, last, unit) == text


def test_queries_are_spread_over_the_classes():
    labels = np.array([0] * 90 + [1] * 5 + [2] * 5)
    rows = page.choose_queries(labels, 0)
    assert np.bincount(labels[rows]).tolist() == [4, 4, 4]
    assert rows == page.choose_queries(labels, 0)
    assert len(set(page.choose_queries(np.full(7, -1), 0))) == 7


@pytest.mark.parametrize("side", [4, 16, 32, 90])
def test_pictures_lie_on_the_sheet_at_their_position(side):
    images = np.zeros((7, side, side, 3), np.uint8)
    images[:] = (30 * np.arange(7))[:, None, None, None]
    sheet = sprites.sheet(images)
    assert sheet.size % 8 == 0 and sheet.columns * sheet.rows >= 7
    picture = Image.open(io.BytesIO(base64.b64decode(sheet.uri.split(",")[1])))
    assert picture.size == (sheet.columns * sheet.size, sheet.rows * sheet.size)
    for row in range(7):
        column, line = sheet.position(row)
        x, y = (round((place + 0.5) * sheet.size) for place in (column, line))
        np.testing.assert_allclose(picture.getpixel((x, y)), 30 * row, atol=2)


def test_a_matrix_of_many_classes_is_drawn_in_blocks():
    counts = np.eye(250, dtype=int)
    assert "block of 3 by 3 classes" in charts.matrix(counts)
    assert "a row for each true class" in charts.matrix(counts[:100, :100])


def test_noise_fits_on_a_sheet():
    noise = np.random.default_rng(0).integers(0, 256, (1000, 16, 16, 3), np.uint8)
    uri = sprites.sheet(noise).uri
    content = io.BytesIO(base64.b64decode(uri.split(",")[1]))
    assert Image.open(content).size == (32 * 16, 32 * 16)


def test_groups_are_classes_or_clusters():
    features = report_runs.pictures().features["h"]
    labels = np.arange(60) % 3
    names = ("a", "b", "c")
    group = image_map.groups(features, labels, names)
    assert group.kind == "class" and group.names == list(names)
    np.testing.assert_array_equal(group.members, labels)
    for other in (np.full(60, -1), np.zeros(60, int), np.arange(60)):
        group = image_map.groups(features, other, [str(i) for i in range(60)])
        assert group.kind == "cluster" and len(group.names) == 8
    assert len(set(group.marks)) == 8


@pytest.mark.parametrize("count", [10, 12, 40])
def test_the_map_has_a_place_for_every_image(count):
    for features in (
        np.ones((count, 3), "float32"),
        report_runs.pictures(count).features["h"],
    ):
        places = image_map.layout(features)
        assert places.shape == (count, 2) and np.isfinite(places).all()


def test_charts_follow_the_colour_of_the_page():
    svg = charts.curves({"<a> $x": ([1, 2], [1, math.nan])}, "loss", 'A "title" <b>')
    assert 'aria-label="A &quot;title&quot; &lt;b>"' in svg
    assert "currentColor" in svg and charts.TEXT not in svg
    assert "<style" not in svg and "<metadata" not in svg


def test_the_command_names_only_what_is_needed(tiny):
    config, dataset, _ = tiny(epochs=3, optimizer="lars")
    line = command(config, dataset)
    assert line.startswith("python -m tfsimclr.run --")
    named = dict(part[2:].split("=") for part in line.split()[3:])
    assert {"epochs", "optimizer", "image_size", "batch_size"} <= set(named)
    assert not {"learning_rate", "schedule", "precision", "workdir"} & set(named)
    # Without the data no setting can be left out.
    assert "--learning_rate=" in command(config)


def test_the_page_of_several_runs(tmp_path):
    folders = []
    for seed in range(2):
        config = {**dataclasses.asdict(report_runs.CONFIG), "seed": seed}
        changes = {"config": config, "seed": seed, "top1": 0.5 + 0.1 * seed}
        folders.append(report_runs.write_run(tmp_path / f"<b>run{seed}", **changes))
    other = {**dataclasses.asdict(report_runs.CONFIG), "temperature": 0.1}
    folders.append(
        report_runs.write_run(tmp_path / "warm", config=other, label_free=None)
    )
    runs = comparison.read(folders)
    assert comparison.varied_settings(runs) == ["temperature"]
    (group,) = comparison.groups(runs, ["temperature"])
    assert group["seeds"] == 2 and group["mean"] == pytest.approx(0.55)
    half = scipy.stats.t.ppf(0.975, 1) * np.std([0.5, 0.6], ddof=1) / np.sqrt(2)
    assert group["half"] == pytest.approx(half)
    found = Tags(comparison.comparison_page(runs))
    text = " ".join(found.text)
    assert "<b>run0" in text and not found.of("b") and not found.of("script")
    assert "temperature 0.5" in text and "55.00 %" in text
    assert len(found.of("svg")) == 3


@pytest.mark.parametrize("names", ["run", "run,run", "run,nothing"])
def test_what_cannot_be_compared_is_one_line(tmp_path, names):
    report_runs.write_run(tmp_path / "run")
    paths = ",".join(str(tmp_path / name) for name in names.split(","))
    with pytest.raises(UserError):
        report.compare(Config(mode="report", compare=paths))


def test_the_comparison_is_written_beside_the_runs(tmp_path):
    for name in ("a", "b"):
        report_runs.write_run(tmp_path / name)
    paths = f"{tmp_path / 'a'}, {tmp_path / 'b'}"
    path = report.compare(Config(mode="report", compare=paths))
    assert path == tmp_path / "comparison.html" and path.stat().st_size > 5000
