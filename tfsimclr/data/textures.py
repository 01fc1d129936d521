"""Textures: the embedded data set, ten procedural image classes made with NumPy.

A class is a pattern that fills the whole image, so any crop still shows the class.
Everything else is drawn per image, from the same distributions for all classes.

Two rules make the set useful for contrastive learning. A pattern is a height field cut
at its own median, so every image is half light and half dark: neither mean colour nor
contrast gives the class away. And images differ in colour only as the colour jitter of
the views makes them differ anyway: with as few as two palettes to tell apart, SimCLR
learns the palette in a few epochs and hardly anything about the patterns.
"""

import numpy as np

from tfsimclr.errors import UserError

SPLITS = {"unlabeled": 4000, "train": 1000, "test": 1000}
# Identifies the images in a store. Change it whenever an image changes. This value is
# the checksum by which version 0.1 identified the same images.
VERSION = "0f122d5224d5bdcfb6d02a04a7bbab75d0772e358a433ec2516326ab5669b365"

_SEED = 2020
_NUM_SCALARS = 16  # uniform draws per image
_LATTICE = 24  # cells of per-image random numbers along each side, repeated beyond
_CHUNK = 128  # images rendered at a time: bounds memory at large sizes

_CELLS = 5.5  # pattern periods across an image, and the factor by which they vary
_CELLS_RANGE = 1.25
_ROTATION = np.pi / 10  # at most, either way
_SHARPNESS = 3.0  # of the outlines
_SLOPE = 0.3  # of the light across an image and, below, pixel noise: both in units of
_NOISE = 0.1  # the pattern's standard deviation
_HUE = 0.06  # turns of hue at most, either way: well inside the 0.2 of colour jitter
_LIGHT, _DARK = (0.76, 0.66, 0.52), (0.24, 0.25, 0.36)


def make(split: str, image_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images and labels of one split, the same on every call.

    Image `i` of a split shows the same scene at every `image_size`.

    Args:
        split: One of `SPLITS`.
        image_size: Height and width in pixels, at least 8.

    Returns:
        Images uint8 `[n, image_size, image_size, 3]` and labels int32 `[n]`: indices
        into `CLASS_NAMES`, equally many of each, or -1 throughout for "unlabeled".
    """
    if split not in SPLITS:
        raise UserError(f"split must be one of {tuple(SPLITS)}, got split={split!r}.")
    if image_size < 8:
        raise UserError(
            f"image_size must be at least 8 pixels, got image_size={image_size}: "
            "smaller images cannot show the patterns."
        )
    num_images = SPLITS[split]
    labels = np.arange(num_images, dtype=np.int32) % len(CLASS_NAMES)
    images = np.empty((num_images, image_size, image_size, 3), np.uint8)
    for label, pattern in enumerate(_PATTERNS.values()):
        indices = np.flatnonzero(labels == label)
        for start in range(0, len(indices), _CHUNK):
            chunk = indices[start : start + _CHUNK]
            images[chunk] = _render(pattern, split, chunk, image_size)
    if split == "unlabeled":
        labels = np.full_like(labels, -1)
    return images, labels


def _render(pattern, split, indices, image_size):
    """Returns uint8 images `[n, s, s, 3]` of one class."""
    stream = tuple(SPLITS).index(split)
    generators = [
        np.random.default_rng((_SEED, stream, index)) for index in indices.tolist()
    ]
    scalars = [generator.random(_NUM_SCALARS, np.float32) for generator in generators]
    lattice = [generator.random((_LATTICE, _LATTICE, 2)) for generator in generators]
    noise = [
        generator.standard_normal((image_size, image_size)) for generator in generators
    ]
    scalars = np.stack(scalars).T[:, :, None, None]  # [scalars, n, 1, 1]
    symmetric = 2 * scalars - 1
    middle = ((np.arange(image_size) + 0.5) / image_size - 0.5).astype(np.float32)
    y, x = middle[None, :, None], middle[None, None, :]

    angle = _ROTATION * symmetric[0]
    cells = _CELLS * _CELLS_RANGE ** symmetric[1]
    # Far enough from the origin that every coordinate is positive.
    u = cells * (np.cos(angle) * x + np.sin(angle) * y) + _LATTICE * (1 + scalars[2])
    v = cells * (np.cos(angle) * y - np.sin(angle) * x) + _LATTICE * (1 + scalars[3])
    tone = _standardise(pattern(u, v, np.stack(lattice).astype(np.float32)))

    direction = np.pi * symmetric[4]
    slope = _SLOPE * scalars[5] * (np.cos(direction) * x + np.sin(direction) * y)
    tone = tone + slope + _NOISE * np.stack(noise).astype(np.float32)
    image = _colors(tone, scalars[6:10, :, :, :, None])
    return np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)


def _standardise(field):
    """Returns the field cut at its median, mean 0 and standard deviation 1 each."""
    field = field - np.median(field, axis=(1, 2), keepdims=True)
    field = field / (np.abs(field).mean(axis=(1, 2), keepdims=True) + 1e-6)
    tone = np.tanh(_SHARPNESS * field)
    tone = tone - tone.mean(axis=(1, 2), keepdims=True)
    return tone / (tone.std(axis=(1, 2), keepdims=True) + 1e-6)


def _colors(tone, draws):
    """Returns RGB `[n, s, s, 3]`: one palette, varied as colour jitter varies it."""
    brightness, contrast, saturation, hue = draws
    light, dark = np.array(_LIGHT, np.float32), np.array(_DARK, np.float32)
    swing = (0.5 + 0.5 * contrast) * (light - dark) / 2
    image = (light + dark) / 2 + swing * tone[..., None]
    gray = image.mean(axis=-1, keepdims=True)
    image = gray + (0.4 + 0.8 * saturation) * (image - gray)
    # A hue rotation about the gray axis mixes in the channels' cyclic differences.
    turn = 2 * np.pi * _HUE * (2 * hue - 1)
    swirl = (np.roll(image, -1, axis=-1) - np.roll(image, 1, axis=-1)) / np.sqrt(3)
    image = gray + np.cos(turn) * (image - gray) + np.sin(turn) * swirl
    return (0.8 + 0.4 * brightness) * image


# Patterns: coordinates in cells `[n, s, s]` and random numbers per cell
# `[n, lattice, lattice, 2]` to a height field `[n, s, s]` whose median is the outline.


def _wave(x):
    return np.cos(2 * np.pi * x)


def _cell(u, v, lattice, stagger=0.0):
    """Returns offsets from the cell's middle, -0.5 to 0.5, and its random numbers.

    Every other row is shifted by `stagger` cells.
    """
    row = np.floor(v)
    u = u + stagger * (row % 2)
    column = np.floor(u)
    image = np.arange(len(u))[:, None, None]
    rows, columns = row.astype(int) % _LATTICE, column.astype(int) % _LATTICE
    return u - column - 0.5, v - row - 0.5, lattice[image, rows, columns]


def _stripes(u, v, lattice):
    return _wave(u)


def _checkers(u, v, lattice):
    return _wave(u / 1.4) * _wave(v / 1.4)


def _zigzag(u, v, lattice):
    return _wave(u + 0.9 * np.abs(2 * (v / 1.6 % 1) - 1))


def _dots(u, v, lattice):
    x, y, _ = _cell(u / 1.2, v / 1.2, lattice, stagger=0.5)
    return -np.hypot(x, y)


def _scales(u, v, lattice):
    """Arcs of discs, each row of which covers the one above it."""
    u, v = u / 3, v / 3
    radius = np.full(u.shape, 9, np.float32)
    row = np.floor(v / 0.35)
    for step in (-1, 0, 1, 2):
        center = row + step
        x = (u + 0.5 * (center % 2)) % 1 - 0.5
        distance = np.hypot(x, v - 0.35 * center)
        radius = np.where(distance < 0.56, distance, radius)
    return _wave(radius / 0.28)


def _bricks(u, v, lattice):
    x, y, _ = _cell(u / 2.2, v / 1.1, lattice, stagger=0.5)
    return np.minimum(2 * (0.5 - np.abs(x)), 0.5 - np.abs(y))


def _triangles(u, v, lattice):
    x, y, _ = _cell(u / 1.2, v / 1.2, lattice, stagger=0.5)
    return -np.maximum(2 * np.abs(x) + y, -y)


def _baskets(u, v, lattice):
    parity = (np.floor(u / 2.4) + np.floor(v / 2.4)) % 2
    return np.where(parity < 1, _wave(u / 0.8), _wave(v / 0.8))


def _cracks(u, v, lattice):
    """Distance to the border between the cells of scattered points (Worley noise)."""
    nearest = np.full((2, *u.shape), 9, np.float32)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            x, y, random = _cell(u + dx, v + dy, lattice)
            distance = np.hypot(
                x - 0.8 * (random[..., 0] - 0.5) - dx,
                y - 0.8 * (random[..., 1] - 0.5) - dy,
            )
            nearest[1] = np.minimum(nearest[1], np.maximum(nearest[0], distance))
            nearest[0] = np.minimum(nearest[0], distance)
    return nearest[1] - nearest[0]


def _clouds(u, v, lattice):
    """Smooth noise between random heights at the cell corners, two octaves."""
    total = 0.0
    for octave, scale in enumerate((1.3, 2.6)):
        x, y, corner = _cell(scale * u, scale * v, lattice)
        x, y = x + 0.5, y + 0.5
        x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
        right = _cell(scale * u + 1, scale * v, lattice)[2]
        below = _cell(scale * u, scale * v + 1, lattice)[2]
        across = _cell(scale * u + 1, scale * v + 1, lattice)[2]
        top = corner[..., octave] * (1 - x) + right[..., octave] * x
        bottom = below[..., octave] * (1 - x) + across[..., octave] * x
        total = total + (top * (1 - y) + bottom * y) / scale
    return total


_PATTERNS = {
    "stripes": _stripes,
    "checkers": _checkers,
    "zigzag": _zigzag,
    "dots": _dots,
    "scales": _scales,
    "bricks": _bricks,
    "triangles": _triangles,
    "baskets": _baskets,
    "cracks": _cracks,
    "clouds": _clouds,
}
CLASS_NAMES = tuple(_PATTERNS)
