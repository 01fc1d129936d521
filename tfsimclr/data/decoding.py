"""Opened images made RGB, in bounded memory."""

import contextlib
import threading

import numpy as np
from PIL import Image

from tfsimclr.errors import UserError

# One image may need more, and is then decoded while no other large one is.
LIMIT = 1 << 30
_SMALL = 64
_STRIP_PIXELS = 1 << 20
# What is allocated in pieces of up to 32 MB, as Pillow's are by default, the C library
# may keep when it is freed, for each thread anew.
_BLOCK_BYTES = 1 << 26
if Image.core.get_block_size() < _BLOCK_BYTES:
    Image.core.set_block_size(_BLOCK_BYTES)


class Budget:
    """Bytes that threads share: who needs more than is left waits.

    A need above the limit is met as soon as nobody else holds any. Needs of less than
    a 64th of it are not counted, so small images never wait.

    Args:
        limit: In bytes.
    """

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self.used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, count: int):
        """Holds `count` bytes in its block."""
        if count < self.limit // _SMALL:
            yield
            return
        with self._changed:
            self._changed.wait_for(
                lambda: not self.used or self.used + count <= self.limit
            )
            self.used += count
        try:
            yield
        finally:
            with self._changed:
                self.used -= count
                self._changed.notify_all()


def bytes_needed(image: Image.Image, full_size: tuple[int, int]) -> int:
    """Returns how many bytes it takes at most to decode an image and make it RGB.

    Measured with Pillow 13 on 100 megapixels of every kind.

    Args:
        image: Opened and drafted, not loaded.
        full_size: Width and height before the draft.
    """
    pixels = image.width * image.height
    if image.format == "WEBP":
        return 20 * pixels  # its decoder keeps two canvases and hands over a third
    plain = image.mode == "RGB" and image.format != "TIFF"
    count = (5 if plain else 9) * pixels
    if image.info.get("progressive"):
        # All coefficients, 2 bytes each, however small the draft.
        count += 2 * len(image.getbands()) * full_size[0] * full_size[1]
    return count


def rgb(image: Image.Image) -> Image.Image:
    """Returns the image in mode RGB, transparent pixels on white.

    Raises:
        UserError: If the range of its pixels is unknown.
    """
    image.load()
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rows = max(1, _STRIP_PIXELS // image.width)
    if image.height <= rows:
        return _strip_to_rgb(image)
    # In strips: what lies between a mode and RGB would take as much several times over.
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        result.paste(_strip_to_rgb(image.crop(box)), box)
    return result


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        gray = np.asarray(image)
        if image.mode == "F" or gray.min() < 0 or gray.max() > 65535:
            raise UserError(f"pixels of mode {image.mode} have no known range")
        image = Image.fromarray((gray.astype(np.uint32) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
