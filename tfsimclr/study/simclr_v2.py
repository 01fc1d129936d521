"""Makes the table of SimCLRv2: linear, fine-tuned and distilled networks.

python scripts/simclr_v2_table.py runs/v2 runs/v2-student --out=results/simclr_v2

Reads any number of run folders, finished or not: pretrained networks, with the
fine-tuned networks of --mode=finetune inside, and students of --mode=distill. Prints
the tables, and writes table.md and two CSV files to --out.
"""

import argparse
import json
import pathlib
import sys

import pandas as pd

from tfsimclr.study import rendering

FRACTIONS = (0.01, 0.1, 1.0)
KEY = ("network", "training", "layer", "labels")
DISTILLED = "distilled from"
NOTES = [
    "Top-1 in percent on the whole test set, after the last epoch: mean ± standard "
    "deviation over the seeds of the pretraining and of the fine-tuning.",
    "Linear: a linear classifier on the frozen h, with all labels. Fine-tuned: the "
    "whole network on this fraction of the labels, from the layer that SimCLRv2 uses "
    "(head_1; h with all labels). Distilled: a student trained without labels, whose "
    "teacher was fine-tuned on this fraction of the labels.",
]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; `arguments` None takes those of the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=pathlib.Path, nargs="+", help="Run folders.")
    parser.add_argument("--out", type=pathlib.Path, help="Folder for the files.")
    options = parser.parse_args(arguments)
    folders = [folder.expanduser() for folder in options.runs]
    others = [str(folder) for folder in folders if not is_run(folder)]
    if others:
        sys.exit(
            f"simclr_v2_table: expected run folders, but no flags.txt in {others}."
        )
    scores, notes = read(folders)
    tables = [overview(scores), everything(scores)]
    text = rendering.markdown(tables, [*NOTES, *notes])
    print(text)
    if options.out:
        out = options.out.expanduser()
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text(text, "utf-8")
        for table in tables:
            table.numbers.to_csv(out / f"{table.name}.csv", index=False)
        print(f"Written to {out}.")


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder is a run folder."""
    return (folder / "flags.txt").exists()


def read(folders: list[pathlib.Path]) -> tuple[pd.DataFrame, list[str]]:
    """Returns a table with a row per score, and a note per folder without a result."""
    rows: list[dict] = []
    notes = []
    for folder in folders:
        for place in (folder, *sorted((folder / "finetuned").glob("*"))):
            try:
                result = json.loads((place / "result.json").read_text("utf-8"))
            except (OSError, ValueError):
                notes.append(f"Missing: {place} has no result.json (not finished).")
                continue
            rows += score_rows(result)
    columns = [*KEY, "top1", "default"]
    return pd.DataFrame(rows, columns=columns), notes


def score_rows(result: dict) -> list[dict]:
    """Returns a row per score of a result.json, in percent.

    In a row, `labels` is a fraction, and `default` tells whether the layer is the one
    that SimCLRv2 uses.
    """
    config = result["config"]
    row = {"network": network(config), "default": True}
    if "features" in result:
        of_h = result["features"].get("h")
        row |= {"training": "linear", "labels": 1.0, "layer": "h"}
        return [{**row, "top1": 100 * of_h["top1"]}] if of_h else []
    training = result.get("distill") or result["finetune"]
    if training["top1"] is None:
        return []
    row |= {"labels": training["labels"], "top1": 100 * training["top1"]}
    if "distill" in result:
        row["layer"] = "h"
        row["training"] = (
            f"{DISTILLED} {network(training['encoder_of_teacher'])}, temperature "
            f"{training['temperature']:g}"
        )
    else:
        default_layer = (
            "h" if training["labels"] == 1 or config["proj_layers"] == 1 else "head_1"
        )
        row["default"] = training["from"] == default_layer
        row |= {"training": "fine-tuned", "layer": training["from"]}
    return [row]


def network(config: dict) -> str:
    """Returns "resnet18 0.25x", or "resnet152 3x SK"."""
    selective = " SK" if config["selective_kernel"] else ""
    return f"{config['backbone']} {config['width']:g}x{selective}"


def overview(scores: pd.DataFrame) -> rendering.Table:
    """Returns the paper's table.

    It has a row per network and training, and a column per fraction of the labels.
    """
    fractions = [*FRACTIONS, *sorted(set(scores["labels"]) - set(FRACTIONS))]
    default = scores[scores["default"].astype(bool)]
    numbers, shown = [], []

    def add(name, training, linear):
        cells = {"Network": name, "Training": training}
        kinds = [("linear", 1.0)] if linear else []
        for kind, fraction in [*kinds, *((training, f) for f in fractions)]:
            key = {"network": name, "training": kind, "labels": fraction}
            rows = (default[list(key)] == pd.Series(key)).all(axis=1)
            numbers.append({**key, **summary(default[rows]["top1"])})
            heading = "Linear" if kind == "linear" else f"{100 * fraction:g} %"
            cells[heading] = rendering.mean_text(numbers[-1])
        shown.append({"Network": "", "Training": "", "Linear": "-", **cells})

    is_student = default["training"].astype(str).str.startswith(DISTILLED)
    pretrained = default[~is_student]["network"].unique()
    for name in pretrained if len(pretrained) else [rendering.MISSING]:
        add(name, "fine-tuned", linear=True)
    students = default[is_student][["network", "training"]].drop_duplicates()
    for name, training in students.itertuples(index=False):
        add(name, training, linear=False)
    if students.empty:
        add(rendering.MISSING, "distilled", linear=False)
    return rendering.Table(
        "overview", "SimCLRv2", pd.DataFrame(numbers), pd.DataFrame(shown)
    )


def everything(scores: pd.DataFrame) -> rendering.Table:
    """Returns a table of every network, training, layer and fraction of the labels."""
    numbers = []
    for key, group in scores.groupby(list(KEY), sort=False):
        numbers.append({**dict(zip(KEY, key, strict=True)), **summary(group["top1"])})
    shown = pd.DataFrame(
        {
            "Network": [row["network"] for row in numbers],
            "Training": [row["training"] for row in numbers],
            "Classifier on": [row["layer"] for row in numbers],
            "Labels": [f"{100 * row['labels']:g} %" for row in numbers],
            "Top-1": [rendering.mean_text(row) for row in numbers],
            "Seeds": [str(row["seeds"]) for row in numbers],
        }
    )
    caption = "Every layer"
    return rendering.Table("everything", caption, pd.DataFrame(numbers), shown)


def summary(top1: pd.Series) -> dict:
    """Returns mean, standard deviation (over n - 1) and number of the scores."""
    return {"mean": top1.mean(), "deviation": top1.std(), "seeds": len(top1)}
