"""Images with more than 8 bits per channel, scaled by one range per data set.

A 16-bit file often holds 12-bit or 8-bit data. Divided by the range of the file format,
such images are almost black; scaled one by one, they lose their brightness relative to
each other. So the range is that of all the images of a data set.
"""

import dataclasses
import sys
import typing
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFile

from tfsimclr.errors import UserError

INTEGER, FLOAT = "integer", "float"
MAX_UINT16 = 65535
_STRIP_PIXELS = 1 << 20
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that become 0 and 255; others are clipped."""

    low: float
    high: float

    def to_uint8(self, values: np.ndarray) -> np.ndarray:
        """Returns values of any numeric type as uint8."""
        scale = 255 / (self.high - self.low) if self.high > self.low else 0
        scaled = np.rint((values.astype(np.float64) - self.low) * scale)
        return scaled.clip(0, 255).astype(np.uint8)


class WideImage:
    """A decoded image of 16-bit or 32-bit integers or of floating-point numbers.

    Args:
        image: Opened and not loaded; `kind` of it is not None.
        reopen: Returns the same image, opened once more. Pillow decodes only the high
            byte of 16-bit colour, so the low byte is decoded separately.
    """

    def __init__(self, image: Image.Image, reopen: Callable[[], Image.Image]):
        self.size = image.size
        self._scale = 1.0
        rawmode = _rawmode(image)
        if image.mode == "I" and image.format == "PPM":
            # Pillow multiplies by 65535 / maxval of the header; 65535 needs no decoder.
            codec, arguments = _tiles(image)[0].codec_name, _tiles(image)[0].args
            if codec.startswith("ppm"):
                self._scale = arguments[-1] / MAX_UINT16
        if kind(image) == FLOAT or not _is_color(rawmode):
            self._parts = [image]
        elif rawmode.startswith("LA"):
            # As RGBA of 8 bits: high and low byte of the gray value, then of alpha.
            _set_rawmode(image, "RGBA")
            self._parts = [image]
        else:
            low = reopen()
            _set_rawmode(low, rawmode[:-1] + _OTHER_ORDER[rawmode[-1]])
            self._parts = [image, low]
        self._is_gray_alpha = rawmode.startswith("LA")
        for part in self._parts:
            part.load()

    def strips(self) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yields (first row, values `[h, w, c]` with c of 1 or 3, alpha or None).

        Raises:
            UserError: If a value is not finite.
        """
        width, height = self.size
        rows = max(1, _STRIP_PIXELS // width)
        for top in range(0, height, rows):
            box = (0, top, width, min(top + rows, height))
            parts = [np.asarray(part.crop(box)) for part in self._parts]
            values = parts[0]
            if len(parts) == 2:
                values = parts[0].astype(np.uint16) << 8 | parts[1]
            elif self._is_gray_alpha:
                values = values[..., ::2].astype(np.uint16) << 8 | values[..., 1::2]
            if values.ndim == 2:
                values = values[..., None]
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise UserError("holds values that are not finite")
            if self._scale != 1:
                values = np.rint(values * self._scale)
            channels = values.shape[-1]
            alpha = values[..., -1] if channels in (2, 4) else None
            yield top, values[..., : 3 if channels > 2 else 1], alpha

    def extent(self) -> tuple[float, float]:
        """Returns the smallest and the largest value, without the alpha channel."""
        extents = [(v.min(), v.max()) for _, v, _ in self.strips()]
        return float(min(low for low, _ in extents)), float(max(h for _, h in extents))

    def to_rgb(self, value_range: Range) -> Image.Image:
        """Returns the image in mode RGB, transparent pixels on white."""
        result = Image.new("RGB", self.size)
        for top, values, alpha in self.strips():
            colors = np.broadcast_to(
                value_range.to_uint8(values), (*values.shape[:2], 3)
            )
            if alpha is not None:
                # Alpha may have the 12 bits of the colours or all 16 bits: either way
                # the largest value is opaque.
                opacity = value_range.to_uint8(alpha)[..., None] / 255
                colors = np.rint(colors * opacity + 255 * (1 - opacity))
            result.paste(Image.fromarray(colors.astype(np.uint8)), (0, top))
        return result

    def close(self) -> None:
        for part in self._parts:
            part.close()


def kind(image: Image.Image) -> str | None:
    """Returns `integer` or `float` for an opened image of more than 8 bits, or None.

    Args:
        image: Not loaded yet.
    """
    if image.mode == "F":
        return FLOAT
    is_wide = image.mode.startswith("I") or _is_color(_rawmode(image))
    return INTEGER if is_wide else None


def may_be_wide(head: bytes) -> bool:
    """Returns whether a file with these first 32 bytes may have more than 8 bits."""
    if head.startswith(b"\x89PNG"):
        return head[24:25] == b"\x10"
    return head[:2] in (b"II", b"MM", b"P2", b"P3", b"P5", b"P6", b"Pf")


def _rawmode(image: Image.Image) -> str:
    if not _tiles(image):
        return ""
    arguments = _tiles(image)[0].args
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _is_color(rawmode: str) -> bool:
    name, _, depth = rawmode.partition(";")
    return depth[:2] == "16" and name in ("LA", "RGB", "RGBX", "RGBA", "RGBa")


def _set_rawmode(image: Image.Image, rawmode: str) -> None:
    tiles = []
    for tile in _tiles(image):
        rest = tile.args[1:] if isinstance(tile.args, tuple) else None
        arguments = rawmode if rest is None else (rawmode, *rest)
        tiles.append(tile._replace(args=arguments))
    typing.cast(ImageFile.ImageFile, image).tile = tiles


def _tiles(image: Image.Image) -> list:
    return getattr(image, "tile", [])
