"""Embedding files: one row an image, with its path, label, checksum and features.

The file is a Parquet file, readable by any Parquet reader. It is written as parts, each
of which is complete or absent, so that a killed process goes on behind the last one.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tfsimclr import files
from tfsimclr.errors import UserError
from tfsimclr.runs import folder as run_folder

FORMAT = 1
ENDINGS = (".parquet", ".npz", ".csv")
PART_BYTES = 1 << 24
ROW_BYTES = 256  # of a path and a checksum, about
PART_SECONDS = 60.0
_META = b"tfsimclr"
_COLUMNS = ("path", "split", "label", "checksum")


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Features of images, in memory.

    Attributes:
        paths: Path of each image.
        splits: Split of each image, "" where there is none.
        labels: Class name of each image, or None.
        checksums: SHA-256 of the pixels of each image, as hex.
        features: `{layer: float32 [n, d]}`.
        meta: Model, layers and versions; see `EmbeddingFile`.
    """

    paths: list[str]
    splits: list[str]
    labels: list[str | None]
    checksums: list[str]
    features: dict[str, np.ndarray]
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.paths)

    def table(self) -> pa.Table:
        """Returns the columns as an Arrow table."""
        labels = [x if x is None else _as_text(x) for x in self.labels]
        texts = (map(_as_text, self.paths), self.splits, labels, self.checksums)
        columns: dict[str, Any] = {
            name: pa.array(list(values), pa.string())
            for name, values in zip(_COLUMNS, texts, strict=True)
        }
        for layer, values in self.features.items():
            flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
            columns[layer] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        return pa.table(columns, schema=_schema(self.meta))


class EmbeddingFile:
    """A complete Parquet file of embeddings, read a row group at a time.

    Args:
        path: The file.

    Attributes:
        meta: `model` (checksum of the weights), `layers` (`{name: dimensions}`),
            `image_size` and `side` (pixels of the model's input, and as which images of
            files are read), `ranges` (of images with more than 8 bits), `images` (what
            was embedded), `data_dir`, `unreadable` (number of images left out),
            `versions`, and `key`, which identifies the embedding.
        num_rows: Number of images.

    Raises:
        UserError: If it is missing, damaged, or no file of embeddings.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        if self.path.suffix.lower() in (".npz", ".csv"):
            raise UserError(
                f"{self.path} cannot be searched. Write the embeddings with "
                "--output=<name>.parquet."
            )
        try:
            self._file = pq.ParquetFile(self.path)
        except FileNotFoundError:
            raise UserError(
                f"there is no embedding file {self.path}. Make one by --mode=embed, or "
                "name one with --embeddings."
            ) from None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"{self.path} cannot be read: {_one_line(error)}. It is truncated, or "
                "no Parquet file. Delete it and run --mode=embed again."
            ) from error
        self.meta = _read_meta(self._file.schema_arrow, self.path)
        self.num_rows = self._file.metadata.num_rows

    def layer(self, name: str | None = None) -> str:
        """Returns the layer to search: `name`, or h, or the only layer of the file.

        Raises:
            UserError: If the file does not have the layer.
        """
        layers = list(self.meta["layers"])
        chosen = name or ("h" if "h" in layers else layers[0])
        if chosen not in layers:
            raise UserError(
                f"{self.path} holds the layers {', '.join(layers)}, not {chosen}. "
                f"Embed again with --layers={','.join([*layers, chosen])} and another "
                "--output, or search one of these."
            )
        return chosen

    def blocks(self, layer: str) -> Iterator[np.ndarray]:
        """Yields the features of a layer, float32 `[b, d]`, a row group at a time."""
        dim = self.meta["layers"][layer]
        for group in range(self._file.num_row_groups):
            yield _matrix(self._read(group, [layer])[layer], dim)

    def features(self, layer: str) -> np.ndarray:
        """Returns the features of a layer, float32 `[n, d]`."""
        result = np.empty((self.num_rows, self.meta["layers"][layer]), np.float32)
        start = 0
        for block in self.blocks(layer):
            result[start : start + len(block)] = block
            start += len(block)
        return result

    def columns(self, *names: str) -> list[list]:
        """Returns the values of `path`, `split`, `label` or `checksum`, as lists."""
        groups = [
            self._read(group, list(names)) for group in range(self._file.num_row_groups)
        ]
        return [
            [value for group in groups for value in group[name].to_pylist()]
            for name in names
        ]

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        try:
            return self._file.read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"{self.path} is damaged: {_one_line(error)}. Delete it and run "
                "--mode=embed again."
            ) from error


class EmbeddingWriter:
    """Writes an embedding file as parts beside it, and joins them at the end.

    The parts lie in the folder `<output>.parts`, each with the position in the images
    behind it. A killed process leaves complete parts; the next one goes on behind them.

    Args:
        output: The file: .parquet, .npz or .csv.
        meta: See `EmbeddingFile`; `key` must identify the images, model and layers.

    Attributes:
        position: Number of images that are done, unreadable ones included.
        num_rows: Number of rows written.
        unreadable: One line for every unreadable image so far.
    """

    def __init__(self, output: pathlib.Path, meta: dict[str, Any]):
        self.output = output
        self.meta = meta
        self.parts = output.with_name(f"{output.name}.parts")
        self.position = 0
        self.num_rows = 0
        self.unreadable: list[str] = []
        self._pending: list[Embeddings] = []
        self._bytes = 0
        self._flushed = 0
        self._last = time.monotonic()

    @contextlib.contextmanager
    def open(self) -> Iterator["EmbeddingWriter"]:
        """Locks the parts and reads how far they are.

        Raises:
            UserError: If they are of other embeddings or damaged, or another process
                writes them.
        """
        with files.disk_errors(self.parts):
            self.parts.mkdir(parents=True, exist_ok=True)
        with run_folder.lock(self.parts, "--output"):
            files.remove_leftovers(self.parts)
            for part in self._paths():
                self._resume_behind(part)
            yield self

    def append(self, rows: Embeddings, unreadable: Sequence[str], stop: int) -> None:
        """Adds the rows of a batch, and writes a part if enough is pending.

        Args:
            rows: The rows; may be empty.
            unreadable: One line for each image of the batch that was left out.
            stop: Number of images that are done with this batch.
        """
        self._pending.append(rows)
        self.unreadable += unreadable
        self.position = stop
        self.num_rows += len(rows)
        self._bytes += sum(values.nbytes for values in rows.features.values())
        self._bytes += ROW_BYTES * len(rows)
        is_late = time.monotonic() - self._last > PART_SECONDS
        if self._bytes >= PART_BYTES or is_late:
            self.flush()

    def flush(self) -> None:
        """Writes the pending rows as a part.

        Raises:
            OSError: If it cannot be written; the older parts are complete.
        """
        if not self._pending:
            return
        table = pa.concat_tables([rows.table() for rows in self._pending])
        named = self.unreadable[self._flushed :]
        progress = {"position": self.position, "unreadable": named}
        table = table.replace_schema_metadata(
            {**table.schema.metadata, b"progress": json.dumps(progress).encode()}
        )
        content = io.BytesIO()
        with _parquet_writer(content, table.schema) as writer:
            writer.write_table(table, row_group_size=max(1, len(table)))
        files.write_atomically(
            self.parts / f"part-{self.position:012}.parquet", content.getvalue()
        )
        self._pending, self._bytes, self._last = [], 0, time.monotonic()
        self._flushed = len(self.unreadable)

    def finish(self) -> None:
        """Joins the parts to the output file and deletes them.

        Raises:
            OSError: If it cannot be written; the parts are complete then.
        """
        self.flush()
        meta = {**self.meta, "unreadable": len(self.unreadable)}
        join: Callable = {".npz": _join_npz, ".csv": _join_csv}.get(
            self.output.suffix.lower(), _join_parquet
        )
        with files.atomic_file(self.output, self.parts) as file:
            join(file, self._paths(), meta, self.num_rows)
        shutil.rmtree(self.parts, ignore_errors=True)

    def _paths(self) -> list[pathlib.Path]:
        return sorted(self.parts.glob("part-*.parquet"))

    def _resume_behind(self, part: pathlib.Path) -> None:
        remedy = f"Delete {self.parts} to start again, or name another --output."
        try:
            metadata = pq.read_metadata(part)
            schema = metadata.schema.to_arrow_schema()
            progress = json.loads(schema.metadata[b"progress"])
            key = json.loads(schema.metadata[_META])["key"]
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{part} is damaged: {_one_line(error)}. {remedy}"
            ) from error
        if key != self.meta["key"]:
            raise UserError(
                f"{self.parts} holds unfinished embeddings of other images, of another "
                f"model or of other layers. {remedy}"
            )
        self.position = progress["position"]
        self.unreadable += progress["unreadable"]
        self._flushed = len(self.unreadable)
        self.num_rows += metadata.num_rows


def is_complete(output: pathlib.Path, key: str) -> bool:
    """Returns whether the output file exists and is that of `key`.

    Raises:
        UserError: If it exists and is of other embeddings, or cannot be read.
    """
    if not output.exists():
        return False
    if output.suffix.lower() == ".parquet":
        if EmbeddingFile(output).meta["key"] == key:
            return True
        what = "holds embeddings of other images, of another model or of other layers"
    else:
        what = "exists"
    raise UserError(f"{output} {what}. Name another --output, or delete the file.")


def check_output(output: pathlib.Path) -> None:
    """Checks that embeddings can be written to a file of this name.

    Raises:
        UserError: If the ending is unknown, or the folder does not exist.
    """
    if output.suffix.lower() not in ENDINGS:
        raise UserError(
            f"--output must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, got "
            f"{str(output)!r}."
        )
    if not output.parent.is_dir():
        raise UserError(
            f"the folder {str(output.parent)!r} of --output does not exist."
        )
    if output.is_dir():
        raise UserError(f"--output={output} is a folder. Name a file.")


def _schema(meta: dict[str, Any]) -> pa.Schema:
    fields = [pa.field(name, pa.string()) for name in _COLUMNS]
    fields += [
        pa.field(layer, pa.list_(pa.float32(), dim))
        for layer, dim in meta["layers"].items()
    ]
    return pa.schema(fields, metadata={_META: json.dumps(meta).encode()})


def _read_meta(schema: pa.Schema, path: pathlib.Path) -> dict[str, Any]:
    try:
        meta = json.loads((schema.metadata or {})[_META])
        version = meta["format"]
        sizes = {name: schema.field(name).type.list_size for name in meta["layers"]}
        fits = sizes == meta["layers"] and set(_COLUMNS) <= set(schema.names)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"{path} was not written by tfsimclr. Make an embedding file by "
            "--mode=embed."
        ) from None
    if version != FORMAT or not fits:
        raise UserError(
            f"{path} cannot be used: its format is {version}, expected {FORMAT}, or "
            "its columns are not those that it names. Run --mode=embed again."
        )
    return meta


def _parquet_writer(sink, schema: pa.Schema) -> pq.ParquetWriter:
    # Features are noise to a compressor. Paths and checksums have long common parts.
    compression = dict.fromkeys(schema.names, "NONE")
    compression |= dict.fromkeys(_COLUMNS, "ZSTD")
    return pq.ParquetWriter(
        sink,
        schema,
        compression=compression,
        use_dictionary=["split", "label"],
        write_statistics=["path"],
    )


def _tables(parts: Sequence[pathlib.Path]) -> Iterator[pa.Table]:
    for part in parts:
        yield pq.read_table(part)


def _join_parquet(file: BinaryIO, parts, meta: dict, num_rows: int) -> None:
    schema = _schema(meta)
    with _parquet_writer(file, schema) as writer:
        for table in _tables(parts):
            table = table.replace_schema_metadata(schema.metadata)
            writer.write_table(table, row_group_size=max(1, len(table)))


def _join_csv(file: BinaryIO, parts, meta: dict, num_rows: int) -> None:
    names = [
        f"{layer}_{i}" for layer, dim in meta["layers"].items() for i in range(dim)
    ]
    header = True
    for table in _tables(parts):
        frame = table.select(list(_COLUMNS)).to_pandas()
        values = [_matrix(table[layer], dim) for layer, dim in meta["layers"].items()]
        features = pd.DataFrame(np.concatenate(values, axis=1), columns=names)
        frame = pd.concat([frame, features], axis=1)
        text = frame.to_csv(index=False, header=header, float_format="%.9g")
        file.write(text.encode())
        header = False


def _join_npz(file: BinaryIO, parts, meta: dict, num_rows: int) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for layer, dim in meta["layers"].items():
            with archive.open(f"{layer}.npy", "w", force_zip64=True) as member:
                description = {
                    "descr": "<f4",
                    "fortran_order": False,
                    "shape": (num_rows, dim),
                }
                np.lib.format.write_array_header_1_0(member, description)
                for part in parts:
                    table = pq.read_table(part, columns=[layer])
                    member.write(np.ascontiguousarray(_matrix(table[layer], dim)).data)
        for name in _COLUMNS:
            columns = (pq.read_table(part, columns=[name])[name] for part in parts)
            values = [x or "" for column in columns for x in column.to_pylist()]
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(values, np.str_))
        with archive.open("meta.npy", "w") as member:
            np.lib.format.write_array(member, np.array(json.dumps(meta)))


def _matrix(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    """Returns a column of lists as float32 `[n, d]`."""
    return column.combine_chunks().flatten().to_numpy().reshape(-1, dim)


def _as_text(path: str) -> str:
    """Returns a path as UTF-8; bytes that are not become hexadecimal escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
