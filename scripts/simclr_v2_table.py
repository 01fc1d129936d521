"""Makes the table of SimCLRv2: linear, fine-tuned and distilled networks.

python scripts/simclr_v2_table.py runs/v2 runs/v2-student --out=results/simclr_v2

Reads any number of run folders, finished or not: pretrained ones, with what
--mode=finetune left in them, and students of --mode=distill. Writes table.md, two CSV
files, and prints the tables.
"""

import argparse
import json
import pathlib
import sys

import pandas as pd
import tables_output

SHARES = (0.01, 0.1, 1.0)
KEY = ("network", "training", "layer", "labels")
DISTILLED = "distilled from"
NOTES = [
    "Top-1 in percent on the whole test set, after the last epoch: mean ± standard "
    "deviation over the seeds, of the pretraining and of the fine-tuning alike.",
    "Linear: a classifier on the frozen h, with all labels. Fine-tuned: the whole "
    "network on this share of the labels, from the layer that SimCLRv2 takes (head_1, "
    "with all labels h). Distilled: without labels, from a teacher that was fine-tuned "
    "on this share of them.",
]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=pathlib.Path, nargs="+", help="Run folders.")
    parser.add_argument("--out", type=pathlib.Path, help="Folder for the files.")
    given = parser.parse_args(arguments)
    folders = [folder.expanduser() for folder in given.runs]
    strangers = [str(folder) for folder in folders if not is_run(folder)]
    if strangers:
        sys.exit(f"simclr_v2_table: no run folder (no flags.txt): {strangers}")
    scores, notes = read(folders)
    tables = [overview(scores), everything(scores)]
    text = tables_output.markdown(tables, [*NOTES, *notes])
    print(text)
    if given.out:
        out = given.out.expanduser()
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text(text, "utf-8")
        for table in tables:
            table.numbers.to_csv(out / f"{table.name}.csv", index=False)
        print(f"Written to {out}.")


def is_run(folder: pathlib.Path) -> bool:
    return (folder / "flags.txt").exists()


def read(folders: list[pathlib.Path]) -> tuple[pd.DataFrame, list[str]]:
    """Returns one row per score, and a note per folder without a result."""
    rows: list[dict] = []
    notes = []
    for folder in folders:
        for place in (folder, *sorted((folder / "finetuned").glob("*"))):
            try:
                result = json.loads((place / "result.json").read_text("utf-8"))
            except (OSError, ValueError):
                notes.append(f"Missing: {place} has no result.json (not finished).")
                continue
            rows += rows_of(result)
    columns = [*KEY, "top1", "default"]
    return pd.DataFrame(rows, columns=columns), notes


def rows_of(result: dict) -> list[dict]:
    """Returns the scores in a result.json, in percent."""
    config = result["config"]
    row = {"network": network(config), "default": True}
    if "features" in result:
        found = result["features"].get("h")
        row |= {"training": "linear", "labels": 1.0, "layer": "h"}
        return [{**row, "top1": 100 * found["top1"]}] if found else []
    about = result.get("distill") or result["finetune"]
    if about["top1"] is None:
        return []
    row |= {"labels": about["labels"], "top1": 100 * about["top1"]}
    if "distill" in result:
        row["layer"] = "h"
        row["training"] = (
            f"{DISTILLED} {network(about['encoder_of_teacher'])}, temperature "
            f"{about['temperature']:g}"
        )
    else:
        usual = "h" if about["labels"] == 1 or config["proj_layers"] == 1 else "head_1"
        row["default"] = about["from"] == usual
        row |= {"training": "fine-tuned", "layer": about["from"]}
    return [row]


def network(config: dict) -> str:
    """Returns "resnet18 0.25x", or "resnet152 3x SK"."""
    selective = " SK" if config["selective_kernel"] else ""
    return f"{config['backbone']} {config['width']:g}x{selective}"


def overview(scores: pd.DataFrame) -> tables_output.Table:
    """Returns the paper's table: a row per network and training, a column per share."""
    shares = [*SHARES, *sorted(set(scores["labels"]) - set(SHARES))]
    usual = scores[scores["default"].astype(bool)]
    numbers, shown = [], []

    def add(name, training, linear):
        cells = {"Network": name, "Training": training}
        kinds = [("linear", 1.0)] if linear else []
        for kind, share in [*kinds, *((training, share) for share in shares)]:
            wanted = {"network": name, "training": kind, "labels": share}
            rows = (usual[list(wanted)] == pd.Series(wanted)).all(axis=1)
            numbers.append({**wanted, **summary(usual[rows]["top1"])})
            heading = "Linear" if kind == "linear" else f"{100 * share:g} %"
            cells[heading] = tables_output.ours(numbers[-1])
        shown.append({"Network": "", "Training": "", "Linear": "-", **cells})

    taught = usual["training"].astype(str).str.startswith(DISTILLED)
    pretrained = usual[~taught]["network"].unique()
    for name in pretrained if len(pretrained) else [tables_output.MISSING]:
        add(name, "fine-tuned", linear=True)
    students = usual[taught][["network", "training"]].drop_duplicates()
    for name, training in students.itertuples(index=False):
        add(name, training, linear=False)
    if students.empty:
        add(tables_output.MISSING, "distilled", linear=False)
    return tables_output.Table(
        "overview", "SimCLRv2", pd.DataFrame(numbers), pd.DataFrame(shown)
    )


def everything(scores: pd.DataFrame) -> tables_output.Table:
    """Returns all that was tried, also from other layers, one row each."""
    numbers = []
    for key, group in scores.groupby(list(KEY), sort=False):
        numbers.append({**dict(zip(KEY, key, strict=True)), **summary(group["top1"])})
    shown = pd.DataFrame(
        {
            "Network": [row["network"] for row in numbers],
            "Training": [row["training"] for row in numbers],
            "Classifier on": [row["layer"] for row in numbers],
            "Labels": [f"{100 * row['labels']:g} %" for row in numbers],
            "Top-1": [tables_output.ours(row) for row in numbers],
            "Seeds": [str(row["seeds"]) for row in numbers],
        }
    )
    caption = "Every layer"
    return tables_output.Table("everything", caption, pd.DataFrame(numbers), shown)


def summary(top1: pd.Series) -> dict:
    """Returns mean, standard deviation (over n - 1) and number of the scores."""
    return {"mean": top1.mean(), "deviation": top1.std(), "seeds": len(top1)}


if __name__ == "__main__":
    main()
