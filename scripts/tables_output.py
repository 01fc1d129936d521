"""How tables look: Markdown, LaTeX, and the two figures."""

import dataclasses

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

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
    "ema": "Moving average",
    "ema_schedule": "Its schedule",
    "proj_dim": "Head width",
    "proj_batch_norm": "Head batch norm",
}
COSTS = {
    "images_per_second": ("Images/s", "{:.0f}"),
    "memory_gb": ("Memory, GB", "{:.2f}"),
}
FEATURES = {"pixels": "Pixels", "random_h": "Untrained encoder"}
LATEX = {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$"}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: `numbers` for the CSV, `shown` (text) for the reader."""

    name: str
    caption: str
    numbers: pd.DataFrame
    shown: pd.DataFrame


def compared(name: str, caption: str, numbers: pd.DataFrame) -> Table:
    """Returns the table of rows beside the paper and the reference.

    Args:
        name: Of the CSV.
        caption: Above the table.
        numbers: Columns of `tables.summary`, then settings, then those of `COSTS`.
    """
    shown = pd.DataFrame({"Run": numbers["run"]})
    summarised = list(numbers.columns)[: list(numbers.columns).index("pairs") + 1]
    for column in numbers.columns.drop(summarised):
        heading = HEADINGS.get(column, column.replace("_", " ").capitalize())
        if column not in COSTS:
            shown[heading] = [plain(value) for value in numbers[column]]
    if numbers["paper"].notna().all():
        shown["Paper"] = [f"{x:.2f}" for x in numbers["paper"]]
    rows = numbers.to_dict("records")
    shown["Ours"] = [ours(row) for row in rows]
    reference = rows[0]["reference"]
    shown[f"Difference to {reference}"] = [difference(row) for row in rows]
    for column, (heading, form) in COSTS.items():
        if column in numbers:
            values = numbers[column]
            shown[heading] = [MISSING if pd.isna(x) else form.format(x) for x in values]
    shown["Seeds"] = [f"{x['seeds']} of {x['planned']}" for x in rows]
    return Table(name, caption, numbers, shown)


def plain(value) -> str:
    if pd.isna(value):
        return MISSING
    if not isinstance(value, float):
        return str(value)
    # A column of whole numbers is of floats where a row is missing.
    return str(int(value)) if value.is_integer() else f"{value:.3g}"


def ours(row: dict) -> str:
    """Returns "70.25 ± 0.31", or how it is short of that."""
    if not row["seeds"]:
        return MISSING
    if row["seeds"] == 1:
        return f"{row['mean']:.2f} (one seed)"
    return f"{row['mean']:.2f} ± {row['deviation']:.2f}"


def difference(row: dict) -> str:
    """Returns "+1.66 [+0.90, +2.42]", or how it is short of that."""
    if row["run"] == row["reference"]:
        return "reference" if row["seeds"] else MISSING
    if not row["pairs"]:
        return MISSING
    if row["pairs"] == 1:
        return f"{row['difference']:+.2f} (one seed, no interval)"
    text = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
    return text if row["pairs"] == row["seeds"] else f"{text} ({row['pairs']} pairs)"


def every_feature(numbers: pd.DataFrame) -> Table:
    """Returns the table of all features, with the mean of a row's seeds below them.

    Args:
        numbers: Columns row, seed, feature, linear, knn; NaN for a missing run.
    """
    known = numbers["feature"].dropna().unique()
    heads = sorted(name for name in known if name.startswith("head_"))
    columns = [*FEATURES, "h", *heads, "z"]
    lines = []
    for row, of_row in numbers.groupby("row", sort=False):
        for seed, of_run in of_row.groupby("seed", sort=False):
            lines.append({"Run": row, "Seed": str(seed), **cells(of_run, columns)})
        seeds = of_row.dropna(subset="linear")["seed"].nunique()
        if seeds > 1:
            means = of_row.dropna(subset="linear").groupby("feature", as_index=False)
            means = means[["linear", "knn"]].mean()
            label = f"mean of {seeds}"
            lines.append({"Run": row, "Seed": label, **cells(means, columns)})
    shown = pd.DataFrame(lines).rename(columns=FEATURES)
    caption = "Not in the paper: top-1 of every feature, linear classifier / kNN"
    return Table("features", caption, numbers, shown)


def cells(scores: pd.DataFrame, columns: list[str]) -> dict[str, str]:
    found = scores.dropna(subset="linear").set_index("feature")
    if found.empty:
        return dict.fromkeys(columns, MISSING)
    return {
        name: f"{found.linear[name]:.2f} / {found.knn[name]:.2f}"
        if name in found.index
        else "-"  # the head has no such layer
        for name in columns
    }


def markdown(tables: list[Table], notes: list[str]) -> str:
    parts = ["# Tables", *(f"* {note}".strip() for note in notes)]
    text = "\n".join([parts[0], "", *parts[1:]]) + "\n"
    for table in tables:
        rows = [list(table.shown.columns), ["---"] * table.shown.shape[1]]
        rows += table.shown.to_numpy().tolist()
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        text += "\n".join(["", f"## {table.caption}", "", *lines]) + "\n"
    return text


def latex(tables: list[Table]) -> str:
    """Returns the tables as LaTeX that needs no package."""
    text = ""
    for table in tables:
        head, *body = [list(table.shown.columns), *table.shown.to_numpy().tolist()]
        head, *body = [" & ".join(map(escaped, row)) + r" \\" for row in (head, *body)]
        lines = [
            r"\begin{table}",
            rf"\caption{{{escaped(table.caption.partition(': ')[2])}}}",
            rf"\begin{{tabular}}{{{'l' * table.shown.shape[1]}}}",
            *(r"\hline", head, r"\hline", *body, r"\hline"),
            *(r"\end{tabular}", r"\end{table}"),
        ]
        text += f"% {table.caption}\n" + "\n".join(lines) + "\n\n"
    return text


def escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def draw_intervals(rows: pd.DataFrame, reference: tuple, path) -> None:
    """Writes every row's difference to Baseline 128, beside the paper's.

    Args:
        rows: Of `tables.summary`.
        reference: Name and top-1 of the paper's reference.
        path: Of the PNG.
    """
    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(rows)))
    axes.axvline(0, color="grey", linewidth=0.8)
    places = range(len(rows))
    axes.scatter(
        rows["paper"] - reference[1], places, marker="x", color="grey", label="paper"
    )
    whole, single = rows["pairs"] > 1, rows["pairs"] == 1
    axes.errorbar(
        rows["difference"][whole],
        [i for i in places if whole[i]],
        xerr=(rows["high"] - rows["difference"])[whole],
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


def draw_curves(runs: list, path) -> None:
    """Writes loss and contrastive top-1 of every run over the epochs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    colours = {row: f"C{i % 10}" for i, row in enumerate({x.row: 0 for x in runs})}
    styles, drawn = ("-", "--", ":"), set()
    for run in runs:
        try:
            history = pd.read_csv(run.folder / "history.csv")
        except (OSError, pd.errors.EmptyDataError):
            continue  # not started
        style = styles[list(colours).index(run.row) // 10 % len(styles)]
        look = {"color": colours[run.row], "linestyle": style, "linewidth": 1}
        label = None if run.row in drawn else run.row
        drawn.add(run.row)
        left.plot(history["epoch"], history["loss_above_chance"], label=label, **look)
        right.plot(history["epoch"], 100 * history["contrastive_top1"], **look)
    left.set_ylabel("loss minus ln(2B - 1)")
    right.set_ylabel("contrastive top-1, %")
    for axes in (left, right):
        axes.set_xlabel("epoch")
    if drawn:
        left.legend(fontsize=7)
    save(figure, path)


def save(figure, path) -> None:
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)
