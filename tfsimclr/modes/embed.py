"""Embedding: the features of images, with their paths, in a file (`--mode=embed`)."""

import concurrent.futures
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tqdm

from tfsimclr import __version__, files
from tfsimclr.data import collection as collections
from tfsimclr.data import prepare
from tfsimclr.errors import UserError
from tfsimclr.runs import embedder as embedders
from tfsimclr.runs import embeddings
from tfsimclr.runs.embedder import Embedder
from tfsimclr.runs.embeddings import Embeddings
from tfsimclr.settings.config import Config

BATCH_SIZE = 256
FILE_NAME = "embeddings.parquet"
MAX_NAMED = 20  # unreadable images that are named one by one


def embed_images(config: Config) -> pathlib.Path:
    """Writes the embedding file of a run, or of an exported model; returns its path.

    Args:
        config: The settings; `workdir` names the run or the folder of the SavedModel.

    Raises:
        UserError: If there is no model, no image, or the output file is of others.
    """
    is_run = os.path.isfile(os.path.join(config.workdir, "flags.txt"))
    if not config.output and not is_run and config.workdir:
        raise UserError(
            f"--workdir={config.workdir} is no run folder, so the embeddings need a "
            "file: add --output=<name>.parquet."
        )
    output = pathlib.Path(config.output or os.path.join(config.workdir, FILE_NAME))
    embeddings.check_output(output)
    model = open_model(config, layer_names(config.layers or "h"))
    images = open_images(config, model.image_size)
    for note in images.notes:
        print(f"{images.name}: {note}.")
    layers = ", ".join(f"{name} ({dim})" for name, dim in model.layers.items())
    print(f"Embedding {len(images):,} images of {images.name}: {layers}.", flush=True)
    write(model, images, output, data_dir=config.data_dir)
    print(f"Embeddings: {output}")
    return output


def embed(
    model,
    images,
    layers: Sequence[str] = ("h",),
    *,
    output: str | os.PathLike | None = None,
    data_dir: str = "",
    cache_dir: str = "",
) -> Embeddings | pathlib.Path:
    """Embeds images with a trained model.

    Args:
        model: A run folder, the folder of an exported model, or a method in memory such
            as `SimCLR`.
        images: A folder, an image file, the name of a data set, a list of paths, or an
            array `[n, H, W, 3]` in 0-255.
        layers: Names of the layers: h, head_1, ..., z.
        output: A file that ends in .parquet, .npz or .csv. The rows are then written
            as they are made, in constant memory, and a repeated call goes on with an
            unfinished file.
        data_dir: Folder of TensorFlow Datasets, for the name of a data set.
        cache_dir: Folder of prepared images; default `~/.cache/tfsimclr`.

    Returns:
        The embeddings, in the order of the images and without unreadable ones; with
        `output` the path of the file.

    Raises:
        UserError: If there is no model or no image, more than 1 % of the images are
            unreadable, or the output file is of other images or another model.

    Example:
        `tfsimclr.embed("runs/mine", "photos").features["h"]`
    """
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    if output is not None:
        embeddings.check_output(pathlib.Path(output))
    if isinstance(model, (str, os.PathLike)):
        network = embedders.open_embedder(model, layers)
    else:
        network = embedders.of_model(model, layers)
    if isinstance(images, (str, os.PathLike)):
        opened = collections.open_collection(
            os.fspath(images),
            network.image_size,
            data_dir=data_dir,
            cache_dir=cache_dir,
        )
    elif isinstance(images, (np.ndarray, tf.Tensor)):
        opened = collections.from_array(np.asarray(images))
    else:
        opened = collections.from_paths(list(images), network.image_size)
    if output is not None:
        write(network, opened, pathlib.Path(output), data_dir=data_dir)
        return pathlib.Path(output)
    return embed_collection(network, opened, data_dir)


def embed_collection(
    model: Embedder, images: collections.Collection, data_dir: str = ""
) -> Embeddings:
    """Returns the embeddings of images, in memory.

    Raises:
        UserError: If more than 1 % of them are unreadable.
    """
    parts: list[Embeddings] = []
    unreadable: list[str] = []
    meta = describe(model, images, data_dir)
    for rows, errors, _ in _embed_batches(model, images, 0, meta):
        parts.append(rows)
        unreadable += errors
        check_unreadable(unreadable, len(images), errors)
    return _concatenated(parts, {**meta, "unreadable": len(unreadable)})


def write(
    model: Embedder, images: collections.Collection, output: pathlib.Path, data_dir=""
) -> None:
    """Writes an embedding file; goes on with an unfinished one.

    Args:
        model: The network.
        images: The images.
        output: The file; .parquet, .npz or .csv.
        data_dir: Folder of TensorFlow Datasets, which is noted in the file.

    Raises:
        UserError: If the file or its parts are of other embeddings, or more than 1 % of
            the images are unreadable.
        OSError: If it cannot be written; a repeated call goes on.
    """
    meta = describe(model, images, data_dir)
    if embeddings.is_complete(output, meta["key"]):
        print(f"{output} is complete.")
        return
    with embeddings.EmbeddingWriter(output, meta).open() as writer:
        if writer.position:
            print(f"Resuming behind {writer.position:,} of {len(images):,} images.")
        progress = tqdm.tqdm(
            total=len(images),
            initial=writer.position,
            desc="embedding",
            unit=" images",
            disable=not sys.stderr.isatty(),
        )
        with progress:
            batches = _embed_batches(model, images, writer.position, meta)
            for rows, errors, stop in batches:
                progress.update(stop - writer.position)
                writer.append(rows, errors, stop)
                check_unreadable(writer.unreadable, len(images), errors)
        writer.finish()
        print(f"{writer.num_rows:,} images embedded", end="")
        count = len(writer.unreadable)
        print(f", {count} unreadable ones left out." if count else ".", flush=True)


def check_unreadable(unreadable: Sequence[str], total: int, latest=()) -> None:
    """Names the latest unreadable images; stops at more than 1 % of all.

    Raises:
        UserError: If there are more, or the only image is unreadable.
    """
    for line in latest if total > 1 else ():
        if unreadable.index(line) < MAX_NAMED:
            tqdm.tqdm.write(f"unreadable, left out: {line}", file=sys.stderr)
    if unreadable and total == 1:
        raise UserError(f"{unreadable[0]}. Expected an image.")
    if len(unreadable) > prepare.MAX_UNREADABLE * total:
        raise UserError(
            f"more than {prepare.MAX_UNREADABLE:.0%} of the {total} images are "
            f"unreadable ({len(unreadable)} so far), the last one {unreadable[-1]}. "
            "Repair or remove them."
        )


def describe(
    model: Embedder, images: collections.Collection, data_dir: str = ""
) -> dict[str, Any]:
    """Returns the meta of an embedding file; see `embeddings.EmbeddingFile`."""
    identity = {
        "format": embeddings.FORMAT,
        "model": model.checksum,
        "layers": model.layers,
        "image_size": model.image_size,
        "side": images.side,
        "ranges": {kind: [r.low, r.high] for kind, r in images.ranges.items()},
        "images": images.name,
    }
    return {
        **identity,
        "data_dir": data_dir,
        "num_images": len(images),
        "key": files.sha256(json.dumps(identity), images.fingerprint),
        "versions": {
            "tfsimclr": __version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
    }


def open_model(config: Config, layers: Sequence[str]) -> Embedder:
    """Returns the network that `--workdir` names."""
    if not config.workdir:
        raise UserError(
            f"--mode={config.mode} needs --workdir, a run folder or the folder of an "
            "exported model."
        )
    return embedders.open_embedder(config.workdir, layers, config.image_size)


def open_images(config: Config, image_size: int) -> collections.Collection:
    """Returns the images that `--images` names."""
    if not config.images:
        raise UserError(
            "--mode=embed needs --images: a folder, an image file, or the name of a "
            "data set."
        )
    return collections.open_collection(
        config.images,
        image_size,
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
        label_key=config.label_key,
        max_value=config.max_value,
    )


def layer_names(text: str) -> tuple[str, ...]:
    """Returns the names in a list with commas."""
    return tuple(name.strip() for name in text.split(","))


def _embed_batches(
    model: Embedder, images: collections.Collection, start: int, meta: dict[str, Any]
) -> Iterator[tuple[Embeddings, tuple[str, ...], int]]:
    """Yields the rows of a batch, its unreadable images and the position behind it."""
    for batch, checksums in _ahead(images.batches(BATCH_SIZE, start)):
        rows = batch.rows.tolist()
        embedded = Embeddings(
            paths=[images.paths[row] for row in rows],
            splits=[images.splits[row] for row in rows],
            labels=[images.labels[row] for row in rows],
            checksums=checksums,
            features=model.features(batch.images),
            meta=meta,
        )
        yield embedded, batch.unreadable, batch.stop


def _ahead(
    batches: Iterator[collections.Batch],
) -> Iterator[tuple[collections.Batch, list[str]]]:
    """Yields batches with their checksums; a thread reads the next one meanwhile."""

    def following():
        batch = next(batches, None)
        if batch is None:
            return None
        return batch, [files.sha256(image) for image in batch.images]

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pending = pool.submit(following)
        while (result := pending.result()) is not None:
            pending = pool.submit(following)
            yield result


def _concatenated(parts: Sequence[Embeddings], meta: dict[str, Any]) -> Embeddings:
    def joined(name: str) -> list:
        return [value for part in parts for value in getattr(part, name)]

    return Embeddings(
        paths=joined("paths"),
        splits=joined("splits"),
        labels=joined("labels"),
        checksums=joined("checksums"),
        features={
            layer: np.concatenate([part.features[layer] for part in parts])
            for layer in parts[0].features
        },
        meta=meta,
    )
