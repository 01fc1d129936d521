"""Textures: the embedded data set, ten procedural image classes made with NumPy.

A class is a pattern that fills the whole image, so any crop of it still shows the class.
Everything else is drawn per image from the same distributions for all classes: position,
orientation, scale, palette and which of its two colours comes first, contrast, light and
noise. Each pattern is a height field cut at its own median, so every image is half one
colour and half the other: neither mean colour nor contrast gives the class away.
"""

import numpy as np

SPLITS = {"unlabeled": 4000, "train": 1000, "test": 1000}

_SEED = 2020
_NUM_SCALARS = 16  # uniform draws per image
_LATTICE = 24  # cells of per-image random numbers along each side, repeated beyond
_CHUNK = 256  # images rendered at a time: bounds memory at large sizes

# Pairs of RGB colours. Few, and all near one luminance contrast: a free choice of
# colours would let a contrastive learner match views by colour alone.
_PALETTES = np.array(
    [
        [[0.82, 0.74, 0.62], [0.30, 0.26, 0.36]],
        [[0.62, 0.78, 0.80], [0.38, 0.24, 0.24]],
        [[0.80, 0.70, 0.74], [0.22, 0.32, 0.28]],
        [[0.70, 0.80, 0.60], [0.32, 0.24, 0.40]],
    ],
    np.float32,
)


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
        raise ValueError(f"split must be one of {tuple(SPLITS)}, got split={split!r}.")
    if image_size < 8:
        raise ValueError(
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
    generators = [
        np.random.default_rng((_SEED, list(SPLITS).index(split), index))
        for index in indices.tolist()
    ]
    scalars = np.stack([g.random(_NUM_SCALARS, np.float32) for g in generators])
    lattice = np.stack([g.random((_LATTICE, _LATTICE, 3), np.float32) for g in generators])
    noise = np.stack(
        [g.standard_normal((image_size, image_size), np.float32) for g in generators]
    )
    draw = scalars.T[:, :, None, None]  # [scalars, n, 1, 1]
    center = ((np.arange(image_size) + 0.5) / image_size - 0.5).astype(np.float32)
    y, x = center[None, :, None], center[None, None, :]

    angle = np.pi * (2 * draw[0] - 1) * _ROTATION
    cells = _CELLS * 1.4 ** (2 * draw[1] - 1)  # periods across the image
    u = cells * (np.cos(angle) * x + np.sin(angle) * y) + _LATTICE * (1 + draw[2])
    v = cells * (np.cos(angle) * y - np.sin(angle) * x) + _LATTICE * (1 + draw[3])

    field = pattern(u, v, lattice)  # [n, s, s]
    field = field - np.median(field, axis=(1, 2), keepdims=True)
    field = field / (np.abs(field).mean(axis=(1, 2), keepdims=True) + 1e-6)
    tone = np.tanh(_SHARPNESS * field) * np.where(draw[4] < 0.5, -1, 1)
    tone = tone - tone.mean(axis=(1, 2), keepdims=True)
    tone = tone / (tone.std(axis=(1, 2), keepdims=True) + 1e-6)

    palette = _PALETTES[(scalars[:, 5] * len(_PALETTES)).astype(int)]  # [n, 2, 3]
    middle, swing = palette.mean(axis=1), (palette[:, 0] - palette[:, 1]) / 2
    contrast = 0.7 + 0.3 * draw[6]
    direction = 2 * np.pi * draw[7]
    light = 0.3 * draw[8] * (np.cos(direction) * x + np.sin(direction) * y)
    value = contrast * tone + 0.1 * noise + light
    image = middle[:, None, None] + value[..., None] * swing[:, None, None]
    return np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)


_ROTATION = 0.1
_CELLS = 5.0
_SHARPNESS = 3.0


# Patterns: coordinates in cells `[n, s, s]` and random numbers per cell
# `[n, lattice, lattice, 3]` to a height field `[n, s, s]` whose median is the outline.


def _wave(x):
    return np.cos(2 * np.pi * x)


def _cell(u, v, lattice):
    """Returns offsets from the cell's middle, in -0.5..0.5, and its random numbers."""
    row, column = np.floor(v), np.floor(u)
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
    x, y, _ = _cell(u + 0.5 * (np.floor(v) % 2), v, lattice)
    return -np.hypot(x, y)


def _rings(u, v, lattice):
    x, y, _ = _cell(u / 1.8, v / 1.8, lattice)
    return _wave(2 * np.hypot(x, y))


def _bricks(u, v, lattice):
    x, y, _ = _cell(u / 1.6 + 0.5 * (np.floor(v) % 2), v, lattice)
    return np.minimum(1.6 * (0.5 - np.abs(x)), 0.5 - np.abs(y))


def _triangles(u, v, lattice):
    x, y, _ = _cell(u + 0.5 * (np.floor(v) % 2), v, lattice)
    return -np.maximum(2 * np.abs(x) + y, -y)


def _crosses(u, v, lattice):
    x, y, _ = _cell(u / 1.2, v / 1.2, lattice)
    return -np.minimum(
        np.maximum(np.abs(x), 3 * np.abs(y)), np.maximum(np.abs(y), 3 * np.abs(x))
    )


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
    for octave, scale in enumerate((0.8, 1.6)):
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
    "rings": _rings,
    "bricks": _bricks,
    "triangles": _triangles,
    "crosses": _crosses,
    "cracks": _cracks,
    "clouds": _clouds,
}
CLASS_NAMES = tuple(_PATTERNS)
