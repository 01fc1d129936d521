"""A sheet of small pictures, so that a page holds every image once."""

import base64
import dataclasses
import io
import math

import numpy as np
from PIL import Image

from tfsimclr.views import random_view

# A multiple of 8, the side of a JPEG block: neighbours on the sheet do not mix.
MAX_SIZE = 64
STEP = 8
QUALITY = 88


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Pictures in the rows and columns of one JPEG.

    Attributes:
        uri: The JPEG as a `data:` URI.
        columns: Pictures in a row of the sheet.
        rows: Rows of the sheet.
        size: Side of a picture in pixels.
    """

    uri: str
    columns: int
    rows: int
    size: int

    def position(self, index: int) -> tuple[int, int]:
        """Returns the column and the row of a picture."""
        return index % self.columns, index // self.columns


def sheet(images: np.ndarray) -> Sheet:
    """Returns a sheet of pictures of at most 64 pixels a side.

    Args:
        images: uint8 `[n, s, s, 3]`.
    """
    size = max(STEP, min(MAX_SIZE, images.shape[1] // STEP * STEP))
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    cells = np.zeros((rows * columns, size, size, 3), np.uint8)
    for first in range(0, len(images), 256):
        small = random_view.plain_view(images[first : first + 256], size).numpy()
        cells[first : first + len(small)] = np.round(255 * small)
    grid = cells.reshape(rows, columns, size, size, 3).swapaxes(1, 2)
    picture = Image.fromarray(grid.reshape(rows * size, columns * size, 3))
    content = io.BytesIO()
    # Not optimized: Pillow then needs a buffer for the whole file, and guesses its size
    # too small for noise.
    picture.save(content, "JPEG", quality=QUALITY, subsampling=0)
    return Sheet(data_uri(content.getvalue(), "jpeg"), columns, rows, size)


def png_uri(picture: np.ndarray, scale: int = 1) -> str:
    """Returns a picture `[height, width, 3]` in 0-1 as the `data:` URI of a PNG.

    Args:
        picture: The picture.
        scale: Each pixel becomes a square of this side.
    """
    pixels = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return data_uri(content.getvalue(), "png")


def data_uri(content: bytes, kind: str) -> str:
    """Returns the `data:` URI of a picture of a kind such as `png`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
