"""Makes the paper's tables and figures from a study.

python scripts/tables.py runs/<study>

Reads what scripts/study.py left, finished or not, and writes runs/<study>/tables/:
tables.md, tables.tex, a CSV per table, intervals.png and curves.png.
"""

import argparse
import pathlib
import sys

import intervals
import pandas as pd
import study_runs
import tables_output
from paper import BASELINES, PAPER, REFERENCE, TABLES

SETTINGS = ("batch_size", "proj_layers", "optimizer", "proj_activation")
NOT_SHOWN = ("workdir", "seed")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=pathlib.Path, help="The --out of a study.")
    parser.add_argument(
        "--reference", help="Row to compare with (Baseline 128, or else the first)."
    )
    options = parser.parse_args(arguments)
    folder = options.study.expanduser()
    if not (folder / "study.json").exists():
        sys.exit(
            f"tables: {folder} has no study.json. Make it: scripts/study.py --out="
        )
    study = Results(folder, options.reference)
    if options.reference and options.reference not in study.rows:
        there = ", ".join(study.rows)
        sys.exit(f"tables: --reference={options.reference} is no row: {there}.")
    tables = [*paper_tables(study), *extra_tables(study), features_table(study)]
    out = folder / "tables"
    out.mkdir(exist_ok=True)
    for table in tables:
        table.numbers.to_csv(out / f"{table.name}.csv", index=False)
    notes = study.notes()
    (out / "tables.md").write_text(tables_output.markdown(tables, notes), "utf-8")
    (out / "tables.tex").write_text(tables_output.latex(tables), "utf-8")
    extra = [name for name in study.rows if name not in PAPER]
    names = [*(PAPER if study.of_paper else ()), *extra]
    everything = pd.DataFrame([summary(study, name) for name in names])
    paper = PAPER.get(study.reference, (None, float("nan")))[1]
    reference = study.label(study.reference), paper
    tables_output.draw_intervals(everything, reference, out / "intervals.png")
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
        of_paper: Whether any row is one of the paper's.
        reference: Row to compare with: that asked for, Baseline 128, or the first.
    """

    def __init__(self, folder: pathlib.Path, reference: str | None = None):
        study = study_runs.Study(folder)
        self.state, self.runs = study.state, study.runs
        self.rows = study.state["rows"]
        self.found = {n: x for n, run in self.runs.items() if (x := run.result())}
        self.of_paper = any(row in PAPER for row in self.rows)
        default = REFERENCE if self.of_paper else next(iter(self.rows))
        self.reference = reference or default

    def label(self, row: str) -> str:
        return PAPER[row][0] if row in PAPER else row.replace("_", " ")

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
            f"the seeds. Difference to {self.label(self.reference)}: mean over the "
            "seeds that both have, with its 95 % interval (t distribution).",
        ]
        for name in self.in_order():
            if name not in self.found:
                entry = self.state["runs"][name]
                notes.append(f"Missing: {name} ({entry['state']}) {entry['message']}")
        return notes


def summary(study: Results, row: str) -> dict:
    """Returns the numbers of a row; NaN (pandas' None) where there is none."""
    ours = pd.Series(study.top1(row), dtype=float)
    reference = pd.Series(study.top1(study.reference), dtype=float)
    difference = (ours - reference).dropna()  # aligned by seed
    if row == study.reference:
        difference = difference[:0]
    half = intervals.half_width(difference)
    return {
        "row": row,
        "run": study.label(row),
        "paper": PAPER.get(row, (None, None))[1],
        "reference": study.label(study.reference),
        "mean": ours.mean(),
        "deviation": ours.std(),  # over n - 1; NaN for one seed
        "seeds": len(ours),
        "planned": len(study.rows.get(row, {"runs": {}})["runs"]),
        "difference": difference.mean(),
        "low": difference.mean() - half,
        "high": difference.mean() + half,
        "pairs": len(difference),
    }


def paper_tables(study: Results) -> list[tables_output.Table]:
    tables: list[tables_output.Table] = []
    if not study.of_paper:
        return tables
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
        rows = [row for row in BASELINES if row in study.rows] + rows
        settings = varied(study, rows)
        numbers = []
        for row in rows:
            own = chosen(study, row, settings)
            if "learning_rate_scaling" in settings:
                own["peak_rate"] = peak_rate(study, row)
            numbers.append({**summary(study, row), **own, **cost(study, row)})
        caption = f"Not in the paper: {group}"
        name = f"table_{group}"
        tables.append(tables_output.compared(name, caption, pd.DataFrame(numbers)))
    return tables


def varied(study: Results, rows: list[str]) -> tuple:
    """Returns the names of the settings in which rows differ."""
    seen: dict[str, set] = {}
    for row in rows:
        for name, value in study.settings(row).items():
            seen.setdefault(name, set()).add(str(value))
    return tuple(
        n for n, values in seen.items() if len(values) > 1 and n not in NOT_SHOWN
    )


def cost(study: Results, row: str) -> dict:
    """Returns a row's images per second and peak memory in GB, means over its runs."""
    runs = study.rows[row]["runs"].values()
    found = [study.found[run]["pretrain"] for run in runs if run in study.found]
    speed = pd.Series([run.get("images_per_second") for run in found], dtype=float)
    memory = pd.Series([run.get("peak_memory_bytes") for run in found], dtype=float)
    return {"images_per_second": speed.mean(), "memory_gb": memory.mean() / 1e9}


def chosen(study: Results, row: str, names: tuple) -> dict:
    """Returns settings of a row: None if there is no such row, "-" for one not set."""
    settings = study.settings(row)
    unset = "-" if settings else None
    return {n: unset if settings.get(n) is None else settings[n] for n in names}


def peak_rate(study: Results, row: str) -> float | None:
    """Returns the learning rate after scaling and warm-up."""
    from tfsimclr.optimizers import (
        schedules,  # loads TensorFlow: only where a table shows it
    )

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
