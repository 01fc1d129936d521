"""Search in an embedding file: similar images, duplicates, outliers, a diverse subset.

`--mode=search`.
"""

import csv
import functools
import glob
import io
import os
import pathlib
import time
from collections.abc import Iterable, Sequence

import numpy as np

from tfsimclr import files
from tfsimclr.data import collection as collections
from tfsimclr.data import depth
from tfsimclr.errors import UserError
from tfsimclr.evaluation import duplicates, neighbors, search_index, selection
from tfsimclr.modes import contact_sheet, embed
from tfsimclr.modes.contact_sheet import Tile
from tfsimclr.runs.embeddings import EmbeddingFile
from tfsimclr.settings.config import Config

MAX_ROWS = 30  # of a contact sheet
MAX_PRINTED = 5  # queries and groups
# Up to this many images, and for few queries, all are compared: that takes seconds.
MAX_EXACT = 1_000_000
FEW_QUERIES = 1000
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
    bank = Bank(file, layer, config.search_index)
    if config.query:
        find_similar(config, bank, shown, folder)
    if config.duplicates:
        find_duplicates(bank, config.duplicates, shown, folder)
    if config.outliers:
        find_outliers(bank, config.outliers, config.neighbors, shown, folder)
    if config.select:
        select_diverse(bank.features, config.select, shown, folder)


class Bank:
    """The features of an embedding file, compared one with all or through an index.

    Args:
        file: The embedding file.
        layer: The layer that is compared.
        how: The setting `search_index`: `auto`, `none` or `ivf`.
    """

    def __init__(self, file: EmbeddingFile, layer: str, how: str):
        self.file = file
        self.layer = layer
        self._how = how

    def __len__(self) -> int:
        return self.file.num_rows

    @functools.cached_property
    def features(self) -> np.ndarray:
        """All features, normalised, `[n, d]`.

        Raises:
            UserError: If they do not fit into the memory.
        """
        check_memory(self.file, self.layer)
        return neighbors.normalize(self.file.features(self.layer))

    def top_k(self, queries: np.ndarray, k: int, exclude: np.ndarray):
        """Returns similarities and rows; see `neighbors.top_k`."""
        if self.uses_index(len(queries)):
            return self.index.top_k(queries, k, exclude)
        return neighbors.top_k(queries, self.file.blocks(self.layer), k, exclude)

    def mean_similarity(self, k: int) -> np.ndarray:
        """Returns each row's mean similarity to its k nearest others."""
        if len(self) < 2 or not self.uses_index(len(self)):
            return neighbors.mean_similarity(self.features, k)
        parts, start = [], 0
        for block in self.file.blocks(self.layer):
            rows = np.arange(start, start + len(block))
            parts.append(self.index.top_k(block, k, rows)[0].mean(axis=1))
            start += len(block)
        return np.concatenate(parts)

    def pairs_above(self, similarity: float):
        """Returns the pairs of similar rows; see `duplicates.pairs_above`."""
        if not self.uses_index(len(self)):
            return duplicates.pairs_above(self.features, similarity)
        blocks = self.file.blocks(self.layer)
        return self.index.pairs_above(blocks, similarity, duplicates.MAX_PAIRS)

    def uses_index(self, num_queries: int) -> bool:
        """Returns whether this many queries are answered by the index."""
        if self._how != "auto":
            return self._how == "ivf"
        if len(self) <= MAX_EXACT:
            return False
        if num_queries <= FEW_QUERIES and not self._index_path.exists():
            return False
        if search_index.is_installed():
            return True
        print(
            f"Each of {num_queries:,} images is compared with all {len(self):,}. "
            f"Faster, with an index: {search_index.INSTALL}"
        )
        self._how = "none"
        return False

    @functools.cached_property
    def _index_path(self) -> pathlib.Path:
        # The checksum is that of the content, so an index of an older file is not used.
        checksum = files.sha256_of_file(self.file.path)[:16]
        path = self.file.path
        return path.with_name(f"{path.name}.{self.layer}-{checksum}.faiss")

    @functools.cached_property
    def index(self) -> search_index.SearchIndex:
        """The index, read from its file beside the embedding file, or built.

        Raises:
            UserError: If faiss is not installed, or the memory is too small.
        """
        search_index.load_faiss()
        kept = search_index.load(self._index_path)
        if kept is not None and kept.num_rows == len(self):
            return kept
        dim = self.file.meta["layers"][self.layer]
        needed, free = search_index.memory_needed(len(self), dim), available_memory()
        if needed > free:
            raise UserError(
                f"an index of {len(self):,} vectors needs {needed / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free. Search without one: --search_index=none"
            )
        print(f"Building an index of {len(self):,} vectors.", flush=True)
        blocks = functools.partial(self.file.blocks, self.layer)
        start = time.monotonic()
        index, recall = search_index.build(blocks, len(self), dim)
        for old in self.file.path.parent.glob(
            f"{glob.escape(self.file.path.name)}.{self.layer}-*.faiss"
        ):
            old.unlink()
        try:
            index.save(self._index_path)
            place = str(self._index_path)
        except OSError as error:  # a read-only or full disk; it serves this search
            place = f"not kept ({error})"
        print(
            f"Index: {place}; {time.monotonic() - start:.0f} s, recall at "
            f"{search_index.RECALL_K}: {recall:.2%}.",
            flush=True,
        )
        return index


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
    config: Config, bank: Bank, shown: Shown, folder: pathlib.Path
) -> None:
    """Finds the most similar images of each query; writes `similar.csv` and `.png`.

    A query that is in the file is not compared with itself.

    Raises:
        UserError: If the file is of another model, or the query is no image.
    """
    file = bank.file
    model = embed.open_model(config, [bank.layer])
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
    near, rows = bank.top_k(embedded.features[bank.layer], config.top, exclude)
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
    bank: Bank, similarity: float, shown: Shown, folder: pathlib.Path
) -> None:
    """Finds groups of near-duplicates; writes `duplicates.csv` and `.png`.

    Args:
        bank: The features.
        similarity: Smallest cosine similarity of two duplicates.
        shown: The rows.
        folder: Where the files are written.
    """
    first, second, values = bank.pairs_above(similarity)
    groups = duplicates.groups(len(bank), first, second)
    best = duplicates.best_similarity(len(bank), first, second, values)
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
    bank: Bank, count: int, k: int, shown: Shown, folder: pathlib.Path
) -> None:
    """Lists the images least like their k nearest; writes `outliers.csv` and `.png`."""
    scores = bank.mean_similarity(k)
    k = min(k, len(bank) - 1)
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
