"""Random views of a batch of images, as linear algebra on the device.

A view is `clip(C (R_y X R_x^T) + c, 0, 1)`: the matrices R of resample.py crop, resize,
mirror and blur, the maps C and c of color.py change the colours.
"""

import keras
import tensorflow as tf

from tfsimclr.errors import UserError
from tfsimclr.views import color, resample

# No two of them share their random numbers.
CROP, FLIP, BLUR, JITTER, GRAYSCALE = range(5)


def uniform(seed, purpose: int, shape) -> tf.Tensor:
    """Returns float32 numbers uniform in [0, 1), a function of seed and purpose.

    `tf.random.stateless_uniform` makes floats of other bits of the same numbers under
    XLA than without; its integers agree.
    """
    seed = tf.random.experimental.stateless_fold_in(seed, purpose, alg="philox")
    bits = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    bits = tf.bitwise.right_shift(bits, 8)  # 24 bits with a sign: exact in float32
    return tf.cast(bits, tf.float32) * 2.0**-24 + 0.5


@keras.saving.register_keras_serializable("tfsimclr")
class Views:
    """Makes one random view of every image of a batch, as SimCLR draws them.

    Every image draws its own parameters, and all that is drawn is a function of the
    seed. Resizing is bilinear, torchvision's default, with which the accuracies on
    STL-10 that we compare with were measured.

        views = Views(96)
        view_a, view_b = views(images, [0, 0]), views(images, [0, 1])

    Differs: values are clipped once, at the end, and hue turns in YIQ instead of HSV.

    Args:
        image_size: Pixels of a side of a view.
        crop_min_area: Smallest crop as a share of the image's area, above 0, at most 1.
        jitter_strength: Strength of the colour jitter, which four of five images get:
            brightness, contrast and saturation vary by 0.8 of it, hue by 0.2 turns.
        blur: Probability of a Gaussian blur with sigma 0.1 to 2 pixels.
        flip: Whether to mirror left and right with probability 0.5.
        grayscale: Probability of a grey view.
    """

    def __init__(
        self,
        image_size: int,
        crop_min_area: float = 0.08,
        jitter_strength: float = 1.0,
        blur: float = 0.0,
        flip: bool = True,
        grayscale: float = 0.2,
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

    def __call__(self, images, seed):
        """Returns a view of each image.

        Args:
            images: `[n, H, W, 3]`, uint8, or float in 0-255.
            seed: int32 `[2]`.

        Returns:
            `[n, image_size, image_size, 3]`, float32 in 0-1.
        """
        images = _checked(images)
        # Up to three blocks, gathering the windows costs what the products save.
        windows = self.image_size > 3 * resample.BLOCK
        rows, columns = self.geometry(images, seed, windows)
        resampled = resample_images(images, rows, columns)
        return apply_color_maps(resampled, self.colors(resampled, seed))

    def geometry(self, images, seed, windows: bool = False):
        """Returns the matrices `[n, s, H]` and `[n, s, W]` of a batch.

        Args:
            images: As in a call.
            seed: As in a call.
            windows: Whether both are to be `resample.Windows`.
        """
        n, height, width, _ = tf.unstack(tf.shape(images))
        size = self.image_size
        draws = uniform(seed, CROP, [n, resample.CROP_DRAWS, 2])
        boxes = resample.random_boxes(draws, height, width, self.crop_min_area)
        top, bottom, left, right = tf.unstack(boxes, axis=1)
        if self.flip:
            mirrored = uniform(seed, FLIP, [n]) < 0.5
            left, right = (
                tf.where(mirrored, right, left),
                tf.where(mirrored, left, right),
            )
        taps = None
        if self.blur:
            sigma = resample.random_sigmas(uniform(seed, BLUR, [n, 2]), self.blur)
            taps = resample.blur_kernels(sigma, resample.blur_radius(size))
        make = resample.banded_resize_matrices if windows else resample.resize_matrices
        rows = make(top, bottom, size, height, taps=taps)
        return rows, make(left, right, size, width, taps=taps)

    def colors(self, resampled, seed):
        """Returns maps `[n, 3, 4]` for images `[n, s, s, 3]` in 0-255, or None."""
        if not (self.jitter_strength or self.grayscale):
            return None
        n = tf.shape(resampled)[0]
        draws = uniform(seed, JITTER, [n, 5])
        jitter = color.random_jitter(draws, self.jitter_strength)
        grayscale = uniform(seed, GRAYSCALE, [n]) < self.grayscale
        # Over both axes at once the mean takes twice as long.
        means = tf.reduce_mean(tf.reduce_mean(resampled, 1), 1)
        return color.affine_maps(jitter, grayscale, means)

    def get_config(self):
        names = ("image_size", "crop_min_area", "jitter_strength", "blur", "flip")
        return {name: getattr(self, name) for name in (*names, "grayscale")}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def resample_images(images, rows, columns) -> tf.Tensor:
    """Returns `rows @ image @ columns^T` of each image and colour, `[n, s, t, 3]`.

    Args:
        images: `[n, H, W, 3]`, uint8 or float.
        rows: `[n, s, H]`, or `[1, s, H]` for one matrix for all, or `resample.Windows`.
        columns: `[n, t, W]`, likewise.
    """
    _, height, width, _ = tf.unstack(tf.shape(images))
    # With the columns first and the rows last, colours come out innermost again. Bytes
    # are cheaper to transpose than floats, and two views share the one transpose.
    images = tf.reshape(images, [-1, height, width * 3])
    images = tf.reshape(tf.transpose(images, [0, 2, 1]), [-1, width, 3 * height])
    images = resample.multiply(columns, images)
    wide = images.shape[1]
    images = tf.reshape(images, [-1, wide * 3, height])  # [n, 3t, H]
    images = resample.multiply(rows, images, transpose=True)
    return tf.reshape(images, [-1, images.shape[1], wide, 3])


def apply_color_maps(images, maps=None) -> tf.Tensor:
    """Returns images in 0-1, `[n, s, t, 3]`, of such in 0-255.

    Args:
        images: As `resample_images` returns them.
        maps: `[n, 3, 4]`, as `color.affine_maps` returns them, or None to keep colours.
    """
    _, height, width, _ = images.shape
    if maps is None:
        images = images / 255.0
    else:
        maps = maps / 255.0
        images = tf.reshape(images, [-1, height * width, 3])
        images = tf.matmul(images, maps[:, :, :3], transpose_b=True)
        # Adding three numbers to every pixel is slow, a row of them to rows is not.
        images = tf.reshape(images, [-1, height, width * 3])
        images += tf.tile(maps[:, None, :, 3], [1, 1, width])
        images = tf.reshape(images, [-1, height, width, 3])
    return tf.clip_by_value(images, 0.0, 1.0)


def _checked(images) -> tf.Tensor:
    images = tf.convert_to_tensor(images)
    if images.shape.rank != 4 or images.shape[3] != 3:
        raise UserError(
            "images must be a batch of RGB images, [n, height, width, 3], "
            f"got {images.shape}."
        )
    return images


def plain_view(images, image_size: int) -> tf.Tensor:
    """Returns the central square of each image, resized as evaluation needs it.

    Args:
        images: `[n, H, W, 3]`, uint8, or float in 0-255; sizes may be unknown.
        image_size: Pixels of a side that come out, bilinear and antialiased.

    Returns:
        `[n, image_size, image_size, 3]`, float32 in 0-1.
    """
    images = _checked(images)
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
