"""Image files of any common kind, read as square uint8 arrays."""

import collections
import concurrent.futures
import contextlib
import ctypes
import functools
import io
import logging
import os
import stat
import statistics
import threading
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image, TiffImagePlugin, features

from tfsimclr import files
from tfsimclr.data import decoding, depth, kinds
from tfsimclr.errors import UserError

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
    HAS_HEIF = True
except ImportError:
    HAS_HEIF = False
HAS_AVIF = features.check("avif")

HEIF_EXTENSIONS = frozenset((".heic", ".heif"))
EXTENSIONS = frozenset(
    ".jpg .jpeg .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm".split()
).union(HEIF_EXTENSIONS if HAS_HEIF else (), (".avif",) if HAS_AVIF else ())
# Folders that operating systems and network storage create: thumbnails, deleted files,
# snapshots. Compared in lower case.
MACHINE_FOLDERS = frozenset(
    (
        *("@eadir", "#recycle", "$recycle.bin", "#snapshot", "lost+found"),
        *("system volume information", "__macosx"),
    )
)
# Photographs in formats that are not read.
CONVERTIBLE = (
    frozenset(".heic .heif .avif .jp2 .jxl .dng .cr2 .cr3 .nef .arw .raw".split())
    - EXTENSIONS
)
# Pillow's other formats need outside programs or are no photographs.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"),
    *(("HEIF",) if HAS_HEIF else ()),
    *(("AVIF",) if HAS_AVIF else ()),
)
# PNG chunks without influence on the pixels. Pillow refuses large ones.
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# A camera has at most 150 million pixels; a file of a few kilobytes can claim more.
MAX_PIXELS = 178_956_970
_ORIENTATION_TAG = 0x0112
_TIFF_BITS, _TIFF_CHANNELS = 258, 277
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


class Facts:
    """What is noticed about the images of a data set while they are read.

    Several threads may write into one object.

    Attributes:
        checksums: SHA-256 of every file read, by path; empty for images in memory.
        wide: For images of more than 8 bits, by `depth.kind`: their number, and their
            smallest and largest value.
        several_frames: Number of files with several pages or frames, of which the first
            is used.
    """

    def __init__(self):
        self.checksums: dict[str, str] = {}
        self.wide: dict[str, tuple[int, float, float]] = {}
        self.several_frames = 0
        self._changed = threading.Lock()

    def add_wide(self, kind: str, low: float, high: float) -> None:
        with self._changed:
            count, lowest, highest = self.wide.get(kind, (0, low, high))
            extent = min(low, lowest), max(high, highest)
            self.wide[kind] = (count + 1, *extent)

    def add_frames(self) -> None:
        with self._changed:
            self.several_frames += 1


def find(folder: str) -> tuple[list[str], collections.Counter]:
    """Returns the image files below a folder, and what else is there.

    Links are followed, and every link counts; a link to one of the folders above it is
    not followed, so a loop of links ends. Names that start with a dot and the folders
    in `MACHINE_FOLDERS` are skipped. A broken link with the name of an image is listed,
    so that the user is told about it when it is read.

    Returns:
        The sorted paths, by file extension; and the number of other files for each
        extension (`.heic`), of skipped machine folders for each name (`@eaDir/`), and
        of folders inside that cannot be listed (`x/ (Permission denied)`).

    Raises:
        UserError: If the folder itself cannot be listed.
    """
    paths: list[str] = []
    others: collections.Counter = collections.Counter()

    def walk(path: str, above: frozenset) -> None:
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            if not above:
                raise UserError(
                    f"cannot list the folder {path!r}: {error.strerror}. Make it "
                    "readable."
                ) from error
            others[f"{os.path.relpath(path, folder)}/ ({error.strerror})"] += 1
            return
        for name in names:
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


def read(
    source: str | bytes,
    size: int,
    name: str = "",
    ranges: dict[str, depth.Range] | None = None,
    facts: Facts | None = None,
) -> np.ndarray:
    """Returns one image as uint8 `[size, size, 3]`, RGB.

    The image is turned upright (EXIF), the short side is resized to `size`
    (antialiased) and the middle square is kept. Gray images become three equal
    channels, transparent pixels become white, of several pages or frames the first
    counts, colour profiles are ignored.

    Args:
        source: Path of a file, or the bytes of one.
        size: Side of the square in pixels.
        name: What an error calls the image; by default the path.
        ranges: By `depth.kind`, the range of images with more than 8 bits. Default: 0
            to 65535 for integers, which is right for one 16-bit image of full range
            only; other images are refused.
        facts: What is noticed about the image is added here.

    Raises:
        UnreadableImageError: If the image cannot be used, for any reason.
    """

    def square(source) -> np.ndarray:
        with _opened(source) as image:
            kind, full_size = depth.kind(image), image.size
            if facts and _has_several_frames(image):
                facts.add_frames()
            # JPEG decodes at 1/2, 1/4, 1/8 almost for free; the factor of two leaves
            # the last resampling step to a proper filter.
            image.draft(None, (2 * size, 2 * size))
            need = decoding.bytes_needed(image, full_size)
            with _BUDGET.reserve(need), contextlib.closing(image):
                if kind:
                    rgb = _wide_rgb(image, source, kind, ranges, facts)
                    orientation = _orientation(image)
                else:
                    orientation = _orientation(image)  # decodes all of a PNG
                    rgb = decoding.rgb(image)
                result = _square(rgb, size)
        if orientation in _UPRIGHT:
            result = result.transpose(_UPRIGHT[orientation])
        return np.array(result, np.uint8)

    return _attempt(square, source, name)


def short_side(source: str | bytes, name: str = "") -> int:
    """Returns the shorter side of an image in pixels, from the file's header alone.

    Raises:
        UnreadableImageError: If the header cannot be read.
    """

    def side(source) -> int:
        with _opened(source) as image:
            return min(image.size)

    return _attempt(side, source, name)


def extent(source: str | bytes, name: str = "") -> tuple[str, float, float] | None:
    """Returns the kind, the smallest and the largest value of an image.

    None for an image of 8 bits.

    Raises:
        UnreadableImageError: If the image cannot be used.
    """

    def measure(source):
        with _opened(source) as image:
            kind = depth.kind(image)
            if not kind:
                return None
            need = decoding.bytes_needed(image, image.size)
            with _BUDGET.reserve(need), contextlib.closing(image):
                wide = depth.WideImage(image, lambda: _opened(source))
                return (kind, *wide.extent())

    return _attempt(measure, source, name)


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


def wide_facts(rows: Iterable[tuple[str | bytes, str]], first: bool = False) -> Facts:
    """Returns the `Facts.wide` of images; only those of more than 8 bits are decoded.

    Args:
        rows: Pairs (path or bytes, name for messages).
        first: Whether the first image of more than 8 bits is enough.
    """
    facts = Facts()

    def look(block: list) -> None:
        for source, name in block:
            if first and facts.wide:
                return
            # An unreadable image is named when the images are prepared.
            with contextlib.suppress(OSError, UnreadableImageError):
                wide = depth.may_be_wide(_head(source)) and extent(source, name)
                if wide:
                    facts.add_wide(*wide)

    for _ in _in_threads(look, rows):
        if first and facts.wide:
            break
    return facts


def read_all(
    rows: Iterable[tuple[str | bytes, str, int]],
    size: int,
    threads: int | None = None,
    ranges: dict[str, depth.Range] | None = None,
    facts: Facts | None = None,
) -> Iterator[list[tuple[np.ndarray | UnreadableImageError, int]]]:
    """Yields blocks of (image or `UnreadableImageError`, label), in order.

    Threads, not processes: Pillow decodes without the interpreter lock, and a forked or
    spawned child of a program that holds TensorFlow is slow or unsafe.

    Args:
        rows: Triples (path or bytes, name for messages, label); read as needed.
        size: Side of the images in pixels.
        threads: Number of threads; default is one per core, at most 16.
        ranges: See `read`.
        facts: What is noticed about the images is added here.
    """

    def read_block(block: list) -> list:
        results: list = []
        for source, name, label in block:
            if facts and isinstance(source, str):
                facts.checksums[source] = files.sha256_of_file(source)
            try:
                results.append((read(source, size, name, ranges, facts), label))
            except UnreadableImageError as error:
                results.append((error, label))
        return results

    yield from _in_threads(read_block, rows, threads)


def _in_threads(work, rows: Iterable, threads: int | None = None) -> Iterator:
    """Yields `work(block)` for blocks of rows, in order."""
    threads = threads or min(16, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    waiting: collections.deque = collections.deque()
    try:
        with _quietly():
            for block in _blocks(rows):
                waiting.append(pool.submit(work, block))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _quietly():
    """Hides what Pillow and libtiff print: it names no file and takes several lines."""
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), _quiet_libtiff():
            warnings.filterwarnings("ignore", module="PIL")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _quiet_libtiff():
    """Removes libtiff's handler of errors, which prints; Pillow raises in any case."""
    library = _libtiff()
    if library is None:
        yield
        return
    handler = library.TIFFSetErrorHandler(None)
    try:
        yield
    finally:
        library.TIFFSetErrorHandler(handler)


@functools.cache
def _libtiff() -> ctypes.CDLL | None:
    """Returns the libtiff that Pillow has loaded; None where that is not known."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            paths = [line.split()[-1] for line in file if "/libtiff" in line]
        library = ctypes.CDLL(paths[0])
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler.argtypes = [ctypes.c_void_p]
        return library
    except (OSError, IndexError, AttributeError):
        return None


def _attempt(work, source: str | bytes, name: str):
    """Returns `work(source)`.

    Raises:
        UnreadableImageError: Whatever goes wrong: Pillow raises a dozen kinds of errors
            on damaged files.
    """
    name = name or (source if isinstance(source, str) else "image")
    try:
        try:
            return work(source)
        except ValueError as error:
            if "PngImagePlugin" not in str(error) and "text chunks" not in str(error):
                raise
            return work(_without_text(source))
    except Exception as error:
        raise UnreadableImageError(name, _reason(error, source)) from error


def _wide_rgb(image, source, kind, ranges, facts) -> Image.Image:
    """Returns an image of more than 8 bits in mode RGB; its values go into `facts`."""
    wide = depth.WideImage(image, lambda: _opened(source))
    low, high = wide.extent()
    if facts:
        facts.add_wide(kind, low, high)
    value_range = (ranges or {}).get(kind)
    if value_range is None:
        if kind == depth.FLOAT or low < 0 or high > depth.MAX_UINT16:
            raise UserError(f"pixels of mode {image.mode} have no known range")
        value_range = depth.Range(0, depth.MAX_UINT16)
    return wide.to_rgb(value_range)


def _has_several_frames(image: Image.Image) -> bool:
    try:
        # The second picture of an MPO file is a preview or the other eye's view.
        return image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # damaged after the first frame
        return False


def _without_text(source: str | bytes) -> bytes:
    """Returns a PNG file without the chunks of `_PNG_TEXT`."""
    if isinstance(source, str):
        with open(source, "rb") as file:
            source = file.read()
    at, parts = 8, [source[:8]]
    while at + 8 <= len(source):
        length = int.from_bytes(source[at : at + 4], "big")
        if source[at + 4 : at + 8] not in _PNG_TEXT:
            parts.append(source[at : at + 12 + length])
        at += 12 + length
    return b"".join(parts)


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


def _reason(error: Exception, source: str | bytes) -> str:
    """Returns why an image cannot be used, such as what else the file is."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        head = _head(source)
    except OSError as unreadable:
        return unreadable.strerror or str(unreadable)
    if isinstance(error, Image.UnidentifiedImageError):
        if head[:4] in (b"II*\0", b"MM\0*"):
            return _tiff_reason(source)
        return (
            kinds.describe(head, HAS_HEIF)
            or "not an image, or damaged at its beginning"
        )
    text = str(error) or type(error).__name__
    if isinstance(error, (UserError, Image.DecompressionBombError, MemoryError)):
        return text
    what = kinds.describe(head, HAS_HEIF)
    return f"{what}: {text}" if what.startswith(kinds.DAMAGED) else text


def _head(source: str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[: kinds.HEAD_BYTES]
    with open(source, "rb") as file:
        return file.read(kinds.HEAD_BYTES)


def _tiff_reason(source: str | bytes) -> str:
    """Returns why Pillow does not know a TIFF file."""
    try:
        with open(source, "rb") if isinstance(source, str) else io.BytesIO(source) as f:
            directory = TiffImagePlugin.ImageFileDirectory_v2(f.read(8))
            f.seek(directory.next)
            directory.load(f)
            channels = int(directory.get(_TIFF_CHANNELS, 1))
            bits = int(directory.get(_TIFF_BITS, (1,))[0])
    except Exception:  # of any kind
        return "a damaged TIFF image"
    noun = "channel" if channels == 1 else "channels"
    return (
        f"a TIFF image of {channels} {noun} of {bits} bits, which cannot be read: "
        "save it with 1 or 3 channels of 8 or 16 bits"
    )


def _is_file_or_broken_link(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True
