"""Recall, speed and memory of the search index: `python scripts/search_speed.py RUN`.

The collection is h of photographs, and copies of these vectors with noise. The queries
are h of 1,000 photographs that are not in it. Exact search and the index answer the
same queries; `--out` writes the numbers.
"""

import argparse
import json
import pathlib
import time

import numpy as np

from tfsimclr import __version__, files
from tfsimclr.data import collection as collections
from tfsimclr.evaluation import neighbors, search_index
from tfsimclr.runs import hardware, loading, results
from tfsimclr.settings import flagfiles

NUM_QUERIES = 1000
NOISE = 0.5
BLOCK = 16384  # rows of a row group of an embedding file


def make_features(run: pathlib.Path, images: str, count: int) -> tuple:
    """Returns the features of the collection, `[count, d]`, and of the queries."""
    model = loading.model(flagfiles.read_config(run / "flags.txt"), run)[0]
    opened = collections.open_collection(images, model.views.image_size)
    pixels = np.concatenate([batch.images for batch in opened.batches(1024)])
    return multiply(model.features(pixels)["h"], count)


def multiply(h: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a larger collection and queries that are not in it.

    Args:
        h: Features of photographs, `[n, d]` with n above 1,000.
        count: Size of the collection: photographs, and copies of them with noise of
            `NOISE` standard deviations of each dimension.
    """
    rng = np.random.default_rng(0)
    h = h[rng.permutation(len(h))]
    queries, h = h[:NUM_QUERIES], h[NUM_QUERIES:]
    bank = h[np.arange(count) % len(h)]
    copies = bank[len(h) :]
    copies += NOISE * h.std(axis=0) * rng.normal(size=copies.shape).astype(np.float32)
    return bank[rng.permutation(count)], queries


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
    parser.add_argument("--sizes", default="200000,1000000", help="vectors")
    parser.add_argument("--h", type=pathlib.Path, help="features of the images, .npy")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.h:
        bank, queries = multiply(np.load(options.h), max(sizes))
    else:
        bank, queries = make_features(options.run, options.images, max(sizes))
    index = options.out.with_suffix(".faiss")
    rows = []
    for size in sizes:
        rows.append(measure(bank[:size], queries, index))
        print(json.dumps(rows[-1], indent=1), flush=True)
    index.unlink()
    content = {
        "command": "python scripts/search_speed.py RUN --images=FOLDER "
        "--out=results/embeddings/index.json",
        "noise": NOISE,
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
