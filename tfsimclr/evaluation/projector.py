"""TensorBoard's embedding projector: features, labels and thumbnails."""

import pathlib

import numpy as np
import tensorflow as tf

from tfsimclr.views import random_view


def write(folder: pathlib.Path, features, test, class_names, count=500):
    """Writes the first test features for TensorBoard's embedding projector."""
    folder.mkdir(exist_ok=True)
    shown = np.random.default_rng(0).permutation(len(features))[:count]
    np.savetxt(folder / "h.tsv", features[shown], fmt="%.5g", delimiter="\t")
    names = [" ".join(str(class_names[i]).split()) for i in test.labels[shown]]
    # The name of a folder need not be text: such bytes become question marks.
    (folder / "labels.tsv").write_bytes(
        "\n".join([*names, ""]).encode(errors="replace")
    )
    side = int(np.ceil(np.sqrt(len(shown))))
    size = 32
    tiles = random_view.plain_view(test.images[np.sort(shown)], size).numpy()
    tiles = tiles[np.argsort(np.argsort(shown))]
    sheet = np.zeros((side * side, size, size, 3), np.float32)
    sheet[: len(tiles)] = tiles
    rows = sheet.reshape(side, side, size, size, 3).swapaxes(1, 2)
    picture = (255 * rows.reshape(side * size, side * size, 3)).astype(np.uint8)
    (folder / "sprite.png").write_bytes(tf.io.encode_png(picture).numpy())
    (folder / "projector_config.pbtxt").write_text(
        'embeddings {\n  tensor_name: "h"\n  tensor_path: "h.tsv"\n'
        '  metadata_path: "labels.tsv"\n  sprite {\n    image_path: "sprite.png"\n'
        f"    single_image_dim: {size}\n    single_image_dim: {size}\n  }}\n}}\n"
    )
