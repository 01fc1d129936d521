"""Decoding of opened images to RGB, in bounded memory."""

import contextlib
import threading

from PIL import Image

from tfsimclr.data import depth

# Bytes. An image that needs more is decoded while no other large image is.
LIMIT = 1 << 30
_SMALL = 64
_STRIP_PIXELS = 1 << 20
# The C library may keep freed blocks of up to 32 MB, in every thread. Pillow allocates
# such blocks by default.
_BLOCK_BYTES = 1 << 26
if Image.core.get_block_size() < _BLOCK_BYTES:
    Image.core.set_block_size(_BLOCK_BYTES)


class Budget:
    """A memory budget of decoding threads; `reserve` blocks until enough is free.

    A reservation above the limit succeeds once no other thread has one. Reservations
    below a 64th of the limit are not counted, so small images never wait.

    Args:
        limit: Bytes that may be reserved at a time.
    """

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self.used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, count: int):
        """Reserves `count` bytes for the duration of the `with` block."""
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
    """Returns the most bytes needed to decode an image to RGB.

    Measured with Pillow 13 on 100 megapixels of every kind.

    Args:
        image: Opened, with `draft` called, and not loaded.
        full_size: Width and height before the draft.
    """
    pixels = image.width * image.height
    if image.format in ("WEBP", "HEIF", "AVIF"):
        return 20 * pixels  # the decoder allocates two canvases and returns a third
    plain = image.mode == "RGB" and image.format != "TIFF"
    count = (5 if plain else 9) * pixels
    if depth.kind(image):
        count += 5 * pixels  # 16-bit colour is decoded twice
    if image.info.get("progressive"):
        # The decoder holds all coefficients, 2 bytes each, at any draft size.
        count += 2 * len(image.getbands()) * full_size[0] * full_size[1]
    return count


def rgb(image: Image.Image) -> Image.Image:
    """Returns an image of 8 bits in mode RGB, transparent pixels on white."""
    image.load()
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rows = max(1, _STRIP_PIXELS // image.width)
    if image.height <= rows:
        return _strip_to_rgb(image)
    # In strips: the intermediate images would take several times the memory.
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        result.paste(_strip_to_rgb(image.crop(box)), box)
    return result


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
