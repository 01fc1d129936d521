"""Makes the paper's tables and figures from a study.

python scripts/tables.py runs/<study>

Reads what scripts/study.py left, finished or not, and writes runs/<study>/tables/:
tables.md, tables.tex, a CSV per table, intervals.png and curves.png.
"""

import argparse
import pathlib
import sys

import pandas as pd
import study_runs
import tables_output

# "Small Batch SimCLR": top-1 in percent, in the order of the paper.
PAPER = {
    "baseline_128": ("Baseline 128", 68.59),
    "baseline_256": ("Baseline 256", 71.59),
    "simclr_z": ("SimCLR z", 67.54),
    "tanh": ("Baseline 128 tanh", 67.95),
    "leaky_relu": ("Baseline 128 LeakyReLU", 68.84),
    "lars": ("Baseline 128 LARS", 69.85),
    "layer3": ("Baseline 128 layer3", 69.53),
    "layer4": ("Baseline 128 layer4", 70.25),
    "lars_layer4": ("Baseline 128 LARS layer4 (final)", 70.67),
}
BASELINES = ("baseline_128", "baseline_256")
REFERENCE = "baseline_128"
TABLES = {
    "I": ("Baselines", ()),
    "II": ("Classifier on z", ("simclr_z",)),
    "III": ("Activation of the head", ("tanh", "leaky_relu")),
    "IV": ("LARS", ("lars",)),
    "V": ("Layers of the head", ("layer3", "layer4")),
    "VI": ("Final model", ("lars_layer4",)),
}
SETTINGS = ("batch_size", "proj_layers", "optimizer", "proj_activation")
RATE_SETTINGS = ("optimizer", "learning_rate_scaling", "warmup_epochs", "schedule")
# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=pathlib.Path, help="The --out of a study.")
    folder = parser.parse_args(arguments).study.expanduser()
    if not (folder / "study.json").exists():
        sys.exit(
            f"tables: {folder} has no study.json. Make it: scripts/study.py --out="
        )
    study = Results(folder)
    tables = paper_tables(study) + extra_tables(study) + [features_table(study)]
    out = folder / "tables"
    out.mkdir(exist_ok=True)
    for table in tables:
        table.numbers.to_csv(out / f"{table.name}.csv", index=False)
    notes = study.notes()
    (out / "tables.md").write_text(tables_output.markdown(tables, notes), "utf-8")
    (out / "tables.tex").write_text(tables_output.latex(tables), "utf-8")
    extra = [name for name in study.rows if name not in PAPER]
    everything = pd.DataFrame([summary(study, name) for name in (*PAPER, *extra)])
    tables_output.draw_intervals(everything, PAPER[REFERENCE], out / "intervals.png")
    runs = [study.runs[name] for name in study.in_order()]
    tables_output.draw_curves(runs, out / "curves.png")
    print(tables_output.markdown(tables, notes))
    print(f"Written to {out}.")


class Results:
    """What the runs of a study gave, as far as they have finished.

    Attributes:
        rows: {row: {"group", "own", "feature", "runs": {seed: run}}}.
        runs: {run: study_plan.Run}.
        found: {run: content of result.json}, of the finished runs only.
    """

    def __init__(self, folder: pathlib.Path):
        study = study_runs.Study(folder)
        self.state, self.runs = study.state, study.runs
        self.rows = study.state["rows"]
        self.found = {n: x for n, run in self.runs.items() if (x := run.result())}

    def top1(self, row: str) -> dict[str, float]:
        """Returns {seed: top-1 in percent} of a row's own feature."""
        entry = self.rows.get(row, {"runs": {}})
        scores = {}
        for seed, run in entry["runs"].items():
            feature = self.found.get(run, {}).get("features", {}).get(entry["feature"])
            if feature:
                scores[seed] = 100 * feature["top1"]
        return scores

    def settings(self, row: str) -> dict:
        """Returns the settings of a row, empty if the study does not have it."""
        entry = self.rows.get(row)
        if not entry:
            return {}
        config = self.state["runs"][next(iter(entry["runs"].values()))]["config"]
        return {**config, "feature": entry["feature"]}

    def in_order(self) -> list[str]:
        """Returns the names of the runs: rows as in the paper, then by seed."""
        order = [*PAPER, *self.rows]
        return sorted(
            self.runs,
            key=lambda name: (
                order.index(self.runs[name].row),
                self.runs[name].config.seed,
            ),
        )

    def notes(self) -> list[str]:
        """Returns what a reader must know beside the tables."""
        settings = " ".join(f"--{k}={v}" for k, v in self.state["settings"].items())
        notes = [
            f"Settings for every row: `{settings}`.",
            f"{len(self.found)} of {len(self.runs)} runs are finished.",
            "Top-1 in percent on the whole test set: mean ± standard deviation over "
            "the seeds. Difference to Baseline 128: mean over the seeds that both "
            "have, with its 95 % interval (t distribution).",
        ]
        for name in self.in_order():
            if name not in self.found:
                entry = self.state["runs"][name]
                notes.append(f"Missing: {name} ({entry['state']}) {entry['message']}")
        return notes


def summary(study: Results, row: str) -> dict:
    """Returns the numbers of a row; NaN (pandas' None) where there is none."""
    label, paper = PAPER.get(row, (row.replace("_", " "), None))
    ours = pd.Series(study.top1(row), dtype=float)
    reference = pd.Series(study.top1(REFERENCE), dtype=float)
    difference = (ours - reference).dropna()  # aligned by seed
    if row == REFERENCE:
        difference = difference[:0]
    half = half_interval(difference)
    return {
        "row": row,
        "run": label,
        "paper": paper,
        "mean": ours.mean(),
        "deviation": ours.std(),  # over n - 1; NaN for one seed
        "seeds": len(ours),
        "planned": len(study.rows.get(row, {"runs": {}})["runs"]),
        "difference": difference.mean(),
        "low": difference.mean() - half,
        "high": difference.mean() + half,
        "pairs": len(difference),
    }


def half_interval(values: pd.Series) -> float:
    """Returns half the width of the mean's 95 % interval, NaN for under two values."""
    count = len(values)
    if count < 2:
        return float("nan")
    quantile = T95[count - 2] if count - 2 < len(T95) else 1.960
    return quantile * values.std() / count**0.5


def paper_tables(study: Results) -> list[tables_output.Table]:
    tables = []
    for number, (title, rows) in TABLES.items():
        numbers = pd.DataFrame(
            [
                {**summary(study, row), **chosen(study, row, (*SETTINGS, "feature"))}
                for row in (*BASELINES, *rows)
            ]
        )
        caption = f"Table {number}: {title}"
        tables.append(tables_output.compared(f"table_{number}", caption, numbers))
    return tables


def extra_tables(study: Results) -> list[tables_output.Table]:
    """Returns a table for every folder of rows that the paper does not have."""
    groups = {}
    for row, entry in study.rows.items():
        if row not in PAPER:
            groups.setdefault(entry["group"], []).append(row)
    tables = []
    for group, rows in groups.items():
        numbers = []
        for row in (*BASELINES, *rows):
            rates = chosen(study, row, RATE_SETTINGS)
            numbers.append(
                {**summary(study, row), "peak_rate": peak_rate(study, row), **rates}
            )
        caption = f"Not in the paper: {group}"
        name = f"table_{group}"
        tables.append(tables_output.compared(name, caption, pd.DataFrame(numbers)))
    return tables


def chosen(study: Results, row: str, names: tuple) -> dict:
    settings = study.settings(row)
    return {name: settings.get(name) for name in names}


def peak_rate(study: Results, row: str) -> float | None:
    """Returns the learning rate after scaling and warm-up."""
    from tfsimclr import schedules  # loads TensorFlow: only where a table shows it

    settings = study.settings(row)
    names = ("learning_rate", "batch_size", "learning_rate_scaling")
    if not settings:
        return None
    return schedules.scaled_learning_rate(*(settings[name] for name in names))


def features_table(study: Results) -> tables_output.Table:
    """Returns linear and kNN top-1 of every feature of every run."""
    numbers = []
    for name in study.in_order():
        run = study.runs[name]
        scores = study.found.get(name, {}).get("features", {None: {}})
        for feature, score in scores.items():
            numbers.append(
                {
                    "row": run.row,
                    "seed": run.config.seed,
                    "feature": feature,
                    "linear": 100 * score.get("top1", float("nan")),
                    "knn": 100 * score.get("knn", float("nan")),
                }
            )
    return tables_output.every_feature(pd.DataFrame(numbers))


if __name__ == "__main__":
    main()
