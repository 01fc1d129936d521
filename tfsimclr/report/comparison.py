"""The page of several runs side by side."""

import dataclasses
import math
import pathlib

import numpy as np
import scipy.stats

from tfsimclr.errors import UserError
from tfsimclr.report import charts, content, page
from tfsimclr.report.content import Record

# Settings that do not change what is learned or how it is scored.
_IGNORED = ("mode", "workdir", "data_dir", "cache_dir", "compare", "seed")
# Column of history.csv -> title and unit of its chart, and a factor.
_CHARTS = {
    "loss_above_chance": ("Loss above chance", "nats", 1),
    "val_loss_above_chance": ("Loss above chance of held-out images", "nats", 1),
    "contrastive_top1": ("Contrastive top-1", "%", 100),
    "effective_rank": ("Effective rank of h", "dimensions", 1),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the comparison: its name on the page, and its record."""

    name: str
    record: Record

    @property
    def settings(self) -> dict:
        config = self.record.result["config"]
        return {key: value for key, value in config.items() if key not in _IGNORED}

    @property
    def top1(self) -> float | None:
        return self.record.result.get("top1")

    @property
    def auc(self) -> float | None:
        scores = self.record.result.get("label_free") or {"features": {}}
        return scores["features"].get("h", {}).get("retrieval_auc")


def read(folders: list[pathlib.Path]) -> list[Run]:
    """Returns the runs of folders, each with a name of its own.

    Raises:
        UserError: If there are fewer than two, or one is named twice or has no result.
    """
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise UserError(
            "--compare needs two or more different run folders, separated by commas, "
            f"got {','.join(map(str, folders))!r}."
        )
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [
        Run(name, content.read(folder))
        for name, folder in zip(names, folders, strict=True)
    ]


def comparison_page(runs: list[Run]) -> str:
    """Returns the HTML of the page of several runs."""
    varied = varied_settings(runs)
    return page.render(
        "comparison.html",
        title=f"{len(runs)} runs",
        runs=[_row(run, varied) for run in runs],
        varied=varied,
        groups=groups(runs, varied),
        intervals=_intervals(runs),
        curves=_curves(runs),
        version=runs[0].record.result["versions"].get("tfsimclr", ""),
        notes=_notes(runs),
    )


def varied_settings(runs: list[Run]) -> list[str]:
    """Returns the settings in which the runs differ, the seed aside."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        name for name in names if len({str(run.settings.get(name)) for run in runs}) > 1
    ]


def groups(runs: list[Run], varied: list[str]) -> list[dict]:
    """Returns the runs that differ only in their seed, with mean and interval.

    The interval is that of Student's t for the mean over the seeds, at 95 %. Only
    groups of two runs or more with a top-1 are returned.
    """
    members: dict[tuple, list[Run]] = {}
    for run in runs:
        key = tuple(str(run.settings.get(name)) for name in varied)
        members.setdefault(key, []).append(run)
    found = []
    for key, group in members.items():
        values = np.array([run.top1 for run in group if run.top1 is not None])
        if len(values) < 2:
            continue
        quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
        half = float(quantile * values.std(ddof=1) / math.sqrt(len(values)))
        found.append(
            {
                "settings": ", ".join(
                    f"{name} {text}" for name, text in zip(varied, key, strict=True)
                )
                or "all runs",
                "seeds": len(values),
                "mean": float(values.mean()),
                "half": half,
            }
        )
    return found


def _row(run: Run, varied: list[str]) -> dict:
    result = run.record.result
    features = result.get("features") or {}
    verdict = (result.get("label_free") or {}).get("verdict") or {}
    learned = {True: "yes", False: "no", None: "–"}[verdict.get("learned")]
    count = page.num_test_images(run.record)
    scores = {
        name: features.get(name, {}).get("top1") for name in ("pixels", "random_h")
    }
    return {
        "name": run.name,
        "seed": result.get("seed"),
        "settings": [str(run.settings.get(name, "")) for name in varied],
        "feature": result.get("feature", "–"),
        "top1": run.top1,
        "interval": page.wilson(run.top1, count),
        "knn": features.get(result.get("feature"), {}).get("knn"),
        **scores,
        "auc": run.auc,
        "learned": learned,
        "epochs": result.get("pretrain", {}).get("epochs"),
        "time": page.duration(result.get("pretrain", {}).get("seconds")),
        "link": (run.record.folder / "report.html").is_file(),
        "uri": (run.record.folder / "report.html").absolute().as_uri(),
    }


def _intervals(runs: list[Run]) -> str | None:
    rows: list = []
    for run in runs:
        ends = page.wilson(run.top1, page.num_test_images(run.record))
        if ends is not None:
            rows.append((run.name, *(100 * value for value in (run.top1, *ends))))
    if not rows:
        return None
    title = "Linear top-1 of each run with its 95 % interval over the test images."
    return charts.intervals(rows, "linear top-1, %", title)


def _curves(runs: list[Run]) -> list[dict]:
    shown = []
    for column, (title, unit, factor) in _CHARTS.items():
        lines = {}
        for run in runs:
            history = run.record.history
            points = [
                (row["epoch"], factor * row[column])
                for row in history
                if row.get(column) is not None
            ]
            if points:
                lines[run.name] = tuple(zip(*points, strict=True))
        if lines:
            svg = charts.curves(lines, unit, f"{title} of {len(lines)} runs.")
            shown.append({"title": title, "svg": svg})
    return shown


def _notes(runs: list[Run]) -> list[str]:
    """Returns what makes the runs hard to compare."""
    notes = []
    data = {
        (
            run.settings.get("dataset"),
            str(run.record.result.get("num_images")),
            str(run.record.result.get("class_names")),
        )
        for run in runs
    }
    if len(data) > 1:
        notes.append("The runs are of different data, so their scores do not compare.")
    versions = {run.record.result["versions"].get("tfsimclr") for run in runs}
    if len(versions) > 1:
        names = ", ".join(sorted(str(version) for version in versions))
        notes.append(f"The runs were scored by different versions: {names}.")
    views = ("crop_min_area", "jitter_strength", "blur", "flip", "grayscale")
    if len({tuple(str(run.settings.get(n)) for n in views) for run in runs}) > 1:
        notes.append("The views differ, so the scores without labels do not compare.")
    return notes
