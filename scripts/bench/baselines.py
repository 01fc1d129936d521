"""The usual ways to make a view of one image, with which `views` compares ours.

SimCLR's settings: crops of 8 % or more, colour jitter of strength 1, a blur of sigma
0.1 to 2. TensorFlow and torchvision are imported only where they are used, since no
environment needs to have both.
"""

import sys
import types


def tensorflow(image, size: int, blur: float):
    """Returns a view of one image, to be mapped over a `tf.data` data set.

    Follows data_util.py of google-research/simclr with shortcuts that make the baseline
    faster: only the crop's pixels are resized, the colour jitter has one order, and a
    transformation is computed only for images that draw it.

    Args:
        image: uint8 `[H, W, 3]`.
        size: Pixels of a side of the view.
        blur: Probability of a blur.
    """
    import tensorflow as tf

    def sometimes(probability, change, image):
        applies = tf.random.uniform([]) < probability
        return tf.cond(applies, lambda: change(image), lambda: image)

    def jitter(image):
        image *= tf.random.uniform([], 0.2, 1.8)
        image = tf.image.random_contrast(image, 0.2, 1.8)
        image = tf.image.random_saturation(image, 0.2, 1.8)
        return tf.clip_by_value(tf.image.random_hue(image, 0.2), 0.0, 1.0)

    def grayscale(image):
        return tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))

    def gaussian_blur(image):
        radius = max(size // 10 // 2, 1)
        offsets = tf.range(-radius, radius + 1, dtype=tf.float32)
        sigma = tf.random.uniform([], 0.1, 2.0)
        kernel = tf.nn.softmax(-(offsets**2) / (2 * sigma**2))[:, None, None, None]
        kernel = tf.tile(kernel, [1, 1, 3, 1])
        image = image[None]
        for rows_or_columns in (kernel, tf.transpose(kernel, [1, 0, 2, 3])):
            image = tf.nn.depthwise_conv2d(image, rows_or_columns, [1, 1, 1, 1], "SAME")
        return image[0]

    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        min_object_covered=0.1,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.slice(image, begin, extent)
    image = tf.image.resize(image, [size, size], tf.image.ResizeMethod.BICUBIC)
    image = tf.image.random_flip_left_right(image / 255.0)
    image = sometimes(0.8, jitter, image)
    image = sometimes(0.2, grayscale, image)
    if blur:
        image = sometimes(blur, gaussian_blur, image)
    image = tf.clip_by_value(image, 0.0, 1.0)
    return tf.ensure_shape(image, [size, size, 3])


def torchvision(size: int, blur: float):
    """Returns torchvision's transform of a PIL image to a view, `[3, size, size]`.

    Args:
        size: Pixels of a side of the view.
        blur: Probability of a blur.
    """
    # torchvision fails to import where its compiled box operators do not match torch.
    # Transforms need none of them.
    operators = "torchvision._meta_registrations"
    sys.modules.setdefault(operators, types.ModuleType(operators))
    from torchvision import transforms as t

    kernel = 2 * max(size // 10 // 2, 1) + 1
    jitter = t.RandomApply([t.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8)
    crop = [t.RandomResizedCrop(size), t.RandomHorizontalFlip()]
    colors = [jitter, t.RandomGrayscale(0.2)]
    if blur:
        colors.append(t.RandomApply([t.GaussianBlur(kernel, (0.1, 2.0))], p=blur))
    return t.Compose([*crop, *colors, t.ToTensor()])
