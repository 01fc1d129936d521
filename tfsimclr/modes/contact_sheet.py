"""Contact sheets: pictures in rows, with a line of text under each, as a PNG."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfsimclr import files

TILE = 96  # pixels
GAP = 6
TEXT = 16
_FONT_SIZE = 11
_BACKGROUND, _INK, _MISSING = "white", "black", (225, 225, 225)


@dataclasses.dataclass(frozen=True)
class Tile:
    """A picture with a text under it.

    Attributes:
        image: Uint8 `[s, s, 3]`, or None, which is drawn as a gray square.
        text: One line; what does not fit is cut.
    """

    image: np.ndarray | None
    text: str = ""


def write(path: pathlib.Path, rows: Sequence[Sequence[Tile]]) -> None:
    """Writes a PNG with a row of pictures for every row of tiles.

    Raises:
        OSError: If it cannot be written.
    """
    with files.atomic_file(path) as file:
        draw(rows).save(file, "PNG")


def draw(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Returns the contact sheet."""
    columns = max(map(len, rows), default=1)
    width, height = TILE + GAP, TILE + TEXT + GAP
    size = (columns * width + GAP, len(rows) * height + GAP)
    sheet = Image.new("RGB", size, _BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            left, top = GAP + x * width, GAP + y * height
            if tile.image is None:
                pen.rectangle(
                    (left, top, left + TILE - 1, top + TILE - 1), fill=_MISSING
                )
            else:
                enlarged = Image.fromarray(tile.image).resize((TILE, TILE))
                sheet.paste(enlarged, (left, top))
            text = tile.text
            while text and pen.textlength(text, font) > TILE:
                text = text[:-1]
            pen.text((left, top + TILE + 1), text, _INK, font)
    return sheet
