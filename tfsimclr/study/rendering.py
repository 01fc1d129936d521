"""Renders tables as Markdown and LaTeX, and draws the two figures of a study."""

import dataclasses
import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

from tfsimclr.study import plan

MISSING = "missing"
HEADINGS = {
    "batch_size": "Batch",
    "proj_layers": "Head layers",
    "optimizer": "Optimizer",
    "proj_activation": "Activation",
    "feature": "Feature",
    "peak_rate": "Peak rate",
    "learning_rate_scaling": "Scaling",
    "warmup_epochs": "Warm-up epochs",
    "schedule": "Schedule",
    "pred_layers": "Predictor layers",
    "ema_decay": "EMA decay",
    "ema_schedule": "EMA schedule",
    "proj_dim": "Head width",
    "proj_batch_norm": "Head batch norm",
}
COSTS = {
    "images_per_second": ("Images/s", "{:.0f}"),
    "memory_gb": ("Memory, GB", "{:.2f}"),
}
FEATURES = {
    "pixels": "Pixels",
    "random_h": "Untrained encoder",
    "init_h": "Initial weights",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Name of its CSV file.
        caption: The heading above it.
        numbers: The numbers for the CSV file.
        shown: The same as text, for Markdown and LaTeX.
    """

    name: str
    caption: str
    numbers: pd.DataFrame
    shown: pd.DataFrame


def comparison(name: str, caption: str, numbers: pd.DataFrame) -> Table:
    """Returns the table that compares experiments with the paper and the reference.

    Args:
        name: Name of the CSV file.
        caption: Heading of the table.
        numbers: One row per experiment; the columns of `tables.summary`, then the
            settings, then the columns of `COSTS`.
    """
    shown = pd.DataFrame({"Run": numbers["run"]})
    summarised = list(numbers.columns)[: list(numbers.columns).index("pairs") + 1]
    for column in numbers.columns.drop(summarised):
        heading = HEADINGS.get(column, column.replace("_", " ").capitalize())
        if column not in COSTS:
            shown[heading] = [setting_text(value) for value in numbers[column]]
    if numbers["paper"].notna().all():
        shown["Paper"] = [f"{x:.2f}" for x in numbers["paper"]]
    rows = numbers.to_dict("records")
    shown["Ours"] = [mean_text(row) for row in rows]
    reference = rows[0]["reference"]
    shown[f"Difference to {reference}"] = [difference_text(row) for row in rows]
    for column, (heading, form) in COSTS.items():
        if column in numbers:
            values = numbers[column]
            shown[heading] = [MISSING if pd.isna(x) else form.format(x) for x in values]
    shown["Seeds"] = [f"{x['seeds']} of {x['planned']}" for x in rows]
    return Table(name, caption, numbers, shown)


def setting_text(value) -> str:
    """Returns the value of a setting as text."""
    if pd.isna(value):
        return MISSING
    if not isinstance(value, float):
        return str(value)
    # pandas turns a column of integers into floats if one value is missing.
    return str(int(value)) if value.is_integer() else f"{value:.3g}"


def mean_text(row: dict) -> str:
    """Returns "70.25 ± 0.31", "70.25 (one seed)" or "missing"."""
    if not row["seeds"]:
        return MISSING
    if row["seeds"] == 1:
        return f"{row['mean']:.2f} (one seed)"
    return f"{row['mean']:.2f} ± {row['deviation']:.2f}"


def difference_text(row: dict) -> str:
    """Returns "+1.66 [+0.90, +2.42]", or why there is no such interval."""
    if row["run"] == row["reference"]:
        return "reference" if row["seeds"] else MISSING
    if not row["pairs"]:
        return MISSING
    if row["pairs"] == 1:
        return f"{row['difference']:+.2f} (one seed, no interval)"
    text = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
    return text if row["pairs"] == row["seeds"] else f"{text} ({row['pairs']} pairs)"


def varied(setting: str, first: str, numbers: pd.DataFrame) -> list[Table]:
    """Returns the scores over the values of a setting, and their differences.

    Args:
        setting: The setting that varies, such as batch_size.
        first: Name of the flagfile that the others are compared with.
        numbers: One row per flagfile and value; the columns of `tables.varied_tables`.
    """
    name = HEADINGS.get(setting, setting)
    rows = numbers.to_dict("records")
    texts = {
        setting: [mean_text(row) for row in rows],
        f"{setting}_differences": [difference_text(row) for row in rows],
        f"{setting}_seconds": [
            MISSING if pd.isna(row["seconds"]) else f"{row['seconds']:.0f}"
            for row in rows
        ],
    }
    captions = {
        setting: f"{name}: top-1 over its values",
        f"{setting}_differences": f"{name}: difference to {first} at the same value",
        f"{setting}_seconds": f"{name}: seconds of pretraining",
    }
    tables = []
    for table, text in texts.items():
        cells = numbers.assign(text=text).pivot(
            index="file", columns="value", values="text"
        )
        cells = cells.reindex(numbers["file"].unique()).fillna(MISSING)
        cells.columns = [f"{name} {value}" for value in cells.columns]
        shown = cells.rename_axis("Run").reset_index()
        tables.append(Table(table, captions[table], numbers, shown))
    return tables


def every_feature(numbers: pd.DataFrame) -> Table:
    """Returns the table of all features, with the mean of an experiment's seeds.

    Args:
        numbers: Columns row (the experiment), seed, feature, linear, knn; the last two
            are NaN for a missing run.
    """
    known = numbers["feature"].dropna().unique()
    heads = sorted(name for name in known if name.startswith("head_"))
    # Only runs with --init have the feature init_h.
    baselines = [name for name in FEATURES if name in known or name != "init_h"]
    columns = [*baselines, "h", *heads, "z"]
    lines = []
    for name, all_seeds in numbers.groupby("row", sort=False):
        for seed, of_run in all_seeds.groupby("seed", sort=False):
            lines.append({"Run": name, "Seed": str(seed), **cells(of_run, columns)})
        finished = all_seeds.dropna(subset="linear")
        seeds = finished["seed"].nunique()
        if seeds > 1:
            groups = finished.groupby("feature", as_index=False)
            means = groups[["linear", "knn"]].mean()
            label = f"mean of {seeds}"
            lines.append({"Run": name, "Seed": label, **cells(means, columns)})
    shown = pd.DataFrame(lines).rename(columns=FEATURES)
    caption = "Not in the paper: top-1 of every feature, linear classifier / k-NN"
    return Table("features", caption, numbers, shown)


def cells(scores: pd.DataFrame, columns: list[str]) -> dict[str, str]:
    """Returns {feature: "linear / k-NN"} of one run, in percent."""
    scores = scores.dropna(subset="linear").set_index("feature")
    if scores.empty:
        return dict.fromkeys(columns, MISSING)
    return {
        name: f"{scores.linear[name]:.2f} / {scores.knn[name]:.2f}"
        if name in scores.index
        else "-"  # the head has no such layer
        for name in columns
    }


def markdown(tables: list[Table], notes: list[str]) -> str:
    """Returns the notes and tables as Markdown."""
    text = "# Tables\n\n" + "".join(f"* {note.strip()}\n" for note in notes)
    for table in tables:
        # Without parsing numbers: it would show 70.20 as 70.2.
        body = table.shown.to_markdown(
            index=False, tablefmt="github", disable_numparse=True
        )
        text += f"\n## {table.caption}\n\n{body}\n"
    return text


def latex(tables: list[Table]) -> str:
    """Returns the tables as LaTeX that needs no package."""
    text = ""
    for table in tables:
        style = table.shown.style.hide(axis="index").format(escape="latex")
        style = style.format_index(escape="latex", axis="columns")
        rules = ("toprule", "midrule", "bottomrule")  # the names are those of booktabs
        style = style.set_table_styles(
            [{"selector": rule, "props": ":hline;"} for rule in rules]
        )
        columns = "l" * table.shown.shape[1]
        caption = _escape(table.caption.partition(": ")[2])
        body = style.to_latex(column_format=columns, caption=caption)
        text += f"% {table.caption}\n" + body.replace("±", r"$\pm$") + "\n"
    return text


def _escape(text: str) -> str:
    for character in "%_&#":
        text = text.replace(character, f"\\{character}")
    return text


def draw_intervals(
    rows: pd.DataFrame, reference: tuple[str, float], path: pathlib.Path
) -> None:
    """Draws every experiment's difference to the reference, beside the paper's.

    Args:
        rows: One row per experiment, with the columns of `tables.summary`.
        reference: Name of the reference, and its top-1 in the paper or NaN.
        path: The PNG file.
    """
    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(rows)))
    axes.axvline(0, color="grey", linewidth=0.8)
    places = range(len(rows))
    axes.scatter(
        rows["paper"] - reference[1], places, marker="x", color="grey", label="paper"
    )
    several, single = rows["pairs"] > 1, rows["pairs"] == 1
    axes.errorbar(
        rows["difference"][several],
        [i for i in places if several[i]],
        xerr=(rows["high"] - rows["difference"])[several],
        fmt="o",
        capsize=3,
        label="ours, 95 % interval",
    )
    axes.scatter(
        rows["difference"][single],
        [i for i in places if single[i]],
        facecolors="none",
        edgecolors="tab:blue",
        label="ours, one seed: no interval",
    )
    labels = [
        f"{row.run} ({MISSING})" if not row.seeds else row.run
        for row in rows.itertuples()
    ]
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlabel(f"top-1 minus that of {reference[0]}, points")
    axes.legend(fontsize=8)
    save(figure, path)


def draw_varied(table: Table, path: pathlib.Path) -> None:
    """Draws top-1 over the values of a setting, one line for each flagfile.

    Bands are 95 % intervals of the mean; one seed has none.

    Args:
        table: The first table of `varied`.
        path: The PNG file.
    """
    figure, axes = plt.subplots(figsize=(7, 4))
    values = sorted(table.numbers["value"].unique())
    for name, of_file in table.numbers.groupby("file", sort=False):
        of_file = of_file.dropna(subset="mean").sort_values("value")
        places = [values.index(value) for value in of_file["value"]]
        (line,) = axes.plot(places, of_file["mean"], marker="o", label=name)
        low = of_file["mean"] - of_file["half_width"]
        high = of_file["mean"] + of_file["half_width"]
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15)
    axes.set_xticks(range(len(values)), [str(value) for value in values])
    axes.set_xlabel(HEADINGS.get(table.name, table.name))
    axes.set_ylabel("top-1, %")
    axes.legend(fontsize=8)
    save(figure, path)


def draw_curves(runs: list[plan.Run], path: pathlib.Path) -> None:
    """Draws loss and contrastive top-1 of every run over the epochs.

    Runs of the same experiment have the same colour and line style.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    experiments = list(dict.fromkeys(run.experiment for run in runs))
    styles = ("-", "--", ":")
    labelled: set[str] = set()
    for run in runs:
        try:
            history = pd.read_csv(run.folder / "history.csv")
        except (OSError, pd.errors.EmptyDataError):
            continue  # not started
        number = experiments.index(run.experiment)
        style = styles[number // 10 % len(styles)]
        look = {"color": f"C{number % 10}", "linestyle": style, "linewidth": 1}
        label = None if run.experiment in labelled else run.experiment
        labelled.add(run.experiment)
        left.plot(history["epoch"], history["loss_above_chance"], label=label, **look)
        right.plot(history["epoch"], 100 * history["contrastive_top1"], **look)
    left.set_ylabel("loss minus ln(2B - 1)")
    right.set_ylabel("contrastive top-1, %")
    for axes in (left, right):
        axes.set_xlabel("epoch")
    if labelled:
        left.legend(fontsize=7)
    save(figure, path)


def save(figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG and closes it."""
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)
