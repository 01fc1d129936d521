"""Random views of a batch of images, computed as matrix products on the device.

A view of an image X is `clip(C (R_y X R_x^T) + c, 0, 1)`. The matrices R (resample.py)
crop, resize, flip and blur; the affine map C, c (color.py) changes the colours.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from tfsimclr.errors import UserError
from tfsimclr.views import color, resample

# Folded into the seed, so that each random choice has random numbers of its own.
CROP, FLIP, BLUR, JITTER, GRAYSCALE = range(5)
# SwAV's small crops, as shares of an image's area.
LOCAL_CROP_AREAS = (0.05, 0.14)


def uniform(seed, purpose: int, shape) -> tf.Tensor:
    """Returns float32 numbers uniform in [0, 1), a function of seed and purpose.

    Built from random integers: the floats of `tf.random.stateless_uniform` differ with
    and without XLA for the same seed, its integers do not.

    Args:
        seed: int32 `[2]`.
        purpose: Which random choice the numbers are for: `CROP`, `FLIP`, ...
        shape: Shape of the result.
    """
    seed = tf.random.experimental.stateless_fold_in(seed, purpose, alg="philox")
    bits = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    bits = tf.bitwise.right_shift(bits, 8)  # signed 24-bit: exact in float32
    return tf.cast(bits, tf.float32) * 2.0**-24 + 0.5


class Rows(NamedTuple):
    """Some rows of a batch whose views are made in several parts.

    Attributes:
        indices: The rows of the part, int `[m]`.
        batch_size: Rows of the whole batch.
    """

    indices: tf.Tensor
    batch_size: int


def _draws(seed, purpose: int, n, shape, rows: Rows | None) -> tf.Tensor:
    """Returns the random numbers of n images, `[n, *shape]`; see `uniform`.

    A part of a batch gets the numbers that its rows have in the whole batch. So a view
    does not depend on how the batch is divided into parts.
    """
    if rows is None:
        return uniform(seed, purpose, [n, *shape])
    whole = uniform(seed, purpose, [rows.batch_size, *shape])
    return tf.gather(whole, rows.indices)


@keras.saving.register_keras_serializable("tfsimclr")
class Views:
    """The random augmentation of SimCLR for a batch of images.

    Random resized crop, horizontal flip, Gaussian blur, colour jitter and grayscale.
    Every image gets random parameters of its own, all a function of the seed. Resizing
    is bilinear: the published STL-10 accuracies that we compare with were measured
    with torchvision's default.

        views = Views(96)
        view_a, view_b = views(images, [0, 0]), views(images, [0, 1])

    Differs: values are clipped once, after all operations, and hue is rotated in YIQ
    instead of HSV.

    Args:
        image_size: Side of a view in pixels.
        crop_min_area: Smallest crop as a share of the image's area, above 0, at most 1.
        jitter_strength: Strength of the colour jitter, applied with probability 0.8:
            brightness, contrast and saturation change by a factor of 1 +- 0.8 strength,
            hue by +- 0.2 strength turns. 0 switches it off.
        blur: Probability of a Gaussian blur with sigma 0.1 to 2 pixels.
        flip: Whether to flip left and right with probability 0.5.
        grayscale: Probability of a gray view.
        crop_max_area: Largest crop as a share of the image's area, at least
            `crop_min_area`, at most 1.

    Raises:
        UserError: If an argument is out of range.

    Source: Chen et al. 2020 (arXiv:2002.05709), section 3 and appendix A.
    """

    def __init__(
        self,
        image_size: int,
        crop_min_area: float = 0.08,
        jitter_strength: float = 1.0,
        blur: float = 0.0,
        flip: bool = True,
        grayscale: float = 0.2,
        crop_max_area: float = 1.0,
    ):
        if image_size != int(image_size) or image_size < 1:
            raise UserError(
                f"image_size must be a whole number of pixels, got {image_size}."
            )
        if not 0 < crop_min_area <= 1:
            raise UserError(
                "crop_min_area must be a share above 0 and at most 1, "
                f"got {crop_min_area}. 1 keeps the whole image."
            )
        if not crop_min_area <= crop_max_area <= 1:
            raise UserError(
                f"crop_max_area must be from crop_min_area={crop_min_area} to 1, got "
                f"{crop_max_area}."
            )
        if not 0 <= jitter_strength < float("inf"):
            raise UserError(
                "jitter_strength must be a number of at least 0, "
                f"got {jitter_strength}. 0 switches the colour jitter off."
            )
        for name, value in (("blur", blur), ("grayscale", grayscale)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} must be a probability, got {value}.")
        self.image_size = int(image_size)
        self.crop_min_area = float(crop_min_area)
        self.jitter_strength = float(jitter_strength)
        self.blur = float(blur)
        self.flip = bool(flip)
        self.grayscale = float(grayscale)
        self.crop_max_area = float(crop_max_area)

    def __call__(self, images, seed, rows: Rows | None = None):
        """Returns one random view of each image.

        Args:
            images: `[n, H, W, 3]`, uint8, or float in 0-255.
            seed: int32 `[2]`; the same seed gives the same views.
            rows: None, or which n rows of a larger batch the images are; each image
                then gets the view that it has in that batch.

        Returns:
            `[n, image_size, image_size, 3]`, float32 in 0-1.
        """
        images = _rgb_batch(images)
        # With three blocks or fewer, banded products save no more time than gathering
        # their windows takes.
        banded = self.image_size > 3 * resample.BLOCK
        matrices = self.resize_matrices(images, seed, banded, rows)
        resampled = resample_images(images, *matrices)
        return apply_color_maps(resampled, self.color_maps(resampled, seed, rows))

    def resize_matrices(self, images, seed, banded: bool = False, rows=None):
        """Returns the matrices that crop, resize, flip and blur each image.

        Args:
            images: `[n, H, W, 3]`; only the shape is used.
            seed: int32 `[2]`.
            banded: Whether to return `resample.BandedMatrices`.
            rows: As in a call.

        Returns:
            A matrix for the rows, `[n, image_size, H]`, and one for the columns,
            `[n, image_size, W]`, float32.
        """
        n, height, width, _ = tf.unstack(tf.shape(images))
        size = self.image_size
        draws = _draws(seed, CROP, n, [resample.CROP_DRAWS, 2], rows)
        boxes = resample.random_boxes(
            draws, height, width, self.crop_min_area, self.crop_max_area
        )
        top, bottom, left, right = tf.unstack(boxes, axis=1)
        if self.flip:
            flipped = _draws(seed, FLIP, n, [], rows) < 0.5
            left, right = (
                tf.where(flipped, right, left),
                tf.where(flipped, left, right),
            )
        kernels = None
        if self.blur:
            sigma = resample.random_sigmas(_draws(seed, BLUR, n, [2], rows), self.blur)
            kernels = resample.blur_kernels(sigma, resample.blur_radius(size))
        matrices = (
            resample.banded_resize_matrices if banded else resample.resize_matrices
        )
        of_rows = matrices(top, bottom, size, height, kernels=kernels)
        return of_rows, matrices(left, right, size, width, kernels=kernels)

    def color_maps(self, resampled, seed, rows=None):
        """Returns the affine colour map of each image.

        Args:
            resampled: `[n, s, s, 3]` in 0-255: contrast needs the mean colour.
            seed: int32 `[2]`.
            rows: As in a call.

        Returns:
            `[n, 3, 4]` float32 (see `color.affine_maps`), or None if the settings
            change no colour.
        """
        if not (self.jitter_strength or self.grayscale):
            return None
        n = tf.shape(resampled)[0]
        draws = _draws(seed, JITTER, n, [5], rows)
        jitter = color.random_jitter(draws, self.jitter_strength)
        grayscale = _draws(seed, GRAYSCALE, n, [], rows) < self.grayscale
        # Two reductions: one mean over both axes takes twice as long.
        means = tf.reduce_mean(tf.reduce_mean(resampled, 1), 1)
        return color.affine_maps(jitter, grayscale, means)

    def get_config(self):
        names = ("image_size", "crop_min_area", "jitter_strength", "blur", "flip")
        names = (*names, "grayscale", "crop_max_area")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def local_views(
        self,
        image_size: int | None = None,
        crop_min_area: float = LOCAL_CROP_AREAS[0],
        crop_max_area: float = LOCAL_CROP_AREAS[1],
    ) -> "Views":
        """Returns views of small crops in the same colours, for multi-crop.

        Args:
            image_size: Side in pixels; None is half of that of these views.
            crop_min_area: Smallest crop as a share of the image's area.
            crop_max_area: Largest crop as a share of the image's area.

        Source: Caron et al. 2020 (arXiv:2006.09882), section 3.2.
        """
        changes = {
            "image_size": image_size or -(-self.image_size // 2),
            "crop_min_area": crop_min_area,
            "crop_max_area": crop_max_area,
        }
        return Views(**{**self.get_config(), **changes})


def resample_images(images, rows, columns) -> tf.Tensor:
    """Returns `rows @ image @ columns^T` of each image and colour, `[n, s, t, 3]`.

    Args:
        images: `[n, H, W, 3]`, uint8 or float.
        rows: `[n, s, H]`, `[1, s, H]` (one matrix for all images) or
            `resample.BandedMatrices`.
        columns: The same for the other axis, `[n, t, W]` or `[1, t, W]`.

    Returns:
        `[n, s, t, 3]`, float32, in the range of the input.
    """
    _, height, width, _ = tf.unstack(tf.shape(images))
    # Columns first, then rows: this order leaves the colour axis last without another
    # transpose. Transposing bytes is cheaper than transposing floats, and the compiler
    # shares this transpose between both views of an image.
    images = tf.reshape(images, [-1, height, width * 3])
    images = tf.reshape(tf.transpose(images, [0, 2, 1]), [-1, width, 3 * height])
    images = resample.multiply(columns, images)
    new_width = images.shape[1]
    images = tf.reshape(images, [-1, new_width * 3, height])  # [n, 3t, H]
    images = resample.multiply(rows, images, transpose=True)
    return tf.reshape(images, [-1, images.shape[1], new_width, 3])


def apply_color_maps(images, maps=None) -> tf.Tensor:
    """Applies a colour map to each image and clips the result to 0-1.

    Args:
        images: `[n, s, t, 3]` float32 in 0-255, the result of `resample_images`.
        maps: `[n, 3, 4]`, the result of `color.affine_maps`, or None to keep colours.

    Returns:
        `[n, s, t, 3]`, float32 in 0-1.
    """
    _, height, width, _ = images.shape
    if maps is None:
        images = images / 255.0
    else:
        maps = maps / 255.0
        images = tf.reshape(images, [-1, height * width, 3])
        images = tf.matmul(images, maps[:, :, :3], transpose_b=True)
        # Broadcasting three numbers over pixels is slow; adding whole rows is fast.
        images = tf.reshape(images, [-1, height, width * 3])
        images += tf.tile(maps[:, None, :, 3], [1, 1, width])
        images = tf.reshape(images, [-1, height, width, 3])
    return tf.clip_by_value(images, 0.0, 1.0)


def _rgb_batch(images) -> tf.Tensor:
    """Returns the images as a tensor, or raises UserError if not `[n, H, W, 3]`."""
    images = tf.convert_to_tensor(images)
    if images.shape.rank != 4 or images.shape[3] != 3:
        raise UserError(
            "images must be a batch of RGB images, [n, height, width, 3], "
            f"got {images.shape}."
        )
    return images


def plain_view(images, image_size: int) -> tf.Tensor:
    """Returns the central square of each image, resized, without augmentation.

    Evaluation and the exported model use it. Resizing is bilinear and antialiased.

    Args:
        images: `[n, H, W, 3]`, uint8, or float in 0-255; H and W may be unknown in a
            graph.
        image_size: Side of the result in pixels.

    Returns:
        `[n, image_size, image_size, 3]`, float32 in 0-1.
    """
    images = _rgb_batch(images)
    if images.shape[1] == images.shape[2] == image_size:
        return tf.clip_by_value(tf.cast(images, tf.float32) / 255.0, 0.0, 1.0)
    sides = tf.shape(images)[1:3]
    side = tf.reduce_min(sides)
    start = tf.cast((sides - side) // 2, tf.float32)
    stop = start + tf.cast(side, tf.float32)
    rows, columns = (
        resample.resize_matrices(
            start[i : i + 1], stop[i : i + 1], image_size, sides[i]
        )
        for i in range(2)
    )
    return apply_color_maps(resample_images(images, rows, columns))
