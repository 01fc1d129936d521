"""Charts of a page as SVG, whose text has the colour of the page."""

import io
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Stands for the colour of the page's text, which is light in dark mode.
TEXT = "#010203"
# 3:1 or more against white and against the dark page (WCAG 2.2, graphical objects).
COLORS = ("#2f7ed8", "#c8741a", "#2a9d62", "#b8559f", "#7a6ad0", "#8a8a2e")
DASHES = ("-", "--", "-.", ":")
MAX_CELLS = 100  # of a side of a matrix
SIZE = (4.4, 2.7)  # inches

_STYLE: dict = {
    "svg.fonttype": "none",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": TEXT,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "font.size": 10,
    "legend.frameon": False,
}


def curves(lines: dict[str, tuple], ylabel: str, title: str, log: bool = False) -> str:
    """Returns a chart of lines over the epochs.

    Args:
        lines: Label -> (epochs, values); values that are not finite are gaps.
        ylabel: Label of the vertical axis, with its unit.
        title: What the chart shows; its text alternative.
        log: Whether the vertical axis is logarithmic.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        for index, (label, (epochs, values)) in enumerate(lines.items()):
            axes.plot(
                epochs,
                np.asarray(values, float),
                color=COLORS[index % len(COLORS)],
                linestyle=DASHES[index // len(COLORS) % len(DASHES)],
                marker="o" if len(epochs) == 1 else None,
                label=label,
            )
        values = np.concatenate([np.asarray(v, float) for _, v in lines.values()])
        if log:
            axes.set_yscale("log")
        elif np.nanmin(values, initial=0) >= 0 and len(values):
            # A constant rate is not shown as if it moved.
            axes.set_ylim(bottom=0)
        if not log:
            axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_xlabel("epoch")
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if len(lines) > 1:
            legend = axes.legend()
            for text in legend.get_texts():
                text.set_parse_math(False)
        return svg(figure, title)


def intervals(
    rows: list[tuple[str, float, float, float]], xlabel: str, title: str
) -> str:
    """Returns a chart of values with their intervals, one row each.

    Args:
        rows: Label, value, lower and upper end of each interval, from the top.
        xlabel: Label of the horizontal axis, with its unit.
        title: Text alternative.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 0.8 + 0.32 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for place, (_, value, low, high) in enumerate(rows):
            axes.plot([low, high], [place, place], color=COLORS[0], linewidth=2)
            axes.plot([value], [place], "o", color=COLORS[0])
        axes.set_yticks(range(len(rows)), [row[0] for row in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(xlabel)
        return svg(figure, title)


def matrix(counts: np.ndarray) -> str:
    """Returns a picture of a confusion matrix without names.

    More than 100 classes are shown in blocks, since a single cell could not be seen.

    Args:
        counts: Images of each true class (rows) and predicted class, `[n, n]`.
    """
    size = -(-len(counts) // MAX_CELLS)
    starts = np.arange(0, len(counts), size)
    blocks = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    shares = blocks / np.maximum(blocks.sum(axis=1, keepdims=True), 1)
    title = "Confusion matrix, a row for each true class."
    if size > 1:
        title = f"Confusion matrix; each cell is a block of {size} by {size} classes."
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.5, 4.8), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(False)
        end = len(starts) * size
        extent = (-0.5, end - 0.5, end - 0.5, -0.5)
        shown = axes.imshow(shares, vmin=0, vmax=1, cmap="cividis", extent=extent)
        axes.set_xlabel("predicted class (number)")
        axes.set_ylabel("true class (number)")
        bar = figure.colorbar(shown, ax=axes, label="share of the true class")
        bar.outline.set_edgecolor(TEXT)
        return svg(figure, title)


def svg(figure: Figure, title: str) -> str:
    """Returns a figure as an SVG element for a page, with a text alternative.

    It scales with the page, and has no style that applies outside of it.
    """
    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace(TEXT, "currentColor")
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
