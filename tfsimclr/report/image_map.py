"""A two-dimensional map of images: similar images lie near each other."""

import dataclasses
import warnings

import numpy as np
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool, TapTool
from bokeh.plotting import figure
from bokeh.resources import Resources
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from tfsimclr.report.sprites import Sheet

MIN_IMAGES = 10
MAX_CLASSES = 20
CLUSTERS = 8
COLORS = (
    *("#2f7ed8", "#c8741a", "#2a9d62", "#d0494f", "#8a63c9"),
    *("#a06a4c", "#c95fa6", "#7f7f7f", "#98931f", "#1f9bb0"),
)
# The second ten groups have other marks: colour is not the only difference.
MARKS = ("circle", "triangle")
DOM_ID = "map"

# The page's variables reach into Bokeh's shadow tree; its style sheets do not.
_TOOLTIP = """
<div style="display:flex;gap:.6em;align-items:center;font:14px system-ui,sans-serif">
<div class="map-thumbnail" style="width:64px;height:64px;
background-image:var(--sheet);
background-size:calc(var(--columns)*64px) calc(var(--rows)*64px);
background-position:@px @py"></div><div>@label</div></div>
"""


@dataclasses.dataclass(frozen=True)
class Groups:
    """How the images of the map are coloured.

    Attributes:
        kind: `class` or `cluster`.
        names: Name of each group.
        members: Group of each image, int `[n]`.
        marks: `(colour, mark)` of each group.
    """

    kind: str
    names: list[str]
    members: np.ndarray
    marks: list[tuple[str, str]]


def layout(features: np.ndarray) -> np.ndarray:
    """Returns a place for each row of normalised features `[n, d]`, `[n, 2]`.

    t-SNE, which keeps near rows near; distances between far groups mean nothing.

    Source: van der Maaten and Hinton 2008.
    """
    count, dim = features.shape
    # Its threads wait for each other in a busy loop: beside other work two threads took
    # 25 times as long as one.
    with threadpool_limits(1), warnings.catch_warnings():
        # Constant features: their principal components have no variance to share.
        warnings.simplefilter("ignore", RuntimeWarning)
        wide = min(50, dim, count)
        small = PCA(wide, random_state=0).fit_transform(features)
        return TSNE(
            perplexity=min(30, (count - 1) / 3),
            init="pca" if dim > 1 and np.ptp(small) > 0 else "random",
            random_state=0,
        ).fit_transform(small)


def groups(features: np.ndarray, labels: np.ndarray, class_names) -> Groups:
    """Returns the classes as groups, or clusters where there are none.

    Clusters are those of k-means on the features, with labels below 0, one class or
    more than 20.

    Args:
        features: Normalised, `[n, d]`.
        labels: `[n]` integers; below 0 is unknown.
        class_names: Name of each class.
    """
    known = np.unique(labels[labels >= 0])
    if 1 < len(known) <= MAX_CLASSES and (labels >= 0).all():
        names = [str(class_names[label]) for label in known]
        kind, members = "class", np.searchsorted(known, labels)
    else:
        count = max(1, min(CLUSTERS, len(features) // 5))
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer distinct rows than clusters
            clusters = KMeans(count, n_init=4, random_state=0).fit(features)
        kind, members = "cluster", clusters.labels_
        names = [f"cluster {index + 1}" for index in range(count)]
    marks = [
        (COLORS[index % len(COLORS)], MARKS[index // len(COLORS) % len(MARKS)])
        for index in range(len(names))
    ]
    return Groups(kind, names, members, marks)


def plot(places: np.ndarray, group: Groups, sheet: Sheet, labels: list[str]) -> dict:
    """Returns the map as JSON for `Bokeh.embed.embed_item`.

    Args:
        places: `[n, 2]`.
        group: Colours of the images; group i is the renderer with the name `group-i`.
        sheet: Pictures of the images.
        labels: Text of each image.
    """
    chart = figure(
        height=560,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,zoom_in,zoom_out,reset",
        active_drag=None,  # or a finger could not scroll the page
        toolbar_location="above",
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        match_aspect=True,
    )
    chart.axis.visible = False
    chart.grid.visible = False
    chart.toolbar.logo = None
    renderers: list = []
    for index, (color, mark) in enumerate(group.marks):
        rows = np.flatnonzero(group.members == index)
        positions = [sheet.position(row) for row in rows.tolist()]
        source = ColumnDataSource(
            {
                "x": places[rows, 0].astype(np.float32),
                "y": places[rows, 1].astype(np.float32),
                "row": rows.astype(np.int32),
                "px": [f"{-64 * column}px" for column, _ in positions],
                "py": [f"{-64 * line}px" for _, line in positions],
                "label": [labels[row] for row in rows],
            }
        )
        renderers.append(
            chart.scatter(
                *("x", "y"),
                source=source,
                marker=mark,
                size=8,
                color=color,
                fill_alpha=0.75,
                line_color=None,
                name=f"group-{index}",
                nonselection_fill_alpha=0.75,
            )
        )
    chart.scatter(
        *("x", "y"),
        source=ColumnDataSource({"x": [], "y": []}, name="selected"),
        marker="circle",
        size=18,
        fill_alpha=0,
        line_color="#808080",
        line_width=3,
    )
    hover = HoverTool(renderers=renderers, tooltips=_TOOLTIP, attachment="vertical")
    hover.point_policy = "snap_to_data"
    hover.limit = 1
    chart.add_tools(hover, TapTool(renderers=renderers))
    return dict(json_item(chart, ID(DOM_ID)))


def script() -> str:
    """Returns Bokeh's own code; without its tables, widgets and formulas."""
    resources = Resources(mode="inline", components=["bokeh"], minified=True)
    return "\n".join(resources.js_raw)
