"""Search in an embedding file: similar images, duplicates, outliers, a diverse subset.

`--mode=search`.
"""

import csv
import io
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from tfsimclr import files
from tfsimclr.data import collection as collections
from tfsimclr.data import depth
from tfsimclr.errors import UserError
from tfsimclr.evaluation import duplicates, neighbors, selection
from tfsimclr.modes import contact_sheet, embed
from tfsimclr.modes.contact_sheet import Tile
from tfsimclr.runs.embeddings import EmbeddingFile
from tfsimclr.settings.config import Config

MAX_ROWS = 30  # of a contact sheet
MAX_PRINTED = 5  # queries and groups
MEMORY_FACTOR = 3  # the features, their normalised copy, and what is computed on them


def search(config: Config) -> None:
    """Answers the searches of the settings; writes tables and contact sheets.

    Args:
        config: The settings: `embeddings` or `workdir`, and one or several of `query`,
            `duplicates`, `outliers` and `select`.

    Raises:
        UserError: If the embedding file cannot be used, or does not fit the model or
            the query.
    """
    path = config.embeddings or os.path.join(config.workdir, embed.FILE_NAME)
    file = EmbeddingFile(path)
    layer = file.layer(config.layers)
    folder = pathlib.Path(config.output or file.path.parent / "search")
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    print(f"{file.num_rows:,} images of {file.meta['images']}, layer {layer}.")
    shown = Shown(config, file)
    if config.query:
        find_similar(config, file, layer, shown, folder)
    if not (config.duplicates or config.outliers or config.select):
        return
    check_memory(file, layer)
    features = neighbors.normalize(file.features(layer))
    if config.duplicates:
        find_duplicates(features, config.duplicates, shown, folder)
    if config.outliers:
        find_outliers(features, config.outliers, config.neighbors, shown, folder)
    if config.select:
        select_diverse(features, config.select, shown, folder)


class Shown:
    """The rows of an embedding file as they are shown: paths, labels and pictures.

    Args:
        config: The settings.
        file: The embedding file.

    Attributes:
        paths: Path of each image.
        labels: Class name of each image, or None.
        ranges: By `depth.kind`, the range of images with more than 8 bits.
    """

    def __init__(self, config: Config, file: EmbeddingFile):
        self.paths, self.labels = file.columns("path", "label")
        self._config = config
        self._file = file
        self.ranges = {k: depth.Range(*r) for k, r in file.meta["ranges"].items()}
        self._data_set: collections.Collection | None = None

    def tile(self, row: int, similarity: float | None = None) -> Tile:
        """Returns an image of the file with its similarity and label."""
        texts = [] if similarity is None else [f"{similarity:.3f}"]
        if self.labels[row]:
            texts.append(self.labels[row])
        return Tile(self.picture(row), "  ".join(texts))

    def read(self, path: str) -> np.ndarray | None:
        """Returns the image of a file, uint8 `[s, s, 3]`, or None if it is gone."""
        return collections.picture(path, contact_sheet.TILE, self.ranges)

    def picture(self, row: int) -> np.ndarray | None:
        """Returns the image, uint8 `[s, s, 3]`, or None if it is gone."""
        path = self.paths[row]
        if os.path.isabs(path):
            return self.read(path)
        if self._data_set is None:
            name = self._file.meta["images"]
            if path.startswith(f"{name}/"):
                self._data_set = collections.open_collection(
                    name,
                    self._file.meta["image_size"],
                    data_dir=self._config.data_dir or self._file.meta["data_dir"],
                    cache_dir=self._config.cache_dir,
                )
                self._rows = {path: i for i, path in enumerate(self._data_set.paths)}
        if self._data_set is None or path not in self._rows:
            return None
        return self._data_set.pictures([self._rows[path]], contact_sheet.TILE)[0]


def find_similar(
    config: Config,
    file: EmbeddingFile,
    layer: str,
    shown: Shown,
    folder: pathlib.Path,
) -> None:
    """Finds the most similar images of each query; writes `similar.csv` and `.png`.

    A query that is in the file is not compared with itself.

    Raises:
        UserError: If the file is of another model, or the query is no image.
    """
    model = embed.open_model(config, [layer])
    if model.checksum != file.meta["model"]:
        raise UserError(
            f"{file.path} was made by another model than that of {config.workdir}. "
            "Embed the images again (--mode=embed), or name the --workdir it was made "
            "with."
        )
    queries = collections.open_queries(config.query, file.meta["side"], shown.ranges)
    embedded = embed.embed_collection(model, queries)
    positions = {path: row for row, path in enumerate(shown.paths)}
    exclude = np.array([positions.get(path, -1) for path in embedded.paths])
    near, rows = neighbors.top_k(
        embedded.features[layer], file.blocks(layer), config.top, exclude
    )
    table = [
        (path, rank + 1, shown.paths[row], shown.labels[row], similarity)
        for path, *found in zip(embedded.paths, near, rows, strict=True)
        for rank, (similarity, row) in enumerate(zip(*found, strict=True))
    ]
    header = ("query", "rank", "path", "label", "similarity")
    write_table(folder / "similar.csv", header, table)
    sheet = [
        [
            Tile(shown.read(path), "query"),
            *(shown.tile(r, s) for r, s in zip(*found, strict=True)),
        ]
        for path, *found in zip(embedded.paths[:MAX_ROWS], rows, near, strict=False)
    ]
    contact_sheet.write(folder / "similar.png", sheet)
    for path in embedded.paths[:MAX_PRINTED]:
        print(f"Similar to {path}:")
        for query, rank, other, label, similarity in table:
            if query == path:
                print(f"  {rank:3}  {similarity:.4f}  {other}  {label or ''}".rstrip())
    print(f"Similar images: {folder / 'similar.csv'}, {folder / 'similar.png'}")


def find_duplicates(
    features: np.ndarray, similarity: float, shown: Shown, folder: pathlib.Path
) -> None:
    """Finds groups of near-duplicates; writes `duplicates.csv` and `.png`.

    Args:
        features: `[n, d]`.
        similarity: Smallest cosine similarity of two duplicates.
        shown: The rows.
        folder: Where the files are written.
    """
    first, second, values = duplicates.pairs_above(features, similarity)
    groups = duplicates.groups(len(features), first, second)
    best = duplicates.best_similarity(len(features), first, second, values)
    groups.sort(key=lambda group: -best[group].max())  # the surest first
    table = [
        (number + 1, shown.paths[row], shown.labels[row], best[row])
        for number, group in enumerate(groups)
        for row in group
    ]
    header = ("group", "path", "label", "similarity")
    write_table(folder / "duplicates.csv", header, table)
    count = sum(map(len, groups))
    print(
        f"Near-duplicates of similarity {similarity:g} or more: {count} images in "
        f"{len(groups)} groups: {folder / 'duplicates.csv'}"
    )
    sheet = [
        [shown.tile(r, best[r]) for r in group[:12]] for group in groups[:MAX_ROWS]
    ]
    write_sheet(folder / "duplicates.png", sheet)


def find_outliers(
    features: np.ndarray, count: int, k: int, shown: Shown, folder: pathlib.Path
) -> None:
    """Lists the images least like their k nearest; writes `outliers.csv` and `.png`."""
    scores = neighbors.mean_similarity(features, k)
    k = min(k, len(features) - 1)
    order = np.argsort(scores, kind="stable")[:count]
    table = [
        (rank + 1, shown.paths[row], shown.labels[row], scores[row])
        for rank, row in enumerate(order)
    ]
    header = ("rank", "path", "label", "mean_similarity")
    write_table(folder / "outliers.csv", header, table)
    print(
        f"Outliers: the {len(order)} images with the lowest mean similarity to their "
        f"{k} nearest, {scores[order[0]]:.3f} to {scores[order[-1]]:.3f} (median of "
        f"all: {np.median(scores):.3f}): {folder / 'outliers.csv'}"
    )
    sheet = in_rows([shown.tile(r, scores[r]) for r in order[: 12 * MAX_ROWS]])
    write_sheet(folder / "outliers.png", sheet)


def select_diverse(
    features: np.ndarray, count: int, shown: Shown, folder: pathlib.Path
) -> None:
    """Selects images by greedy k-centre; writes `selected.csv` and `.png`."""
    order, similarities = selection.k_centre(features, count)
    table = [
        (rank + 1, shown.paths[row], shown.labels[row], similarity if rank else "")
        for rank, (row, similarity) in enumerate(zip(order, similarities, strict=True))
    ]
    header = ("rank", "path", "label", "similarity_to_selected")
    write_table(folder / "selected.csv", header, table)
    print(f"Selected {count} images that differ most: {folder / 'selected.csv'}")
    sheet = in_rows([shown.tile(row) for row in order[: 12 * MAX_ROWS]])
    write_sheet(folder / "selected.png", sheet)


def write_table(path: pathlib.Path, header: Sequence[str], rows: Iterable) -> None:
    """Writes a table as CSV; similarities have six decimals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(
            f"{value:.6f}" if isinstance(value, (float, np.floating)) else value
            for value in row
        )
    files.write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def write_sheet(path: pathlib.Path, rows: Sequence[Sequence[Tile]]) -> None:
    """Writes a contact sheet; without rows an older one is deleted."""
    if rows:
        contact_sheet.write(path, rows)
    else:
        path.unlink(missing_ok=True)


def in_rows(tiles: list[Tile], width: int = 12) -> list[list[Tile]]:
    """Returns tiles as rows of 12."""
    return [tiles[i : i + width] for i in range(0, len(tiles), width)]


def check_memory(file: EmbeddingFile, layer: str) -> None:
    """Refuses to load more features than the memory holds.

    Raises:
        UserError: If they do not fit.
    """
    needed = MEMORY_FACTOR * 4 * file.num_rows * file.meta["layers"][layer]
    available = available_memory()
    if needed > available:
        raise UserError(
            f"the {file.num_rows:,} features of {file.path} need {needed / 1e9:.1f} GB "
            f"for this search, and {available / 1e9:.1f} GB are free. Embed fewer "
            "images or a smaller layer. --query alone needs no such memory."
        )


def available_memory() -> int:
    """Returns the free memory of the machine in bytes."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):  # not Linux: all of the memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
