"""Data sets by name: prepared once as a store, opened from there afterwards."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tfsimclr import files
from tfsimclr.data import folder as folder_source
from tfsimclr.data import prepare, sampling, sources, summary
from tfsimclr.errors import UserError

# What suits a data set. The stem follows the size: the small one keeps all pixels, the
# paper's (imagenet) leaves a 3x3 map of a 96-pixel image (and of 32 pixels only 1x1).
DEFAULTS: dict[str, dict] = {
    "textures": {"image_size": 32, "stem": "medium", "width": 0.25},
    "stl10": {"image_size": 96, "stem": "imagenet", "width": 1},
    "cifar10": {"image_size": 32, "stem": "small", "width": 1},
    "cifar100": {"image_size": 32, "stem": "small", "width": 1},
    "svhn_cropped": {"image_size": 32, "stem": "small", "width": 1},
}
MAX_DEFAULT_SIZE = 96
_SPLITS = ("unlabeled", "train", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, uint8 `[n, s, s, 3]`, and labels, int64 `[n]`, -1 where unknown."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A prepared data set.

    Attributes:
        name: As given to `load`.
        unlabeled: Images without labels, or None.
        train: Labelled images, or None.
        test: Labelled images that are never trained on, or None.
        class_names: Names of the classes 0, 1, ...
        image_size: Side of a view in pixels. Stored images may be larger, so that a
            crop of them still has pixels to fill a view.
        skipped: Number of images that could not be read and are not in the store.
        description: What was understood of the data, for result.json; see `summary`.
    """

    name: str
    unlabeled: Split | None
    train: Split | None
    test: Split | None
    class_names: tuple[str, ...]
    image_size: int
    skipped: int = 0
    description: dict = dataclasses.field(default_factory=dict)

    @property
    def pretrain(self) -> Split:
        """The images to pretrain on: the unlabelled ones if there are any."""
        return self.unlabeled or self.train

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def has_labels(self) -> bool:
        """Whether there are labels to train and to test a classifier."""
        splits = (self.train, self.test)
        some = all(split and (split.labels >= 0).any() for split in splits)
        return some and self.num_classes > 1


def defaults(name: str, image_size: int | None = None, data_dir: str = "") -> dict:
    """Returns image_size, stem, backbone and width for a data set.

    Args:
        name: Name of the data set.
        image_size: Side of a view in pixels; None reads it from the data set, for a
            folder from a sample of its images.
        data_dir: Where the images are.
    """
    known = dict(DEFAULTS.get(_plain(name), {}))
    if not image_size:
        image_size = known.get("image_size") or _default_size(
            sources.source(name, data_dir)
        )
    if image_size != known.get("image_size"):
        known["stem"] = "small" if image_size <= 40 else "medium"
        known["stem"] = known["stem"] if image_size <= 64 else "imagenet"
    known["image_size"] = image_size
    return {"backbone": "resnet18", "width": 1, **known}


def folder_image_size(data_dir: str) -> int:
    """Returns the default size of a view: the median short side, at most 96 pixels."""
    return _default_size(folder_source.FolderSource(data_dir))


def load(
    name: str,
    *,
    data_dir: str = "",
    image_size: int | None = None,
    cache_dir: str = "",
    verbose: bool = True,
    max_value: float | None = None,
    label_key: str = "",
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> DataSet:
    """Returns a data set; the first call prepares a store of it in the cache folder.

    Args:
        name: `textures` (made by the program), `folder` or a TFDS image data set.
        data_dir: The image folder, or the folder of TFDS.
        image_size: Side of a view in pixels; by default what suits the data set.
        cache_dir: Where stores are kept; default `$XDG_CACHE_HOME/tfsimclr` or
            `~/.cache/tfsimclr`.
        verbose: Whether to print progress and what was understood, in at most ten
            lines. The first unreadable images are always named on stderr.
        max_value: Largest value of images with more than 8 bits per channel, which
            becomes 255; None takes the largest one in the data set.
        label_key: Feature of a TFDS data set that is the label; "" for its only one,
            "none" for none.
        ranges: By `depth.kind`, the range of other images of more than 8 bits, such as
            those that an encoder learned from. It is used in place of this data set's.

    Raises:
        UserError: If the data set cannot be read; the message says what to do.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size must be at least 1 pixel, got {image_size}.")
    cache = prepare.cache_folder(cache_dir)
    source = sources.source(name, data_dir, label_key)
    if not image_size:
        known = DEFAULTS.get(_plain(name), {}).get("image_size")
        image_size = known or _default_size(source)
    side = image_size
    if name != "textures":
        side = store_side(source.short_side(), image_size)
    if verbose:
        print("\n".join(summary.interpretation_lines(name, source)), flush=True)
    opened = prepare.open_or_make(
        cache, name, data_dir, source, side, verbose, max_value, ranges
    )
    parts = {split: opened.split(split) for split in _SPLITS}
    splits: dict = {k: Split(*part) if part else None for k, part in parts.items()}
    dataset = DataSet(
        name,
        **splits,
        class_names=opened.class_names,
        image_size=image_size,
        skipped=len(opened.skipped),
    )
    description = summary.content(dataset, source, opened)
    if verbose:
        print("\n".join(summary.content_lines(description)), flush=True)
    return dataclasses.replace(dataset, description=description)


def checksum(images: np.ndarray, count: int = 512) -> str:
    """Returns a checksum of the shape and of up to `count` images, evenly spread."""
    rows = sampling.evenly_spread(len(images), count)
    return files.sha256(np.array(images.shape), images[rows])


def checksums(dataset: DataSet) -> dict[str, str]:
    """Returns short checksums of the images and the labels of every split."""
    marks = {}
    for name in _SPLITS:
        split = getattr(dataset, name)
        if split:
            marks[f"the checksum of the {name} images"] = checksum(split.images)[:12]
            marks[f"the checksum of the {name} labels"] = files.sha256(split.labels)[
                :12
            ]
    return marks


def _plain(name: str) -> str:
    """Returns the name of a data set without its version."""
    return name.partition(":")[0]


def store_side(short_side: int, image_size: int) -> int:
    """Returns the side in pixels as which images are stored.

    A third larger than a view, so that a random crop has enough pixels, for less than
    twice the memory. Never larger than the images: a view enlarges a crop at no cost,
    and enlarged pixels in the store would hold no information.

    Args:
        short_side: The (median) shorter side of the images in pixels.
        image_size: Side of a view in pixels.
    """
    return max(1, min(short_side, round(4 / 3 * image_size)))


def _default_size(source) -> int:
    return min(source.short_side(), MAX_DEFAULT_SIZE)
