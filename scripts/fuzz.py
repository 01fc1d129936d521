"""Feeds random image files, folders and command lines to the program, in one process.

Whatever comes must give a result or an error of one line. A traceback of another kind,
or no answer within seconds, is a failure. A case depends on the seed and its number
alone, so a failure can be repeated:

    python scripts/fuzz.py --count=30000 --seed=0
    python scripts/fuzz.py --kind=images --seed=0 --first=1234 --count=1
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import os
import pathlib
import random  # noqa: TID251 (a generator of its own for every case)
import shutil
import signal
import sys
import tempfile
import time
import traceback

import numpy as np
from absl import flags
from PIL import Image

from tfsimclr import resolve
from tfsimclr.data import folder, images
from tfsimclr.errors import UserError
from tfsimclr.settings import config as configs
from tfsimclr.settings import flagfiles

SECONDS = 20


class Hang(BaseException):
    """No `Exception`, which the code under test may catch."""


def require(condition, problem) -> None:
    """Raises an error of a kind that no user sees, unless the condition holds."""
    if not condition:
        raise RuntimeError(problem)


@contextlib.contextmanager
def time_limit(seconds: int):
    """Raises `Hang` in the block after that time."""

    def stop(number, frame):
        raise Hang(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class ImageFiles:
    """Image files of every kind with bytes changed, removed, inserted and cut off."""

    def __init__(self, place: pathlib.Path):
        self.path = place / "image"
        self.originals = list(whole_images())

    def run(self, generator: random.Random) -> str:
        content = bytearray(generator.choice(self.originals))
        for _ in range(generator.choice((0, 1, 1, 2, 4, 8))):
            # Headers decide more than pixels, so they are changed more often.
            end = len(content) if generator.random() < 0.5 else min(80, len(content))
            at, length = generator.randrange(end + 1), generator.randrange(5)
            new = generator.choice(
                (generator.randbytes(length), bytes(length), b"\xff" * length)
            )
            content[at : at + generator.randrange(5)] = new
        if generator.random() < 0.2:
            del content[generator.randrange(len(content) + 1) :]
        size = generator.choice((1, 8, 31))
        source: str | bytes = bytes(content)
        if generator.random() < 0.1:
            self.path.write_bytes(source)
            source = str(self.path)
        with images._quietly():
            try:
                images.extent(source, "it")
                require(images.short_side(source, "it") >= 1, "no size")
                # The range is that of the data set, which other images decide.
                ranges = {k: images.depth.Range(0, 4095) for k in ("integer", "float")}
                result = images.read(source, size, "it", ranges, images.Facts())
            except images.UnreadableImageError as error:
                require(error.reason and "\n" not in str(error), error)
                return "unreadable"
        require(result.shape == (size, size, 3), result.shape)
        require(result.dtype == np.uint8, result.dtype)
        return "read"


class Folders:
    """Trees of folders with the names that people and systems give."""

    NAMES = (
        *("train", "Train", "test", "TEST", "val", "valid", "seg_train", "training"),
        *("unlabeled", "unlabelled", "cat", "dog", "cow", "1", "2", "10", "images"),
        *("masks", "unknown", "@eaDir", "lost+found", ".git", "a\nb", "ü ", "\udcff"),
    )
    FILES = (
        *("1.png", "2.PNG", "3.jpg", "4.heic", "5.dng", "notes.txt", "Thumbs.db", "x"),
        *(".hidden.png", "6.tiff", "a\nb.png", "\udcff.png", "7.gif"),
    )

    def __init__(self, place: pathlib.Path):
        self.root = place / "folder"

    def run(self, generator: random.Random) -> str:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        self._fill(self.root, generator, 0)
        try:
            source = folder.FolderSource(str(self.root))
        except UserError as error:
            require(0 < len(str(error)) < 2000, error)
            return "refused"
        used = [path for split in source.splits.values() for path, _ in split]
        require(len(used) == len(set(used)), "an image is used twice")
        for name, split in source.splits.items():
            require(split, f"split {name} is empty")
            for _, label in split:
                is_unlabelled = label == -1
                require(is_unlabelled == (name == "unlabeled"), "a wrong label")
                require(label < len(source.class_names), "a label without a class")
        counted = {k: n for k, n in source.left_aside.items() if k.startswith("images")}
        found = sum(source.found.values())
        require(len(used) + sum(counted.values()) == found, "images got lost")
        names, paths = source.files()
        require(len(set(names)) == len(paths) == len(used), "names are not unique")
        return "labelled" if source.class_names else "unlabelled"

    def _fill(self, place: pathlib.Path, generator: random.Random, depth: int) -> None:
        for name in generator.sample(self.FILES, generator.choice((0, 0, 1, 2, 4))):
            (place / name).touch()
        if depth == 3:
            return
        count = generator.choice((0, 1, 2, 3) if depth else (1, 2, 3, 4))
        for name in generator.sample(self.NAMES, count):
            if generator.random() < 0.05:
                target = generator.choice((self.root, place, place / "nowhere"))
                (place / name).symlink_to(target)
            else:
                (place / name).mkdir()
                self._fill(place / name, generator, depth + 1)


class CommandLines:
    """Lines of flags, some of them in a file."""

    WORDS = (
        *(
            "true",
            "false",
            "none",
            "auto",
            "",
            "~",
            "0",
            "1",
            "-1",
            "1e9",
            "nan",
            "inf",
        ),
        *("0.5", "h", "z", "head_2", "folder", "textures", "cifar10:1.0.0", "a\0b"),
        *(
            "~nobody/x",
            "\udcff",
            "ü",
            " ",
            "'",
            '"',
            "=",
            "--",
            "\n",
            "stl10",
            "finetune",
        ),
    )

    def __init__(self, place: pathlib.Path):
        self.path = place / "fuzzed.flags"
        self.fields = dataclasses.fields(configs.Config)
        self.values = flags.FlagValues()
        configs.define_flags(self.values)
        self.values.set_gnu_getopt(True)

    def run(self, generator: random.Random) -> str:
        lines = [self._flag(generator) for _ in range(generator.randrange(5))]
        text = "\n".join(self._flag(generator) for _ in range(generator.randrange(4)))
        content = text.encode(errors="surrogateescape")
        if generator.random() < 0.1:
            content = generator.randbytes(generator.randrange(60))
        self.path.write_bytes(content)
        if generator.random() < 0.5:
            lines.append(f"--flagfile={self.path}")
        arguments = ["program", *(line.replace("\0", "") for line in lines)]
        self.values.unparse_flags()
        for name in self.values:
            self.values[name].unparse()
        try:
            self.values(flagfiles.expand(arguments))
            config = configs.from_flags(self.values)
            resolve.check(config, *flagfiles.names_given(arguments))
        except SystemExit as stop:
            require(str(stop.code).startswith("tfsimclr: "), stop.code)
            return "refused flagfile"
        except (flags.Error, UserError) as error:
            require(str(error), "no message")
            return "refused"
        except ValueError as error:  # absl's, which `run._parse` catches
            place = traceback.extract_tb(error.__traceback__)[-1].name
            require(place == "_parse_args", error)
            return "refused"
        return "settings"

    def _flag(self, generator: random.Random) -> str:
        field = generator.choice(self.fields)
        choices = field.metadata["choices"] or ()
        good = [str(field.default), *choices, "3", "0.25"]
        value = generator.choice(good if generator.random() < 0.7 else self.WORDS)
        start = generator.choices(("--", "-", "--no", ""), (20, 1, 1, 1))[0]
        return f"{start}{field.name}={value}"


KINDS = {"images": ImageFiles, "folders": Folders, "flags": CommandLines}


def whole_images():
    """Yields small image files of every kind that is read, and of many that are not."""
    x, y = np.mgrid[:24, :20]
    image = Image.fromarray(np.stack([9 * x, 12 * y, 5 * (x + y)], -1).astype(np.uint8))
    wide = Image.fromarray((2000 * x).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    others = [image.rotate(90), image.convert("L").convert("RGB")]
    kinds = [
        *(("JPEG", image, {"exif": exif}), ("JPEG", image, {"progressive": True})),
        *(("JPEG", image.convert("CMYK"), {}), ("JPEG", image.convert("L"), {})),
        *(("PNG", image, {}), ("PNG", image.convert("RGBA"), {"exif": exif})),
        *(("PNG", image.convert("P"), {"transparency": 3}), ("PNG", wide, {})),
        *(("PNG", image.convert("1"), {}), ("PNG", image.convert("LA"), {})),
        *(("WEBP", image, {}), ("WEBP", image, {"lossless": True})),
        *(("GIF", image, {"save_all": True, "append_images": others}),),
        *(("BMP", image, {}), ("PPM", image, {}), ("PPM", wide, {})),
        *(("TIFF", image, {}), ("TIFF", wide, {}), ("TIFF", image.convert("F"), {})),
        *(("TIFF", image, {"compression": "tiff_lzw"}),),
        *(("TIFF", image, {"compression": "jpeg"}),),
        *(("TIFF", wide, {"compression": "tiff_adobe_deflate"}),),
        *(("TIFF", image, {"save_all": True, "append_images": others}),),
        *(("TIFF", image.convert("1"), {"compression": "group4"}),),
        *(("MPO", image, {"save_all": True, "append_images": others}),),
        *((("HEIF", image, {}),) if images.HAS_HEIF else ()),
        *((("AVIF", image, {}),) if images.HAS_AVIF else ()),
    ]
    for kind, picture, options in kinds:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        yield stream.getvalue()


def fuzz(kind: str, seed: int, first: int, count: int) -> tuple[dict, list[str]]:
    """Returns how often each result occurred, and the failures.

    Args:
        kind: One of `KINDS`.
        seed: Seed of all cases.
        first: Number of the first case.
        count: Number of cases.
    """
    results: collections.Counter = collections.Counter()
    failures = []
    with tempfile.TemporaryDirectory() as place:
        cases = KINDS[kind](pathlib.Path(place))
        for number in range(first, first + count):
            try:
                with time_limit(SECONDS):
                    results[cases.run(random.Random(f"{seed} {number}"))] += 1
            except (Exception, Hang):
                lines = traceback.format_exc(limit=-3).strip()
                failures.append(f"{kind} {number}: {lines}")
    return dict(results), failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", choices=KINDS, action="append")
    options = parser.parse_args()
    failed = False
    for kind in options.kind or KINDS:
        start = time.monotonic()
        results, failures = fuzz(kind, options.seed, options.first, options.count)
        for failure in failures[:10]:
            print(failure, file=sys.stderr)
        seconds = time.monotonic() - start
        counts = ", ".join(f"{count} {name}" for name, count in sorted(results.items()))
        print(f"{kind}: {options.count} cases in {seconds:.0f} s: {counts}", flush=True)
        print(f"{kind}: {len(failures)} failures", flush=True)
        failed = failed or bool(failures)
    sys.exit(int(failed))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
