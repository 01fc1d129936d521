"""Files for TensorBoard's embedding projector: features, labels and thumbnails."""

import pathlib

import numpy as np
import tensorflow as tf
from tensorboard.plugins import projector

from tfsimclr.data import dataset as datasets
from tfsimclr.views import random_view

THUMBNAIL_SIZE = 32


def write(
    folder: pathlib.Path,
    features: np.ndarray,
    test: datasets.Split,
    class_names,
    count: int = 500,
) -> None:
    """Writes a random subset of the test features for the embedding projector.

    Args:
        folder: TensorBoard's log folder; made if missing.
        features: `[n, d]`, the feature h of the test images.
        test: The n test images and their labels.
        class_names: Name of each class.
        count: Largest number of images shown.
    """
    folder.mkdir(exist_ok=True)
    rows = np.random.default_rng(0).permutation(len(features))[:count]
    np.savetxt(folder / "h.tsv", features[rows], fmt="%.5g", delimiter="\t")
    # Names become one line each, without tabs.
    names = [" ".join(str(class_names[i]).split()) for i in test.labels[rows]]
    # Folder names may be bytes that are not UTF-8; these become question marks.
    (folder / "labels.tsv").write_bytes(
        "\n".join([*names, ""]).encode(errors="replace")
    )
    # Memory-mapped images are read fastest in their order on disk.
    order = np.argsort(rows)
    thumbnails = np.empty((len(rows), THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3), np.float32)
    thumbnails[order] = random_view.plain_view(
        test.images[rows[order]], THUMBNAIL_SIZE
    ).numpy()
    (folder / "sprite.png").write_bytes(_sprite(thumbnails))
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add(
        tensor_name="h", tensor_path="h.tsv", metadata_path="labels.tsv"
    )
    embedding.sprite.image_path = "sprite.png"
    embedding.sprite.single_image_dim.extend([THUMBNAIL_SIZE, THUMBNAIL_SIZE])
    projector.visualize_embeddings(str(folder), config)


def _sprite(images: np.ndarray) -> bytes:
    """Returns a PNG that shows square images `[n, s, s, 3]` in 0-1 in a square grid."""
    side, size = int(np.ceil(np.sqrt(len(images)))), images.shape[1]
    grid = np.zeros((side * side, size, size, 3), np.float32)
    grid[: len(images)] = images
    rows = grid.reshape(side, side, size, size, 3).swapaxes(1, 2)
    pixels = (255 * rows.reshape(side * size, side * size, 3)).astype(np.uint8)
    return tf.io.encode_png(pixels).numpy()
