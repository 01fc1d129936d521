"""Recall, speed and memory of the search index: `python scripts/search_speed.py RUN`.

Features of random views of photographs make the collection: `--views` views of each
image. The queries are 1,000 more views. Exact search and the index answer the same
queries; `--out` writes the numbers.
"""

import argparse
import json
import pathlib
import time

import numpy as np
import tensorflow as tf

from tfsimclr import __version__, files
from tfsimclr.data import collection as collections
from tfsimclr.evaluation import neighbors, search_index
from tfsimclr.runs import hardware, loading, results
from tfsimclr.settings import flagfiles

NUM_QUERIES = 1000
BLOCK = 16384  # rows of a row group of an embedding file


def make_features(run: pathlib.Path, images: str, views: int) -> tuple:
    """Returns the features of the collection, `[n, d]`, and of the queries."""
    model = loading.model(flagfiles.read_config(run / "flags.txt"), run)[0]
    opened = collections.open_collection(images, model.views.image_size)
    pixels = np.concatenate([batch.images for batch in opened.batches(1024)])
    features = tf.function(
        lambda x, seed: model.encoder(model.views(x, seed), training=False)
    )
    parts = [
        features(tf.constant(pixels[i : i + 500]), tf.constant([view, i])).numpy()
        for view in range(views)
        for i in range(0, len(pixels), 500)
    ]
    rows = np.random.default_rng(0).choice(len(pixels), NUM_QUERIES)
    queries = features(tf.constant(pixels[rows]), tf.constant([views, 0])).numpy()
    return np.concatenate(parts), queries


def measure(bank: np.ndarray, queries: np.ndarray, path: pathlib.Path) -> dict:
    """Returns seconds, recall and bytes of both ways of searching."""
    clock = time.perf_counter

    def blocks():
        return (bank[i : i + BLOCK] for i in range(0, len(bank), BLOCK))

    start = clock()
    exact, rows = neighbors.top_k(queries, blocks(), 10)
    exact_seconds = clock() - start
    start = clock()
    neighbors.top_k(queries[:1], blocks(), 10)
    one_exact = clock() - start
    start = clock()
    index, own_recall = search_index.build(blocks, len(bank), bank.shape[1])
    build_seconds = clock() - start
    index.save(path)
    size = path.stat().st_size
    index = search_index.load(path)
    start = clock()
    near, found = index.top_k(queries, 10)
    seconds = clock() - start
    same = np.mean(
        [len(set(a) & set(b)) / 10 for a, b in zip(found, rows, strict=True)]
    )
    return {
        "vectors": len(bank),
        "dimensions": bank.shape[1],
        "clusters": index.num_clusters,
        "clusters_searched": index.num_probed,
        "recall_at_10_of_own_rows": own_recall,
        "recall_at_10": search_index.recall_of(near, exact),
        "same_rows": float(same),
        "build_seconds": build_seconds,
        "index_bytes": size,
        "queries": len(queries),
        "exact_seconds": exact_seconds,
        "index_seconds": seconds,
        "one_query_exact_seconds": one_exact,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="run folder")
    parser.add_argument("--images", required=True, help="folder of photographs")
    parser.add_argument("--views", type=int, default=17, help="of each photograph")
    parser.add_argument("--sizes", default="200000,1000000", help="vectors")
    parser.add_argument("--features", type=pathlib.Path, help="keeps them, .npz")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file")
    options = parser.parse_args()
    if options.features and options.features.exists():
        with np.load(options.features) as kept:
            bank, queries = kept["bank"], kept["queries"]
    else:
        bank, queries = make_features(options.run, options.images, options.views)
        if options.features:
            np.savez(options.features, bank=bank, queries=queries)
    # Views of one image are not neighbours in the file.
    bank = bank[np.random.default_rng(0).permutation(len(bank))]
    rows = []
    for size in map(int, options.sizes.split(",")):
        rows.append(measure(bank[:size], queries, options.out.with_suffix(".faiss")))
        print(json.dumps(rows[-1], indent=1), flush=True)
    options.out.with_suffix(".faiss").unlink()
    content = {
        "command": "python scripts/search_speed.py RUN --images=FOLDER "
        "--out=results/embeddings/index.json",
        "git_commit": results.git_commit(),
        "versions": {
            "tfsimclr": __version__,
            "faiss": search_index.load_faiss().__version__,
        },
        "hardware": hardware.describe(),
        "sizes": rows,
    }
    text = json.dumps(content, indent=1) + "\n"
    files.write_atomically(options.out, text.encode())


if __name__ == "__main__":
    main()
