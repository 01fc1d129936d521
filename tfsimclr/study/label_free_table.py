"""How well the scores without labels rank runs: correlation with linear top-1.

python scripts/label_free_table.py RUN RUN ... --out=results/label_free

Every RUN is a run folder that --mode=evaluate has scored on a test split with labels.
Runs of the same data set, image size and encoder are a group. Written are runs.csv, a
row for each run, and label_free.md, with the Spearman rank correlation of each score
with the linear top-1 of h in every group, and its 95 % interval (bootstrap over the
runs). Over all groups the gains over the best baseline are correlated.

LiDAR is not a score of the program. It is measured here, on ten views of each of 250
test images, and kept as lidar.json in the run folder. --no-lidar leaves it out.
"""

import argparse
import json
import math
import pathlib
import platform

import numpy as np
import pandas as pd
import scipy.stats
import tensorflow as tf

from tfsimclr import __version__, build, files, resolve
from tfsimclr.errors import UserError
from tfsimclr.modes import label_free as label_free_mode
from tfsimclr.report import content
from tfsimclr.runs import features as run_features
from tfsimclr.runs import hardware, loading, results
from tfsimclr.settings import flagfiles

RESAMPLES = 2000
SMALLEST_GROUP = 5  # runs; fewer have no interval worth printing
LIDAR_IMAGES = 250
LIDAR_VIEWS = 10
LIDAR_DELTA = 1e-4
BASELINES = ("pixels", "random_h", "init_h")
GROUPED_BY = ("dataset", "image_size", "backbone", "width")
# Column -> what it is.
SCORES = {
    "retrieval_auc": "retrieval AUC of h",
    "retrieval_auc_gain": "retrieval AUC of h, less the best baseline",
    "retrieval_top1": "retrieval top-1 of h",
    "retrieval_top5": "retrieval top-5 of h",
    "rankme": "RankMe of h",
    "uniformity": "uniformity of h",
    "alignment": "alignment of h",
    "retrieval_auc_z": "retrieval AUC of z",
    "rankme_z": "RankMe of z",
    "lidar": "LiDAR of h",
    "contrastive_top1": "contrastive top-1 of the training, last epoch",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; `arguments` None takes those of the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="Run folders.")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument(
        "--note", default="", help="How the runs were made, for the page."
    )
    parser.add_argument("--no-lidar", action="store_true", help="Do not measure LiDAR.")
    options = parser.parse_args(arguments)
    rows = [read_run(run, with_lidar=not options.no_lidar) for run in options.runs]
    table = pd.DataFrame(with_groups(rows)).drop(columns="key")
    table = table.sort_values(["group", "linear_h"], ascending=[True, False])
    options.out.mkdir(parents=True, exist_ok=True)
    text = table.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    files.write_atomically(options.out / "runs.csv", text.encode())
    page = report(table, options.note)
    files.write_atomically(options.out / "label_free.md", page.encode())
    print(page)


def read_run(folder: pathlib.Path, with_lidar: bool) -> dict:
    """Returns the scores of a run, with and without labels.

    Args:
        folder: The run folder.
        with_lidar: Whether to measure LiDAR, which opens the data and the checkpoint.

    Raises:
        UserError: If the run has no scores of both kinds.
    """
    record = content.read(folder)
    result = record.result
    labelled, free = result.get("features"), result.get("label_free")
    if not labelled or not free:
        raise UserError(
            f"{folder} has no scores with and without labels. It needs a labelled test "
            "split and --mode=evaluate."
        )
    print(f"{folder.name}", flush=True)
    config, scores = result["config"], free["features"]
    known = [name for name in BASELINES if name in labelled]
    last = record.history[-1] if record.history else {}
    return {
        "key": tuple(str(config.get(name)) for name in GROUPED_BY),
        "data": config["dataset"],
        "pretrain_images": config["num_pretrain_images"]
        or result["num_images"].get("unlabeled", 0) + result["num_images"]["train"],
        "epochs": result["pretrain"]["epochs"],
        "run": folder.name,
        "method": config["method"],
        "linear_pixels": labelled["pixels"]["top1"],
        "linear_random_h": labelled["random_h"]["top1"],
        "linear_h": labelled["h"]["top1"],
        "linear_gain": labelled["h"]["top1"] - max(labelled[n]["top1"] for n in known),
        "retrieval_auc_gain": scores["h"]["retrieval_auc"]
        - max(scores[name]["retrieval_auc"] for name in known),
        **{name: scores["h"].get(name) for name in SCORES if name in scores["h"]},
        "retrieval_auc_z": scores["z"]["retrieval_auc"],
        "rankme_z": scores["z"]["rankme"],
        "lidar": lidar_of_run(folder) if with_lidar else math.nan,
        "contrastive_top1": last.get("contrastive_top1") or math.nan,
        "learned": free["verdict"]["learned"],
    }


def with_groups(rows: list[dict]) -> list[dict]:
    """Returns the rows with the number of their group, from 1."""
    keys = sorted({row["key"] for row in rows})
    return [{"group": 1 + keys.index(row["key"]), **row} for row in rows]


def correlation(x, y, seed: int = 0) -> tuple[float, float, float]:
    """Returns Spearman's rank correlation and its 95 % interval.

    The interval is that of the percentiles of a bootstrap over the pairs. Resamples in
    which one side is constant have no correlation and are left out. NaN where the
    correlation is not defined.

    Args:
        x: `[n]`.
        y: `[n]`.
        seed: Seed of the resamples.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan, math.nan, math.nan
    rows = np.random.default_rng(seed).integers(0, len(x), (RESAMPLES, len(x)))
    ranks = [scipy.stats.rankdata(side[rows], axis=1) for side in (x, y)]
    first, second = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    of_resamples = (first * second).sum(axis=1)[scale > 0] / scale[scale > 0]
    low, high = np.percentile(of_resamples, [2.5, 97.5])
    return float(scipy.stats.spearmanr(x, y).statistic), float(low), float(high)


def lidar(features: np.ndarray, delta: float = LIDAR_DELTA) -> float:
    """Returns LiDAR: the effective rank of the linear discriminant of images.

    The views of an image are the samples of its class.

    Args:
        features: `[n, q, d]`, q views of each of n images.
        delta: Added to the diagonal of the covariance within images.

    Returns:
        From 1 to min(n - 1, d).

    Source: Thilak et al. 2024 (arXiv:2312.04000), equations 1 to 5.
    """
    count, views, dim = features.shape
    features = features.astype(np.float64)
    centers = features.mean(axis=1)
    between = centers - centers.mean(axis=0)
    between = between.T @ between / (count - 1)
    within = (features - centers[:, None]).reshape(-1, dim)
    within = within.T @ within / (count * (views - 1)) + delta * np.eye(dim)
    values, vectors = np.linalg.eigh(within)
    whitening = vectors @ np.diag(values**-0.5) @ vectors.T
    values = np.linalg.eigvalsh(whitening @ between @ whitening).clip(0)
    share = values / max(values.sum(), 1e-30) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def lidar_of_run(folder: pathlib.Path) -> float:
    """Returns the LiDAR of h of a run, on views of 250 images it was not trained on.

    It is measured once and kept in the run folder.
    """
    kept = folder / "lidar.json"
    if kept.exists():
        return json.loads(kept.read_text("utf-8"))
    config = flagfiles.read_config(folder / "flags.txt")
    dataset = build.dataset(config)
    config = resolve.resolve(config, dataset)
    model, _ = loading.model(config, folder)
    split, _ = run_features.held_out(config, dataset)
    images = split.images[:LIDAR_IMAGES]
    seeds = (label_free_mode.VIEW_SEED + 2 + view for view in range(LIDAR_VIEWS))
    views = (model.views(images, tf.constant([seed, 0], tf.int32)) for seed in seeds)
    features = [
        model.features(np.round(255 * view.numpy()).astype(np.uint8))["h"]
        for view in views
    ]
    value = lidar(np.stack(features, axis=1))
    files.write_atomically(kept, json.dumps(value).encode())
    return value


def report(table: pd.DataFrame, note: str = "") -> str:
    """Returns the correlations as a Markdown page.

    Args:
        table: A row for each run, with its group.
        note: How the runs were made.
    """
    groups = [(number, part) for number, part in table.groupby("group")]
    described = hardware.describe()
    lines = [
        "# Do the scores without labels rank runs?",
        "",
        "`python scripts/label_free_table.py RUN RUN ... --out=results/label_free`, "
        f"commit {results.git_commit()}, tfsimclr {__version__}, TensorFlow "
        f"{tf.__version__}, Python {platform.python_version()}, "
        f"{described['processor']}{', ' + described['gpu'] if described['gpu'] else ''}"
        f". {len(table)} runs of "
        f"{', '.join(sorted(table['method'].unique()))}; the rows are in `runs.csv`.",
        "",
        "Spearman's rank correlation of each score with the linear top-1 of h, and its "
        "95 % interval (percentiles of a bootstrap over the runs). In the last column, "
        "over all runs, both sides are gains over the best baseline.",
        "",
    ]
    for number, part in groups:
        first = part.iloc[0]
        images, epochs = _range(part["pretrain_images"]), _range(part["epochs"])
        lines.append(
            f"* Group {number}: {len(part)} runs on {first['data']}, "
            f"{images} images for {epochs} epochs; linear "
            f"top-1 of h {100 * part['linear_h'].min():.1f} to "
            f"{100 * part['linear_h'].max():.1f} %, pixels "
            f"{100 * first['linear_pixels']:.1f} %, untrained "
            f"{100 * first['linear_random_h']:.1f} %."
        )
    lines += ["", note] if note else []
    shown = [(n, part) for n, part in groups if len(part) >= SMALLEST_GROUP]
    titles = [f"group {number}" for number, _ in shown]
    lines += [
        "",
        f"| score | {' | '.join([*titles, 'all runs, gains'])} |",
        "|---" * (len(titles) + 2) + "|",
    ]
    for name, label in SCORES.items():
        cells = [_cell(correlation(part[name], part["linear_h"])) for _, part in shown]
        if name.endswith("_gain"):
            cells.append(_cell(correlation(table[name], table["linear_gain"])))
        else:
            cells.append("")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    learned, better = table["learned"].astype(bool), table["linear_gain"] > 0
    first, second = table[learned & ~better], table[~learned & better]
    lines += [
        "",
        f"The verdict is about views, not about classes: {(learned & better).sum()} of "
        f"{len(table)} runs have learned by the verdict and a linear top-1 of h above "
        f"both baselines, {(~learned & ~better).sum()} neither, "
        f"{len(first)} only the first ({_names(first)}) and {len(second)} only the "
        f"second ({_names(second)}).",
    ]
    return "\n".join(lines) + "\n"


def _names(table: pd.DataFrame) -> str:
    return ", ".join(table["run"]) or "none"


def _range(values: pd.Series) -> str:
    ends = dict.fromkeys((f"{values.min():,}", f"{values.max():,}"))
    return " to ".join(ends)


def _cell(values: tuple[float, float, float]) -> str:
    if not math.isfinite(values[0]):
        return "–"
    value, low, high = (f"{x:+.2f}".replace("-", "−") for x in values)
    return f"{value} [{low}, {high}]"
