"""The tables of a study, on run folders that the tests write."""

import json
import math
import pathlib
import re
import statistics

import pandas as pd
import pytest

from tfsimclr.study import plan, rendering, runner, tables

ROOT = pathlib.Path(__file__).resolve().parents[2]

OVERRIDES = ["--dataset=textures", "--image_size=32", "--width=0.25", "--stem=medium"]
OVERRIDES += ["--epochs=2"]


@pytest.fixture
def study(tmp_path):
    """Returns a function: seeds, experiments -> a planned study without results."""

    def make(seeds=3, experiments="flags/paper", vary=None):
        places = ",".join(str(ROOT / place) for place in experiments.split(","))
        files = plan.experiment_files(places)
        study = runner.Study(tmp_path, plan.settings_in(OVERRIDES))
        study.add(*plan.plan(files, OVERRIDES, seeds, tmp_path, vary=vary))
        study.save()
        return study

    return make


def write_run(study, name, h, z=0.5, epochs=2, **changes):
    """Writes what a finished run leaves: its scores are h, and others near it."""
    run = study.runs[name]
    run.folder.mkdir()
    config = {**study.state["runs"][name]["config"], **changes}
    scores = {"pixels": 0.2, "random_h": 0.25, "h": h, "z": z}
    for i in range(1, config["proj_layers"]):
        scores[f"head_{i}"] = h - i / 100
    features = {k: {"top1": v, "knn": v - 0.05} for k, v in scores.items()}
    spent = {"epochs": epochs, "images_per_second": 100, "peak_memory_bytes": 1.5e9}
    spent["seconds"] = 7.0
    result = {"config": config, "pretrain": spent, "features": features}
    (run.folder / "result.json").write_text(json.dumps(result))
    history = ["epoch,loss_above_chance,contrastive_top1", "1,-0.5,0.1", "2,-1,0.2"]
    (run.folder / "history.csv").write_text("\n".join(history[: epochs + 1]) + "\n")


def make_tables(study, capsys):
    """Returns (Markdown, {table: numbers}) of a study."""
    tables.main([str(study.out)])
    capsys.readouterr()
    folder = study.out / "tables"
    numbers = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}
    return (folder / "tables.md").read_text("utf-8"), numbers


def split_cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def line(text, caption, *start):
    """Returns the cells of the row of a table that starts with these cells."""
    section = text.split(f"## {caption}")[1].split("\n## ")[0]
    rows = [split_cells(x) for x in section.splitlines() if x.startswith("|")]
    (row,) = [row for row in rows if row[: len(start)] == list(start)]
    return row


def test_every_experiment_of_the_paper_has_a_flagfile_and_a_table():
    assert set(tables.PAPER) == {p.stem for p in (ROOT / "flags/paper").glob("*.flags")}
    shown = [row for _, rows in tables.TABLES.values() for row in rows]
    assert sorted([*tables.BASELINES, *shown]) == sorted(tables.PAPER)


def test_the_paper_s_numbers_are_those_of_the_flagfiles():
    for row, (_, top1) in tables.PAPER.items():
        header = (ROOT / f"flags/paper/{row}.flags").read_text()
        assert f"the paper: {top1:.2f} %" in header


@pytest.mark.quick
def test_mean_deviation_and_paired_interval(study, capsys):
    study = study()
    base, lars = [0.60, 0.62, 0.61], [0.63, 0.64, 0.66]
    for seed in range(3):
        write_run(study, f"baseline_128-seed{seed}", base[seed])
        write_run(study, f"lars-seed{seed}", lars[seed])
    text, numbers = make_tables(study, capsys)
    gains = [100 * (a - b) for a, b in zip(lars, base, strict=True)]
    half = 4.30265273 * statistics.stdev(gains) / math.sqrt(3)
    row = numbers["table_IV"].set_index("row").loc["lars"]
    assert row["mean"] == pytest.approx(100 * statistics.mean(lars))
    assert row["deviation"] == pytest.approx(100 * statistics.stdev(lars))
    assert row["difference"] == pytest.approx(statistics.mean(gains))
    assert row["low"] == pytest.approx(statistics.mean(gains) - half)
    assert row["high"] == pytest.approx(statistics.mean(gains) + half)
    assert line(text, "Table IV", "Baseline 128 LARS") == [
        *("Baseline 128 LARS", "128", "2", "lars", "relu", "h", "69.85"),
        *("64.33 ± 1.53", "+3.33 [-0.46, +7.13]", "3 of 3"),
    ]
    assert line(text, "Table IV", "Baseline 128")[-2:] == ["reference", "3 of 3"]


def test_half_width_of_the_interval():
    # Two-sided 95 % quantiles of Student's t from a printed table.
    for count, quantile in ((2, 12.706), (3, 4.303), (11, 2.228), (31, 2.042)):
        values = pd.Series(range(count), dtype=float)
        expected = quantile * statistics.stdev(values) / math.sqrt(count)
        assert tables.half_width(values) == pytest.approx(expected, rel=2e-4)
    assert math.isnan(tables.half_width(pd.Series([1.0])))
    assert math.isnan(tables.half_width(pd.Series([], dtype=float)))


def test_every_table_repeats_the_baselines_in_the_order_of_the_paper(study, capsys):
    text, numbers = make_tables(study(), capsys)
    for number, (_, rows) in tables.TABLES.items():
        found = list(numbers[f"table_{number}"]["row"])
        assert found == ["baseline_128", "baseline_256", *rows]
    captions = re.findall(r"^## (Table \w+):", text, re.M)
    assert captions == [f"Table {n}" for n in ("I", "II", "III", "IV", "V", "VI")]


def test_a_study_without_results_is_missing_and_never_zero(study, capsys):
    study = study()
    text, numbers = make_tables(study, capsys)
    for number in tables.TABLES:
        table = numbers[f"table_{number}"]
        assert table[["mean", "deviation", "difference", "low"]].isna().all(axis=None)
        assert (table["seeds"] == 0).all()
    assert line(text, "Table V", "Baseline 128 layer4")[7:] == [
        *("missing", "missing", "0 of 3"),
    ]
    assert "0.00" not in text
    assert set(line(text, "Not in the paper: top-1", "tanh", "0")[2:]) == {"missing"}
    for figure in ("intervals.png", "curves.png"):
        data = (study.out / "tables" / figure).read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 5000


def test_z_is_read_from_the_run_that_it_shares(study, capsys):
    study = study(seeds=2)
    assert "simclr_z-seed0" not in study.runs
    for seed in range(2):
        write_run(study, f"baseline_128-seed{seed}", 0.7, z=0.65 + seed / 100)
    text, numbers = make_tables(study, capsys)
    row = numbers["table_II"].set_index("row").loc["simclr_z"]
    assert row["mean"] == pytest.approx(65.5)
    assert row["difference"] == pytest.approx(-4.5)
    assert line(text, "Table II", "SimCLR z")[5] == "z"
    assert line(text, "Table II", "Baseline 128")[5] == "h"


def test_one_seed_has_no_deviation_and_no_interval(study, capsys):
    study = study(seeds=1)
    write_run(study, "baseline_128-seed0", 0.60)
    write_run(study, "tanh-seed0", 0.58)
    text, numbers = make_tables(study, capsys)
    row = numbers["table_III"].set_index("row").loc["tanh"]
    assert row["mean"] == pytest.approx(58) and row["difference"] == pytest.approx(-2)
    assert row[["deviation", "low", "high"]].isna().all()
    assert line(text, "Table III", "Baseline 128 tanh")[7:] == [
        *("58.00 (one seed)", "-2.00 (one seed, no interval)", "1 of 1"),
    ]


def test_unequal_seeds_are_paired_by_seed(study, capsys):
    study = study(seeds=4)
    for seed, h in {0: 0.60, 1: 0.70, 3: 0.50}.items():
        write_run(study, f"baseline_128-seed{seed}", h)
    for seed, h in {1: 0.71, 2: 0.90, 3: 0.53}.items():
        write_run(study, f"layer3-seed{seed}", h)
    text, numbers = make_tables(study, capsys)
    row = numbers["table_V"].set_index("row").loc["layer3"]
    assert (row["seeds"], row["planned"], row["pairs"]) == (3, 4, 2)
    assert row["difference"] == pytest.approx(2)  # of 1 and 3: seeds 1 and 3
    assert row["mean"] == pytest.approx(100 * (0.71 + 0.90 + 0.53) / 3)
    row = line(text, "Table V", "Baseline 128 layer3")
    assert row[-1] == "3 of 4" and row[-2].endswith("(2 pairs)")


def test_without_the_reference_there_is_no_difference(study, capsys):
    study = study(seeds=2)
    for seed in range(2):
        write_run(study, f"tanh-seed{seed}", 0.58)
    text, _ = make_tables(study, capsys)
    assert line(text, "Table III", "Baseline 128 tanh")[7:] == [
        *("58.00 ± 0.00", "missing", "2 of 2"),
    ]


@pytest.mark.parametrize(
    "damage", ["partial", "other settings", "half a file", "no scores", "not a result"]
)
def test_a_failed_run_is_missing_and_named(study, capsys, damage):
    study = study(seeds=1)
    write_run(study, "baseline_128-seed0", 0.6)
    changes = {"partial": {"epochs": 1}, "other settings": {"width": 2.0}}
    write_run(study, "lars-seed0", 0.7, **changes.get(damage, {}))
    path = study.runs["lars-seed0"].folder / "result.json"
    whole = path.read_text()
    content = {
        "half a file": whole[:50],
        "no scores": json.dumps({**json.loads(whole), "features": {}}),
        "not a result": "[]",
    }
    path.write_text(content.get(damage, whole))
    study.state["runs"]["lars-seed0"].update(state="failed", message="No space left.")
    study.save()
    text, _ = make_tables(study, capsys)
    assert line(text, "Table IV", "Baseline 128 LARS")[7:9] == ["missing", "missing"]
    assert "Missing: lars-seed0 (failed) No space left." in text
    assert "1 of 8 runs are finished" in text


def test_an_experiment_outside_the_study_is_missing(study, capsys):
    study = study(seeds=1, experiments="flags/paper/baseline_128.flags")
    write_run(study, "baseline_128-seed0", 0.6)
    text, _ = make_tables(study, capsys)
    assert line(text, "Table VI", "Baseline 128 LARS layer4 (final)")[1:] == [
        *["missing"] * 5,
        *("70.67", "missing", "missing", "0 of 0"),
    ]


def test_every_feature_of_every_run(study, capsys):
    study = study(seeds=2)
    for seed in range(2):
        write_run(study, f"baseline_128-seed{seed}", 0.60 + seed / 10)
    write_run(study, "layer4-seed0", 0.7)
    text, numbers = make_tables(study, capsys)
    caption = "Not in the paper: top-1"
    head = "Pixels | Untrained encoder | h | head_1 | head_2 | head_3 | z"
    assert line(text, caption, "Run", "Seed")[2:] == head.split(" | ")
    pixels = ["20.00 / 15.00", "25.00 / 20.00"]
    assert line(text, caption, "baseline_128", "1")[2:] == [
        *pixels,
        *("70.00 / 65.00", "69.00 / 64.00", "-", "-", "50.00 / 45.00"),
    ]
    assert line(text, caption, "baseline_128", "mean of 2")[4] == "65.00 / 60.00"
    assert line(text, caption, "layer4", "0")[7] == "67.00 / 62.00"
    assert set(line(text, caption, "layer4", "1")[2:]) == {"missing"}
    with pytest.raises(ValueError):  # no such row
        line(text, caption, "layer4", "mean of 1")
    assert len(numbers["features"].query("row == 'layer4' and seed == 0")) == 7
    for run in study.runs:
        experiment, seed = run.split("-seed")
        assert line(text, caption, experiment, seed)


def test_learning_rates_have_a_table_of_their_own(study, capsys):
    study = study(seeds=1, experiments="flags/paper,flags/study/rates")
    write_run(study, "baseline_128-seed0", 0.6)
    write_run(study, "lars-seed0", 0.65)
    text, numbers = make_tables(study, capsys)
    rates = numbers["table_rates"].set_index("row")
    peaks = {"none": 0.3, "linear": 0.15, "sqrt": 0.075 * math.sqrt(128)}
    for rule, peak in peaks.items():
        for name, epochs in ((rule, 0), (f"{rule}_warmup", 1)):
            assert rates.loc[name, "peak_rate"] == pytest.approx(peak)
            assert rates.loc[name, "warmup_epochs"] == epochs
    assert len(rates) == 2 + 6
    row = line(text, "Not in the paper: rates", "sqrt warmup")
    assert row[:2] + row[3:9] == [
        *("sqrt warmup", "128", "0.075", "sqrt", "1", "cosine", "1e-06", "0.849"),
    ]
    assert row[9:] == [
        *("65.00 (one seed)", "+5.00 (one seed, no interval)", "100", "1.50", "1 of 1")
    ]


def test_a_study_without_the_paper_s_experiments_has_its_own_reference(study, capsys):
    study = study(
        seeds=2, experiments="flags/methods/simclr.flags,flags/methods/byol.flags"
    )
    for seed, h in ((0, 0.5), (1, 0.6)):
        write_run(study, f"simclr-seed{seed}", h)
        write_run(study, f"byol-seed{seed}", h + 0.1)
    text, numbers = make_tables(study, capsys)
    assert "Table I" not in text
    assert set(numbers) == {"table_methods", "features"}
    head = line(text, "Not in the paper: methods", "Run", "Method")
    assert "Predictor layers" in head and "Difference to simclr" in head
    assert head[-3:-1] == ["Images/s", "Memory, GB"]
    rows = numbers["table_methods"].set_index("row")
    assert rows.loc["byol", "difference"] == pytest.approx(10)
    assert line(text, "Not in the paper: methods", "simclr")[-4] == "reference"
    tables.main([str(study.out), "--reference=byol"])
    text = capsys.readouterr().out
    assert line(text, "Not in the paper: methods", "byol")[-4] == "reference"
    with pytest.raises(
        SystemExit,
        match="--reference=moco is not an experiment of the study: simclr, byol",
    ):
        tables.main([str(study.out), "--reference=moco"])


def test_latex_is_escaped_and_balanced(study, capsys):
    study = study(seeds=2)
    for seed in range(2):
        write_run(study, f"leaky_relu-seed{seed}", 0.6 + seed / 100)
    make_tables(study, capsys)
    text = (study.out / "tables" / "tables.tex").read_text("utf-8")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 7
    assert r"leaky\_relu" in text and r"60.50 $\pm$ 0.71" in text
    body = [x for x in text.splitlines() if not x.startswith("% ")]
    assert not re.search(r"(?<!\\)[_%#±]", "\n".join(body))
    columns = 0
    for x in body:
        if r"\begin{tabular}" in x:
            columns = x.count("l}") + len(re.findall(r"l(?=l)", x.split("{")[-1]))
        elif x.endswith(r"\\"):
            assert x.count("&") == columns - 1, x


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="has no study.json"):
        tables.main([str(tmp_path)])


def test_the_curves_are_those_of_all_runs(study, monkeypatch):
    study = study(seeds=2)
    for name in ("baseline_128-seed0", "baseline_128-seed1", "lars-seed0"):
        write_run(study, name, 0.6)
    figures = []
    monkeypatch.setattr(rendering, "save", lambda figure, path: figures.append(figure))
    rendering.draw_curves(list(study.runs.values()), "unused")
    left, right = figures[0].axes
    assert len(left.lines) == len(right.lines) == 3
    assert list(left.lines[0].get_ydata()) == [-0.5, -1]
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["baseline_128", "lars"]


def test_a_varied_setting_has_a_column_for_each_value(study, capsys):
    small = "flags/study/small_batch"
    made = study(
        2,
        f"{small}/nt_xent.flags,{small}/dcl.flags",
        plan.parse_vary("batch_size=16,64"),
    )
    assert made.experiments["dcl_16"]["own"] == {"loss": "dcl", "batch_size": 16}
    scores = {"nt_xent_16": 0.5, "dcl_16": 0.55, "nt_xent_64": 0.6}
    for name, score in scores.items():
        for seed in (0, 1):
            write_run(made, f"{name}-seed{seed}", score + seed / 100)
    text, numbers = make_tables(made, capsys)
    caption = "Batch: top-1 over its values"
    assert line(text, caption, "Run") == ["Run", "Batch 16", "Batch 64"]
    row = line(text, caption, "nt_xent")
    assert row == ["nt_xent", "50.50 ± 0.71", "60.50 ± 0.71"]
    assert line(text, caption, "dcl") == ["dcl", "55.50 ± 0.71", "missing"]
    row = line(text, "Batch: difference to nt_xent at the same value", "dcl")
    assert row == ["dcl", "+5.00 [+5.00, +5.00]", "missing"]
    row = line(text, "Batch: seconds of pretraining", "dcl")
    assert row == ["dcl", "7", "missing"]
    assert len(numbers["batch_size"]) == 4
    assert (made.out / "tables" / "batch_size.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "text", ["", "batch_size", "batch_size=", "batch_size=a", "x=1"]
)
def test_a_wrong_vary_is_refused(text):
    with pytest.raises(ValueError):
        plan.parse_vary(text)
