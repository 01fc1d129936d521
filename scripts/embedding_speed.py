"""Speed and memory of `--mode=embed`: `python scripts/embedding_speed.py RUN`.

Speed: embedding the images of a folder from their prepared store to a Parquet file,
against `model.predict` and `model.features` on the same images in memory, in turn.
Memory: the peak of a process that embeds 2,000, 10,000 and 50,000 of the images.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from tfsimclr.data import collection as collections
from tfsimclr.data import dataset as datasets
from tfsimclr.data import images as image_files
from tfsimclr.modes import embed
from tfsimclr.runs import embedder as embedders
from tfsimclr.runs import loading
from tfsimclr.settings import flagfiles

SIZES = (2_000, 10_000, 50_000)


def measure_speed(run: pathlib.Path, folder: pathlib.Path, rounds: int) -> None:
    """Prints images per second of each way, and the ratio to the fastest opponent."""
    model = loading.model(flagfiles.read_config(run / "flags.txt"), run)[0]
    size = model.views.image_size
    with tempfile.TemporaryDirectory() as temporary:
        place = {"data_dir": str(folder), "cache_dir": f"{temporary}/cache"}
        datasets.load("folder", image_size=size, **place)
        opened = collections.open_collection(
            str(folder), size, cache_dir=place["cache_dir"]
        )
        if not opened.stored:
            sys.exit(f"{folder} has no prepared store: a run leaves some images aside.")
        array = np.concatenate([np.asarray(part) for part in opened.stored])
        scaled = array.astype(np.float32) / 255  # what `predict` takes; not timed
        embedder = embedders.of_model(model, ("h",))
        ways = {
            "embed": lambda: embed.write(embedder, opened, output),
            "model.predict": lambda: model.predict(scaled, batch_size=256, verbose=0),
            "model.features": lambda: model.features(array),
        }
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):  # the first one traces and is not counted
            for name, way in ways.items():
                output = pathlib.Path(temporary, f"{number}.parquet")
                start, cpu_start = time.perf_counter(), time.process_time()
                way()
                seconds = time.perf_counter() - start
                if number:
                    speeds[name].append(len(opened) / seconds)
                    cpu[name].append(len(opened) / (time.process_time() - cpu_start))
    print(f"{len(opened):,} images of {size} pixels")
    for title, rates in (("second", speeds), ("second of processor time", cpu)):
        for name, values in rates.items():
            listed = ", ".join(f"{value:,.0f}" for value in values)
            print(f"{name:15} images per {title}: {listed}")
        for name in ("model.predict", "model.features"):
            pairs = zip(rates["embed"], rates[name], strict=True)
            ratios = [ours / theirs for ours, theirs in pairs]
            listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"embed / {name}: {listed}; median {statistics.median(ratios):.2f}")


def measure_memory(run: pathlib.Path, folder: pathlib.Path) -> None:
    """Prints the peak memory of a process for each number of images."""
    paths = sorted(image_files.find(str(folder))[0])
    for count in SIZES:
        if count > len(paths):
            print(f"{count:,} images: {folder} has only {len(paths):,}")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            for index in np.linspace(0, len(paths) - 1, count).astype(int):
                ending = os.path.splitext(paths[index])[1]
                shutil.copyfile(paths[index], f"{temporary}/{index:07}{ending}")
            command = [sys.executable, "-m", "tfsimclr.run", "--mode=embed"]
            command += [f"--workdir={run}", f"--images={temporary}"]
            command += [f"--output={temporary}/embeddings.parquet"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            peak = 0
            while process.poll() is None:
                peak = max(peak, peak_kib(process.pid))
                time.sleep(0.05)
            if process.returncode:
                sys.exit(f"the command failed: {' '.join(command)}")
            print(f"{count:,} images: {peak / 1024:,.0f} MiB", flush=True)


def peak_kib(pid: int) -> int:
    """Returns the peak memory of a process so far in KiB; 0 once it has ended.

    The `ru_maxrss` of a child would include the peak of this process, which Linux
    carries over to the program that a child starts.
    """
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) for x in lines if x.startswith("VmHWM:")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="run folder")
    parser.add_argument("--images", type=pathlib.Path, help="folder, for the speed")
    parser.add_argument("--many", type=pathlib.Path, help="folder, for the memory")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.images:
        measure_speed(options.run, options.images, options.rounds)
    if options.many:
        measure_memory(options.run, options.many)


if __name__ == "__main__":
    main()
