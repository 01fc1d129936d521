"""Draws a run: its augmented pairs and its learning curve, as PNG files.

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
from tfsimclr.settings.config import Config
from tfsimclr.training import recorder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="A finished run folder.")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="Folder.")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = json.loads((arguments.run / "result.json").read_text(encoding="utf-8"))
    draw_pairs(Config(**result["config"]), arguments.out / "pairs.png")
    history = pd.read_csv(arguments.run / "history.csv")
    draw_curve(history, result, arguments.out / "learning_curve.png")


def draw_pairs(config: Config, path: pathlib.Path, count: int = 10) -> None:
    """Writes a row of images above the two views that the first step would see."""
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
    """Writes the loss against chance and the contrastive top-1 over the epochs."""
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
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
