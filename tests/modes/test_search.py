"""Search in an embedding file: what was planted is found, and shown."""

import csv
import errno
import os
import pathlib
import shutil
import sys

import command_line
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from last_words import last_words
from PIL import Image, ImageEnhance

import tfsimclr
from tfsimclr import files, run
from tfsimclr.errors import UserError
from tfsimclr.modes import contact_sheet, search
from tfsimclr.settings import config as configs

COUNT = 30


@pytest.fixture(scope="module")
def once(finished_once, tmp_path_factory):
    """Returns a folder with a run and the embeddings of photographs, three copied."""
    _, dataset, folder = finished_once
    root = tmp_path_factory.mktemp("search")
    shutil.copytree(folder, root / "run")
    os.mkdir(root / "photos")
    for index in range(COUNT):
        image = Image.fromarray(dataset.unlabeled.images[index])
        image.save(root / f"photos/{index:02}.png")
        if index in (3, 7, 11):
            ImageEnhance.Brightness(image).enhance(1.02).save(
                root / f"photos/{index:02}_copy.png"
            )
    Image.new("RGB", (16, 16), (255, 0, 255)).save(root / "photos/odd.png")
    tfsimclr.embed(
        root / "run",
        root / "photos",
        ("h", "z"),
        output=root / "run/embeddings.parquet",
    )
    return root


@pytest.fixture
def folder(once, tmp_path, monkeypatch):
    """Returns a working directory with the run; the photographs are not copied."""
    shutil.copytree(once / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return once / "photos"


def command(*arguments):
    """Runs `--mode=search` with the embeddings of the run, in this process."""
    command_line.command("--mode=search", *arguments)


def table(name):
    with open(f"run/search/{name}.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_query_finds_its_copy_and_not_itself(folder, capsys):
    query = folder / "07.png"
    command("--workdir=run", f"--query={query}", "--top=5")
    rows = table("similar")
    assert [row["rank"] for row in rows] == list("12345")
    assert rows[0]["path"] == str(folder / "07_copy.png")
    assert {row["query"] for row in rows} == {str(query)}
    assert str(query) not in {row["path"] for row in rows}
    similarities = [float(row["similarity"]) for row in rows]
    assert similarities == sorted(similarities, reverse=True) and similarities[0] > 0.99
    printed = capsys.readouterr().out
    assert f"Similar to {query}" in printed and "07_copy.png" in printed
    # The query at the left, the most similar image beside it.
    sheet = np.asarray(Image.open("run/search/similar.png"))
    left = contact_sheet.GAP + contact_sheet.TILE // 2
    for column, path in enumerate((query, folder / "07_copy.png")):
        x = left + column * (contact_sheet.TILE + contact_sheet.GAP)
        colour = np.asarray(Image.open(path).convert("RGB"))[7:9, 7:9].mean((0, 1))
        np.testing.assert_allclose(sheet[left, x], colour, atol=60)
    assert sheet.shape[1] == 6 * (contact_sheet.TILE + contact_sheet.GAP) + 6


def test_a_folder_of_queries_in_another_layer(folder, tmp_path):
    os.mkdir("queries")
    for name in ("03.png", "11.png"):
        shutil.copy(folder / name, "queries")
    command("--workdir=run", "--query=queries", "--top=2", "--layers=z")
    rows = table("similar")
    assert len(rows) == 4
    # A copy at another path is found: it is another image of the collection.
    assert rows[0]["path"] == str(folder / "03.png")
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-4)


def test_the_model_may_be_an_export(folder):
    command(f"--workdir={pathlib.Path('run')}", f"--query={folder / '03.png'}")
    of_run = table("similar")
    config = configs.Config(mode="export", workdir=os.path.abspath("run"))
    run.run(config)
    command(
        "--workdir=run/saved_model",
        "--embeddings=run/embeddings.parquet",
        f"--query={folder / '03.png'}",
    )
    assert [row["path"] for row in table("similar")][0] == of_run[0]["path"]


def test_duplicates_outliers_and_a_diverse_subset(folder, capsys):
    command(
        "--embeddings=run/embeddings.parquet",
        *("--duplicates=0.999", "--outliers=3", "--neighbors=4", "--select=8"),
    )
    groups = {}
    for row in table("duplicates"):
        groups.setdefault(row["group"], []).append(os.path.basename(row["path"]))
        assert float(row["similarity"]) >= 0.999
    for index in ("03", "07", "11"):
        assert any(
            {f"{index}.png", f"{index}_copy.png"} <= set(group)
            for group in groups.values()
        )
    outliers = table("outliers")
    assert os.path.basename(outliers[0]["path"]) == "odd.png" and len(outliers) == 3
    selected = [os.path.basename(row["path"]) for row in table("selected")]
    assert len(set(selected)) == 8 and "odd.png" in selected
    for name in ("duplicates", "outliers", "selected"):
        assert Image.open(f"run/search/{name}.png").format == "PNG"
        assert f"{name}.csv" in capsys.readouterr().out or name != "duplicates"


def test_an_index_finds_the_same(folder, capsys):
    pytest.importorskip("faiss")
    asked = (
        *("--workdir=run", f"--query={folder / '07.png'}", "--top=5"),
        *("--duplicates=0.999", "--outliers=3", "--neighbors=4"),
    )
    command(*asked)
    exact = [table(name) for name in ("similar", "duplicates", "outliers")]
    assert "Index" not in capsys.readouterr().out
    command(*asked, "--search_index=ivf")
    (index,) = pathlib.Path("run").glob("embeddings.parquet.h-*.faiss")
    printed = capsys.readouterr().out
    assert f"Index: {index.absolute()}" in printed and "recall at 10: " in printed
    for name, expected in zip(
        ("similar", "duplicates", "outliers"), exact, strict=True
    ):
        for row, other in zip(table(name), expected, strict=True):
            assert row["path"] == other["path"]
    command(*asked, "--search_index=ivf")  # the index that is there
    assert "Building" not in capsys.readouterr().out


def test_the_index_of_other_content_is_not_used(folder):
    pytest.importorskip("faiss")
    command("--workdir=run", "--outliers=3", "--search_index=ivf")
    (index,) = pathlib.Path("run").glob("*.faiss")
    damaged = index.read_bytes()[:100]
    index.write_bytes(damaged)  # built again
    command("--workdir=run", "--outliers=3", "--search_index=ivf")
    assert len(index.read_bytes()) > 100
    rows = pq.read_table("run/embeddings.parquet")
    pq.write_table(rows.slice(0, 20), "run/embeddings.parquet")
    command("--workdir=run", "--outliers=20", "--search_index=ivf")
    assert not index.exists() and len(table("outliers")) == 20
    assert len(list(pathlib.Path("run").glob("*.faiss"))) == 1


def test_many_images_are_searched_by_an_index(folder, monkeypatch, capsys):
    pytest.importorskip("faiss")
    monkeypatch.setattr(search, "MAX_EXACT", 30)
    monkeypatch.setattr(search, "FEW_QUERIES", 9)
    query = ("--workdir=run", f"--query={folder / '07.png'}")
    command(*query)  # few queries need none
    assert not list(pathlib.Path("run").glob("*.faiss"))
    command("--workdir=run", "--duplicates=0.999")
    assert "Index: " in capsys.readouterr().out
    used = []
    top_k = search.search_index.SearchIndex.top_k
    monkeypatch.setattr(
        search.search_index.SearchIndex,
        "top_k",
        lambda *arguments: used.append(1) or top_k(*arguments),
    )
    command(*query)  # but use one that is there
    assert used and os.path.basename(table("similar")[0]["path"]) == "07_copy.png"


def test_without_faiss_the_search_is_exact_or_says_what_to_install(
    folder, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(search, "MAX_EXACT", 30)
    monkeypatch.setattr(search, "FEW_QUERIES", 9)
    command("--workdir=run", "--outliers=3")
    assert "pip install 'tfsimclr[search]'" in capsys.readouterr().out
    assert len(table("outliers")) == 3
    with pytest.raises(
        UserError, match=r"needs faiss: pip install 'tfsimclr\[search\]'"
    ):
        command("--workdir=run", "--outliers=3", "--search_index=ivf")


def test_neighbors_are_at_most_all_others(folder, capsys):
    command("--workdir=run", "--outliers=2", "--neighbors=99")
    assert "to their 33 nearest" in capsys.readouterr().out


def test_pictures_that_are_gone_are_gray(folder, tmp_path):
    shown = search.Shown.__new__(search.Shown)
    shown.paths, shown.ranges = [str(tmp_path / "gone.png")], {}
    assert shown.picture(0) is None
    sheet = contact_sheet.draw([[contact_sheet.Tile(None, "a text that is too long")]])
    assert sheet.getpixel((20, 20)) == (225, 225, 225)
    assert sheet.getpixel((sheet.width - 1, sheet.height - 1)) == (255, 255, 255)


def test_images_of_a_data_set_are_shown(finished_once, tmp_path, monkeypatch):
    config, _, run_dir = finished_once
    from tfsimclr.data import textures

    monkeypatch.setattr(textures, "SPLITS", {"unlabeled": 20, "train": 20, "test": 10})
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_dir, "run")
    cache = f"--cache_dir={config.cache_dir}"
    command_line.command("--mode=embed", "--workdir=run", "--images=textures", cache)
    command("--workdir=run", "--select=5", cache)
    assert table("selected")[0]["path"].startswith("textures/")
    sheet = np.asarray(Image.open("run/search/selected.png"))
    tile = sheet[10:90, 10:90]
    assert tile.std() > 5  # a texture, and not the gray square


@pytest.mark.promise("search-input")
def test_what_does_not_fit_is_one_line(folder, tmp_path, monkeypatch):
    query = f"--query={folder / '03.png'}"
    os.makedirs("empty")
    pathlib.Path("text.png").write_text("text")
    whole = pathlib.Path("run/embeddings.parquet").read_bytes()
    pathlib.Path("truncated.parquet").write_bytes(whole[: len(whole) // 2])
    pathlib.Path("a.csv").write_text("path\n")
    pq.write_table(pa.table({"x": [1]}), "foreign.parquet")
    meta = pq.read_schema("run/embeddings.parquet").metadata[b"tfsimclr"]
    other = pq.read_table("run/embeddings.parquet")
    changed = meta.replace(b'"model": "', b'"model": "0')
    pq.write_table(
        other.replace_schema_metadata({b"tfsimclr": changed}), "other.parquet"
    )
    short = pa.array([[1.0, 2.0]] * len(other), pa.list_(pa.float32(), 2))
    place = other.column_names.index("h")
    pq.write_table(other.set_column(place, "h", short), "mixed.parquet")
    cases = {
        "--workdir=run": "needs something to search for: --query, --duplicates",
        f"--workdir=run {query} --epochs=3": "--epochs means nothing to --mode=search",
        "--workdir=run --select=2 --top=3": "--top means nothing without --query",
        f"--workdir=run {query} --neighbors=3": "nothing without --outliers",
        "--workdir=run --select=2 --search_index=ivf": "means nothing to --select",
        "--workdir=run --duplicates=1.5": "--duplicates must be at most 1",
        f"--workdir=run {query} --layers=head_1": "holds the layers h, z, not head_1",
        "--workdir=run --query=text.png": "text.png.*not an image",
        "--workdir=run --query=empty": "no image files below .*empty",
        "--workdir=run --query=gone.png": "gone.png' does not exist",
        f"--embeddings=run/embeddings.parquet {query}": "needs --workdir, a run folder",
        f"--workdir=run {query} --embeddings=other.parquet": "made by another model",
        "--select=2 --embeddings=truncated.parquet": "cannot be read.*is truncated",
        "--select=2 --embeddings=foreign.parquet": "was not written by tfsimclr",
        "--select=2 --embeddings=mixed.parquet": "its columns are not those",
        "--select=2 --embeddings=a.csv": "a.csv cannot be searched.*parquet",
        "--select=2 --embeddings=none.parquet": "there is no embedding file",
        "--workdir=run --select=99": "between 1 and the 34 images there are, got 99",
        "--workdir=run --select=2 --output=text.png/a": "text.png/a",
    }
    for text, message in cases.items():
        with pytest.raises((UserError, OSError), match=message) as error:
            command(*text.split())
        assert "\n" not in str(error.value) and "1 images" not in str(error.value)
    monkeypatch.setattr(search, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match="34 features.* need 0.0 GB.*Embed fewer"):
        command("--workdir=run", "--select=2")
    command("--workdir=run", query)  # a block at a time


def test_damage_inside_of_the_file_is_named(folder):
    path = pathlib.Path("run/embeddings.parquet")
    content = bytearray(path.read_bytes())
    content[4:5000] = bytes(4996)
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged.*run --mode=embed again"):
        command("--workdir=run", "--select=2")


@pytest.mark.promise("full-disk")
def test_a_full_disk_is_one_line(folder, monkeypatch):
    config = configs.Config(mode="search", workdir="run", select=2)
    mode = run.run

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "flush", full)
    message = last_words(monkeypatch, action=lambda *_: mode(config))
    assert "selected.csv" in message and "No space left" in message


def test_free_memory_is_known():
    assert 1e8 < search.available_memory() < 1e15
