"""Draws the augmented pairs and the learning curve of a run as PNG files.

python scripts/figures.py runs/<run> --out=results/<name>
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

from tfsimclr import build
from tfsimclr.settings import config as configs
from tfsimclr.settings.config import Config
from tfsimclr.training import recorder


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; `arguments` None takes those of the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path, help="A finished run folder.")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="Folder.")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    result = json.loads((options.run / "result.json").read_text(encoding="utf-8"))
    draw_pairs(configs.from_saved(result["config"]), options.out / "pairs.png")
    history = pd.read_csv(options.run / "history.csv")
    draw_curve(history, result, options.out / "learning_curve.png")


def draw_pairs(config: Config, path: pathlib.Path, count: int = 10) -> None:
    """Draws images above the two views that the first training step makes of them.

    Args:
        config: The resolved settings of the run; its data set must be available.
        path: The PNG file.
        count: Number of images.
    """
    images = build.dataset(config).pretrain.images[:count]
    grid = recorder.pairs_grid(build.method(config), images)  # [3 s, count s, 3]
    figure, axes = plt.subplots(figsize=(count, 3.2))
    axes.imshow(grid, interpolation="nearest")
    axes.set_yticks(
        [config.image_size * (i + 0.5) for i in range(3)], ["image", "view a", "view b"]
    )
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    save(figure, path)


def draw_curve(history: pd.DataFrame, result: dict, path: pathlib.Path) -> None:
    """Draws loss and contrastive top-1 over the epochs.

    Args:
        history: history.csv of the run.
        result: result.json of the run, whose scores are the title.
        path: The PNG file.
    """
    figure, left = plt.subplots(figsize=(7, 3.2))
    right = left.twinx()
    left.plot(history.epoch, history.loss_above_chance, color="tab:blue")
    right.plot(history.epoch, 100 * history.contrastive_top1, color="tab:orange")
    left.set_xlabel("epoch")
    left.set_ylabel("loss minus ln(2B - 1)", color="tab:blue")
    right.set_ylabel("contrastive top-1, %", color="tab:orange")
    if result["features"]:
        shown = ("pixels", "random_h", "h", "z")
        scores = [f"{n} {100 * result['features'][n]['top1']:.1f} %" for n in shown]
        left.set_title("linear top-1: " + ", ".join(scores), fontsize=10)
    save(figure, path)


def save(figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG, closes it and prints the path."""
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)
    print(path)
