"""Image files of any common kind, read as square uint8 arrays."""

import collections
import concurrent.futures
import contextlib
import io
import os
import stat
import statistics
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from tfsimclr.data import decoding
from tfsimclr.errors import UserError

EXTENSIONS = frozenset(
    ".jpg .jpeg .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm".split()
)
# Folders that operating systems and network storage create: thumbnails, deleted files,
# snapshots. Compared in lower case.
MACHINE_FOLDERS = frozenset(
    (
        *("@eadir", "#recycle", "$recycle.bin", "#snapshot", "lost+found"),
        *("system volume information", "__macosx"),
    )
)
# Photographs in formats that Pillow cannot read by itself.
CONVERTIBLE = frozenset(".heic .heif .avif .jp2 .dng .cr2 .nef .arw .raw".split())
# Pillow's other formats need outside programs or are no photographs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# A camera has at most 150 million pixels; a file of a few kilobytes can claim more.
MAX_PIXELS = 178_956_970
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BUDGET = decoding.Budget()
_BLOCK = 32  # images per task of the pool: one task per image costs as much as decoding


class UnreadableImageError(Exception):
    """An image that cannot be used, with its `path` and a `reason` of one line."""

    def __init__(self, path: str, reason: str):
        self.path = path
        self.reason = " ".join(reason.split())
        super().__init__(path, self.reason)

    def __str__(self) -> str:
        # repr: a name may hold a newline, and the message is one line.
        return f"{self.path!r}: {self.reason}"


def find(folder: str) -> tuple[list[str], collections.Counter]:
    """Returns the image files below a folder, and what else is there.

    Links are followed, and every link counts; a link to one of the folders above it is
    not followed, so a loop of links ends. Names that start with a dot and the folders
    in `MACHINE_FOLDERS` are skipped. A broken link with the name of an image is listed,
    so that the user is told about it when it is read.

    Returns:
        The sorted paths, by file extension; and the number of other files for each
        extension (`.heic`) and of skipped machine folders for each name (`@eaDir/`).

    Raises:
        UserError: If a folder cannot be listed.
    """
    paths: list[str] = []
    others: collections.Counter = collections.Counter()

    def walk(path: str, above: frozenset) -> None:
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        for name in sorted(_listed(path)):
            inner = os.path.join(path, name)
            if name.startswith("."):
                continue
            if os.path.isdir(inner):
                if name.lower() in MACHINE_FOLDERS:
                    others[f"{name}/"] += 1
                else:
                    walk(inner, above | {identity})
            elif _is_file_or_broken_link(inner):
                extension = os.path.splitext(name)[1].lower()
                if extension in EXTENSIONS:
                    paths.append(inner)
                else:
                    others[extension or "files without an extension"] += 1

    walk(folder, frozenset())
    return sorted(paths), others


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UserError(
            f"cannot list the folder {error.filename!r}: {error.strerror}. "
            "Make it readable or move it out of the image folder."
        ) from error


def read(source: str | bytes, size: int, name: str = "") -> np.ndarray:
    """Returns one image as uint8 `[size, size, 3]`, RGB.

    The image is turned upright (EXIF), the short side is resized to `size`
    (antialiased) and the middle square is kept. Gray images become three equal
    channels, 16-bit gray is scaled to 8 bits, transparent pixels become white, of an
    animation the first frame counts, colour profiles are ignored.

    Args:
        source: Path of a file, or the bytes of one.
        size: Side of the square in pixels.
        name: What an error calls the image; by default the path.

    Raises:
        UnreadableImageError: If the image cannot be used, for any reason.
    """
    name = name or (source if isinstance(source, str) else "image")
    try:
        with _opened(source) as image:
            full_size = image.size
            # JPEG decodes at 1/2, 1/4, 1/8 almost for free; the factor of two leaves
            # the last resampling step to a proper filter.
            image.draft(None, (2 * size, 2 * size))
            need = decoding.bytes_needed(image, full_size)
            with _BUDGET.reserve(need), contextlib.closing(image):
                orientation = _orientation(image)  # decodes all of a PNG
                square = _square(decoding.rgb(image), size)
        if orientation in _UPRIGHT:
            square = square.transpose(_UPRIGHT[orientation])
        return np.array(square, np.uint8)
    except Exception as error:  # Pillow raises a dozen kinds on damaged files
        raise UnreadableImageError(name, _reason(error)) from error


def short_side(source: str | bytes, name: str = "") -> int:
    """Returns the shorter side of an image in pixels, from the file's header alone.

    Raises:
        UnreadableImageError: If the header cannot be read.
    """
    name = name or (source if isinstance(source, str) else "image")
    try:
        with _opened(source) as image:
            return min(image.size)
    except Exception as error:
        raise UnreadableImageError(name, _reason(error)) from error


def median_short_side(sources: Iterable[tuple[str | bytes, str]]) -> int:
    """Returns the median short side, in pixels, of those images that can be read.

    Args:
        sources: Pairs (path or bytes, name for messages).

    Raises:
        UserError: If none can be read.
    """
    sides, error = [], None
    with _quietly():
        for source, name in sources:
            try:
                sides.append(short_side(source, name))
            except UnreadableImageError as unreadable:
                error = unreadable
    if not sides:
        raise UserError(f"none of the images looked at can be read, such as {error}.")
    return statistics.median_low(sides)


def read_all(
    rows: Iterable[tuple[str | bytes, str, int]], size: int, threads: int | None = None
) -> Iterator[list[tuple[np.ndarray | UnreadableImageError, int]]]:
    """Yields blocks of (image or `UnreadableImageError`, label), in order.

    Threads, not processes: Pillow decodes without the interpreter lock, and a forked or
    spawned child of a program that holds TensorFlow is slow or unsafe.

    Args:
        rows: Triples (path or bytes, name for messages, label); read as needed.
        size: Side of the images in pixels.
        threads: Number of threads; default is one per core, at most 16.
    """
    threads = threads or min(16, os.cpu_count() or 1)

    def read_block(block: list) -> list:
        results: list = []
        for source, name, label in block:
            try:
                results.append((read(source, size, name), label))
            except UnreadableImageError as error:
                results.append((error, label))
        return results

    pool = concurrent.futures.ThreadPoolExecutor(threads)
    waiting: collections.deque = collections.deque()
    try:
        with _quietly():
            for block in _blocks(rows):
                waiting.append(pool.submit(read_block, block))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _quietly():
    """Hides Pillow's warnings, which take several lines each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def _blocks(rows: Iterable) -> Iterator[list]:
    block = []
    for row in rows:
        block.append(row)
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block


def _opened(source: str | bytes) -> Image.Image:
    stream = source if isinstance(source, str) else io.BytesIO(source)
    image = Image.open(stream, formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise UserError(f"{image.width} x {image.height} pixels are too many")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged camera data; the picture itself may be whole
        return 1


def _square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or damaged at its beginning"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _is_file_or_broken_link(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True
