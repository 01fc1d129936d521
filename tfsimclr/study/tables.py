"""Makes the tables and figures of a study.

python scripts/tables.py runs/<study>

Reads a study folder of scripts/study.py, finished or not, and writes
runs/<study>/tables/: tables.md, tables.tex, a CSV per table, intervals.png and
curves.png; after a study with --vary=batch_size=... also batch_size.png.
"""

import argparse
import pathlib
import sys

import pandas as pd
import scipy.stats

from tfsimclr.errors import UserError
from tfsimclr.study import plan, rendering, runner
from tfsimclr.study.paper import BASELINES, PAPER, REFERENCE, TABLES

SETTINGS = ("batch_size", "proj_layers", "optimizer", "proj_activation")
NOT_SHOWN = ("workdir", "seed")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; `arguments` None takes those of the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=pathlib.Path, help="The --out of a study.")
    parser.add_argument(
        "--reference",
        help="Experiment to compare with (default: baseline_128, or else the first).",
    )
    options = parser.parse_args(arguments)
    folder = options.study.expanduser()
    try:
        study = Results(folder, options.reference)
    except UserError as error:
        sys.exit(f"tables: {error}")
    varied = varied_tables(study)
    tables = [*paper_tables(study), *varied, *extra_tables(study)]
    tables.append(features_table(study))
    out = folder / "tables"
    out.mkdir(exist_ok=True)
    for table in tables:
        table.numbers.to_csv(out / f"{table.name}.csv", index=False)
    markdown = rendering.markdown(tables, study.notes())
    (out / "tables.md").write_text(markdown, "utf-8")
    (out / "tables.tex").write_text(rendering.latex(tables), "utf-8")
    extra = [name for name in study.experiments if name not in PAPER]
    names = [*(PAPER if study.of_paper else ()), *extra]
    everything = pd.DataFrame([summary(study, name) for name in names])
    paper = PAPER.get(study.reference, (None, float("nan")))[1]
    reference = study.label(study.reference), paper
    rendering.draw_intervals(everything, reference, out / "intervals.png")
    for table in varied:
        if table.name in study.varied:
            rendering.draw_varied(table, out / f"{table.name}.png")
    runs = [study.runs[name] for name in study.in_order()]
    rendering.draw_curves(runs, out / "curves.png")
    print(markdown)
    print(f"Written to {out}.")


class Results:
    """The results of a study's runs, as far as they are finished.

    Args:
        folder: The study folder.
        reference: Experiment to compare with; None is Baseline 128, or the first.

    Attributes:
        experiments: {experiment: {"group", "own", "feature", "runs": {seed: run}}}.
        runs: {run: plan.Run}.
        results: {run: content of result.json}, of the finished runs only.
        of_paper: Whether any experiment is one of the paper's.
        reference: Experiment to compare with.

    Raises:
        UserError: If the folder has no study, or the study lacks the reference.
    """

    def __init__(self, folder: pathlib.Path, reference: str | None = None):
        if not (folder / "study.json").exists():
            raise UserError(
                f"{folder} has no study.json. Make it: scripts/study.py --out={folder}"
            )
        study = runner.Study(folder)
        self.state, self.runs = study.state, study.runs
        self.experiments = study.experiments
        if reference and reference not in self.experiments:
            raise UserError(
                f"--reference={reference} is not an experiment of the study: "
                f"{', '.join(self.experiments)}."
            )
        results = {name: run.result() for name, run in self.runs.items()}
        self.results = {name: result for name, result in results.items() if result}
        self.of_paper = any(name in PAPER for name in self.experiments)
        default = REFERENCE if self.of_paper else next(iter(self.experiments))
        self.reference = reference or default

    @property
    def varied(self) -> list[str]:
        """The settings of `--vary`."""
        settings = [entry.get("vary") for entry in self.experiments.values()]
        return list(dict.fromkeys(filter(None, settings)))

    def label(self, experiment: str) -> str:
        """Returns the name for readers, the paper's if it has the experiment."""
        if experiment in PAPER:
            return PAPER[experiment][0]
        return experiment.replace("_", " ")

    def top1(self, experiment: str) -> dict[str, float]:
        """Returns {seed: top-1 in percent} of the experiment's own feature."""
        entry = self.experiments.get(experiment, {"runs": {}})
        scores = {}
        for seed, run in entry["runs"].items():
            features = self.results.get(run, {}).get("features", {})
            if entry["feature"] in features:
                scores[seed] = 100 * features[entry["feature"]]["top1"]
        return scores

    def settings(self, experiment: str) -> dict:
        """Returns the settings, or an empty dict without such an experiment."""
        entry = self.experiments.get(experiment)
        if not entry:
            return {}
        config = self.state["runs"][next(iter(entry["runs"].values()))]["config"]
        return {**config, "feature": entry["feature"]}

    def in_order(self) -> list[str]:
        """Returns the names of the runs in the paper's order, then by seed."""
        order = [*PAPER, *self.experiments]

        def key(name: str) -> tuple[int, int]:
            run = self.runs[name]
            return order.index(run.experiment), run.config.seed

        return sorted(self.runs, key=key)

    def notes(self) -> list[str]:
        """Returns the sentences above the tables."""
        settings = plan.to_text(self.state["settings"])
        notes = [
            f"Settings for every experiment: `{settings}`.",
            f"{len(self.results)} of {len(self.runs)} runs are finished.",
            "Top-1 in percent on the whole test set: mean ± standard deviation over "
            f"the seeds. Difference to {self.label(self.reference)}: mean over the "
            "seeds that both have, with its 95 % interval (t distribution).",
        ]
        for name in self.in_order():
            if name not in self.results:
                entry = self.state["runs"][name]
                notes.append(f"Missing: {name} ({entry['state']}) {entry['message']}")
        return notes


def half_width(values: pd.Series) -> float:
    """Returns half the width of the 95 % confidence interval of the mean.

    Args:
        values: Independent values; for fewer than two the result is NaN.
    """
    if len(values) < 2:
        return float("nan")
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * values.sem())


def summary(study: Results, experiment: str) -> dict:
    """Returns the numbers of an experiment, NaN (pandas' None) for missing ones."""
    ours = pd.Series(study.top1(experiment), dtype=float)
    reference = pd.Series(study.top1(study.reference), dtype=float)
    difference = (ours - reference).dropna()  # aligned by seed
    if experiment == study.reference:
        difference = difference[:0]
    half = half_width(difference)
    planned = study.experiments.get(experiment, {"runs": {}})["runs"]
    return {
        "row": experiment,
        "run": study.label(experiment),
        "paper": PAPER.get(experiment, (None, None))[1],
        "reference": study.label(study.reference),
        "mean": ours.mean(),
        "deviation": ours.std(),  # over n - 1; NaN for one seed
        "seeds": len(ours),
        "planned": len(planned),
        "difference": difference.mean(),
        "low": difference.mean() - half,
        "high": difference.mean() + half,
        "pairs": len(difference),
    }


def paper_tables(study: Results) -> list[rendering.Table]:
    """Returns Tables I to VI, or none if the study has no experiment of the paper."""
    tables: list[rendering.Table] = []
    if not study.of_paper:
        return tables
    names = (*SETTINGS, "feature")
    for number, (title, experiments) in TABLES.items():
        numbers = pd.DataFrame(
            [
                {**summary(study, name), **select_settings(study, name, names)}
                for name in (*BASELINES, *experiments)
            ]
        )
        caption = f"Table {number}: {title}"
        tables.append(rendering.comparison(f"table_{number}", caption, numbers))
    return tables


def varied_tables(study: Results) -> list[rendering.Table]:
    """Returns three tables for each setting of `--vary`.

    The scores over its values, the differences to the first flagfile at the same value,
    and the seconds of pretraining.
    """
    tables = []
    for setting in study.varied:
        entries = {
            name: entry
            for name, entry in study.experiments.items()
            if entry.get("vary") == setting
        }
        first = next(iter(entries.values()))["file"]
        numbers = []
        for name, entry in entries.items():
            value = entry["own"][setting]
            scores = pd.Series(study.top1(name), dtype=float)
            reference = pd.Series(study.top1(f"{first}_{value}"), dtype=float)
            difference = (scores - reference).dropna()  # aligned by seed
            numbers.append(
                {
                    **{"file": entry["file"], "value": value},
                    **{"mean": scores.mean(), "half_width": half_width(scores)},
                    **{"deviation": scores.std(), "seeds": len(scores)},
                    **{"run": entry["file"], "reference": first},
                    "difference": difference.mean(),
                    "low": difference.mean() - half_width(difference),
                    "high": difference.mean() + half_width(difference),
                    "pairs": len(difference),
                    **seconds(study, name),
                }
            )
        tables += rendering.varied(setting, first, pd.DataFrame(numbers))
    return tables


def seconds(study: Results, experiment: str) -> dict[str, float]:
    """Returns the seconds of the pretraining, the mean over the runs."""
    names = study.experiments[experiment]["runs"].values()
    values = [
        study.results[n]["pretrain"]["seconds"] for n in names if n in study.results
    ]
    return {"seconds": pd.Series(values, dtype=float).mean()}


def extra_tables(study: Results) -> list[rendering.Table]:
    """Returns a table for every folder of experiments that are not in the paper."""
    groups: dict[str, list[str]] = {}
    for name, entry in study.experiments.items():
        if name not in PAPER:
            groups.setdefault(entry["group"], []).append(name)
    tables = []
    for group, of_group in groups.items():
        names = [n for n in BASELINES if n in study.experiments] + of_group
        settings = varied_settings(study, names)
        numbers = []
        for name in names:
            own = select_settings(study, name, settings)
            if "learning_rate_scaling" in settings:
                own["peak_rate"] = peak_rate(study, name)
            numbers.append({**summary(study, name), **own, **cost(study, name)})
        caption = f"Not in the paper: {group}"
        table = rendering.comparison(f"table_{group}", caption, pd.DataFrame(numbers))
        tables.append(table)
    return tables


def varied_settings(study: Results, experiments: list[str]) -> tuple[str, ...]:
    """Returns the names of the settings in which the experiments differ."""
    values: dict[str, set] = {}
    for experiment in experiments:
        for name, value in study.settings(experiment).items():
            values.setdefault(name, set()).add(str(value))
    return tuple(n for n, v in values.items() if len(v) > 1 and n not in NOT_SHOWN)


def cost(study: Results, experiment: str) -> dict[str, float]:
    """Returns images per second and peak memory in GB, means over the runs."""
    names = study.experiments[experiment]["runs"].values()
    runs = [study.results[n]["pretrain"] for n in names if n in study.results]
    speed = pd.Series([run.get("images_per_second") for run in runs], dtype=float)
    memory = pd.Series([run.get("peak_memory_bytes") for run in runs], dtype=float)
    return {"images_per_second": speed.mean(), "memory_gb": memory.mean() / 1e9}


def select_settings(study: Results, experiment: str, names: tuple[str, ...]) -> dict:
    """Returns the settings of these names.

    The value of a setting that is not set is "-", and without such an experiment it is
    None.
    """
    settings = study.settings(experiment)
    unset = "-" if settings else None
    return {n: unset if settings.get(n) is None else settings[n] for n in names}


def peak_rate(study: Results, experiment: str) -> float | None:
    """Returns the learning rate after scaling and warm-up."""
    # It loads TensorFlow, so it is imported only if a table shows the rate.
    from tfsimclr.optimizers import schedules

    settings = study.settings(experiment)
    names = ("learning_rate", "batch_size", "learning_rate_scaling")
    if not settings:
        return None
    return schedules.scaled_learning_rate(*(settings[name] for name in names))


def features_table(study: Results) -> rendering.Table:
    """Returns linear and k-NN top-1 of every feature of every run."""
    numbers = []
    for name in study.in_order():
        run = study.runs[name]
        scores = study.results.get(name, {}).get("features", {None: {}})
        for feature, score in scores.items():
            numbers.append(
                {
                    "row": run.experiment,
                    "seed": run.config.seed,
                    "feature": feature,
                    "linear": 100 * score.get("top1", float("nan")),
                    "knn": 100 * score.get("knn", float("nan")),
                }
            )
    return rendering.every_feature(pd.DataFrame(numbers))
