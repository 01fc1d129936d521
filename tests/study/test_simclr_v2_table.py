"""The table of SimCLRv2, on run folders that the tests write."""

import json

import pandas as pd
import pytest

from tfsimclr.study import simclr_v2

LARGE = {"backbone": "resnet18", "width": 0.25, "selective_kernel": False}
SMALL = {"backbone": "resnet18", "width": 0.125, "selective_kernel": True}


def write(folder, config, **result):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flags.txt").touch()
    config = {"proj_layers": 3, **config}
    (folder / "result.json").write_text(json.dumps({"config": config, **result}))


def finetuned(run, labels, layer, seed, top1):
    folder = run / "finetuned" / f"labels-{labels:g}-{layer}-seed{seed}"
    write(folder, LARGE, finetune={"labels": labels, "from": layer, "top1": top1})


@pytest.fixture
def runs(tmp_path):
    """Returns the folders of two seeds and of two students."""
    for seed, top1 in enumerate((0.6, 0.7)):
        run = tmp_path / f"v2-{seed}"
        write(run, LARGE, features={"h": {"top1": top1}, "z": {"top1": 0.1}})
        for again in (0, 1):
            finetuned(run, 0.1, "head_1", again, 0.5 + seed / 10 + again / 100)
        finetuned(run, 0.1, "h", 0, 0.9)  # not the paper's layer: in the second table
        finetuned(run, 1.0, "h", 0, 0.8)
    training = {"labels": 0.1, "from": "head_1", "encoder_of_teacher": LARGE}
    for name, config, heat, top1 in (
        ("same", LARGE, 0.1, 0.61),
        ("small", SMALL, 1.0, 0.62),
    ):
        scores = {**training, "temperature": heat, "top1": top1}
        write(tmp_path / name, config, distill=scores)
    return [tmp_path / name for name in ("v2-0", "v2-1", "same", "small")]


def lines(text, heading):
    """Returns the cells of the table under a heading."""
    part = text.split(f"## {heading}\n")[1].split("\n##")[0]
    rows = [row for row in part.splitlines() if row.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def make_tables(capsys, *arguments):
    simclr_v2.main([str(x) for x in arguments])
    return capsys.readouterr().out


def test_one_table_of_linear_fine_tuned_and_distilled(runs, capsys):
    head, _, *body = lines(make_tables(capsys, *runs), "SimCLRv2")
    assert head == ["Network", "Training", "Linear", "1 %", "10 %", "100 %"]
    assert body == [
        # mean and deviation (n - 1) by hand: 0.6, 0.7; 0.5, 0.51, 0.6, 0.61
        ["resnet18 0.25x", "fine-tuned", "65.00 ± 7.07"]
        + ["missing", "55.50 ± 5.80", "80.00 ± 0.00"],
        ["resnet18 0.25x", "distilled from resnet18 0.25x, temperature 0.1", "-"]
        + ["missing", "61.00 (one seed)", "missing"],
        ["resnet18 0.125x SK", "distilled from resnet18 0.25x, temperature 1", "-"]
        + ["missing", "62.00 (one seed)", "missing"],
    ]


def test_the_second_table_has_the_other_layers(runs, capsys):
    rows = lines(make_tables(capsys, *runs), "Every layer")
    network = ["resnet18 0.25x", "fine-tuned"]
    assert [*network, "h", "10 %", "90.00 ± 0.00", "2"] in rows
    assert [*network, "head_1", "10 %", "55.50 ± 5.80", "4"] in rows


def test_the_files_hold_the_numbers(runs, capsys, tmp_path):
    text = make_tables(capsys, *runs, f"--out={tmp_path / 'out'}")
    written = (tmp_path / "out" / "table.md").read_text()
    assert written in text
    numbers = pd.read_csv(tmp_path / "out" / "overview.csv")
    row = numbers[(numbers.training == "fine-tuned") & (numbers.labels == 0.1)].iloc[0]
    assert row["mean"] == pytest.approx(55.5) and row["seeds"] == 4
    assert (tmp_path / "out" / "everything.csv").exists()


def test_missing_results_are_shown_as_missing(runs, capsys, tmp_path):
    (runs[0] / "finetuned" / "labels-0.01-head_1-seed0").mkdir()  # unfinished
    text = make_tables(capsys, runs[0])
    assert "Missing: " in text and "labels-0.01-head_1-seed0" in text
    body = lines(text, "SimCLRv2")[2:]
    assert body[0][3:] == ["missing", "50.50 ± 0.71", "80.00 (one seed)"]
    assert body[1] == ["missing", "distilled", "-", "missing", "missing", "missing"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="empty"):
        simclr_v2.main([str(tmp_path / "empty")])
    only_pretrained = tmp_path / "new"
    only_pretrained.mkdir()
    (only_pretrained / "flags.txt").touch()
    body = lines(make_tables(capsys, only_pretrained), "SimCLRv2")[2:]
    assert body[0] == ["missing", "fine-tuned", *["missing"] * 4]
