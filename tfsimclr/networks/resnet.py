"""Residual networks that turn images into feature vectors."""

import math
import numbers

import keras

from tfsimclr.errors import UserError
from tfsimclr.networks import norms
from tfsimclr.networks.standardization import StandardizedConv2D

# Depth -> (block, blocks in each of the four stages).
_ARCHITECTURES = {
    10: ("basic", (1, 1, 1, 1)),
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}
# Stem -> its total stride. The stages have a total stride of 8.
_STEM_STRIDES = {"imagenet": 4, "medium": 2, "small": 1}

DEPTHS = tuple(_ARCHITECTURES)
STEMS = tuple(_STEM_STRIDES)

# Normalisation of the images at the encoder's input -> mean and standard deviation of
# the red, green and blue values in 0-1. "imagenet" is torchvision's and timm's.
INPUT_NORMS = {
    "none": None,
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def resnet(
    depth: int = 18,
    width: float = 1,
    stem: str = "imagenet",
    selective_kernel: bool = False,
    norm: str = "batch",
    name: str = "encoder",
    input_norm: str = "none",
) -> keras.Model:
    """Returns an untrained ResNet: images `[n, H, W, 3]` in 0-1 -> h `[n, d]`.

    With `selective_kernel=False` it computes what torchvision's ResNet does (v1.5:
    the 3x3 convolution of a bottleneck carries the stride), so weights copied layer
    by layer give the same output. With `selective_kernel=True` it is SimCLRv2's
    network: selective kernels in place of 3x3 convolutions, ResNet-D shortcuts and,
    for the `imagenet` stem, three 3x3 convolutions in place of the 7x7.

    Args:
        depth: 10, 18, 34 (basic blocks), 50, 101, 152 or 200 (bottlenecks).
        width: Positive multiplier of all channel counts; 0.25 suits a CPU.
        stem: `imagenet` (7x7 stride 2, then max-pool), `medium` (3x3, then max-pool)
            or `small` (3x3 only). Use the one with the largest stride for which the
            images are well above `smallest_image(stem)`: `small` suits 32 px and needs
            16 times as much computation per pixel as `imagenet`.
        selective_kernel: Whether each block mixes the outputs of two kernels.
        norm: `batch`, or `group`: group norm with weight standardisation, for which the
            other images of the batch do not matter.
        name: Name of the model.
        input_norm: `none`, or `imagenet`, which subtracts ImageNet's mean colour and
            divides by its standard deviation, as published weights need. It cannot be
            folded into the first convolution, which pads with zeros: the padding would
            become the mean colour.

    Returns:
        A functional model with d = 512 * width (basic) or 2048 * width (bottleneck).
        h is float32 under the mixed-precision policies too.

    Sources: He et al. 2015 (arXiv:1512.03385); Li et al. 2019 (arXiv:1903.06586),
    section 3.1; He et al. 2018 (arXiv:1812.01187), section 4.1, model D; Chen et al.
    2020 (arXiv:2006.10029), section 2; `group`: Wu and He 2018 (arXiv:1803.08494), Qiao
    et al. 2019 (arXiv:1903.10520).
    """
    _check(depth, width, stem)
    _check_choice("norm", norm, norms.NORMS)
    _check_choice("input_norm", input_norm, tuple(INPUT_NORMS))
    block, blocks_per_stage, channels = stages(depth, width)
    images = keras.Input((None, None, 3), name="images")
    x = _normalise(images, input_norm)
    x = _stem(x, stem, _channels(64, width), selective_kernel, norm)
    for stage, num_blocks in enumerate(blocks_per_stage):
        for i in range(num_blocks):
            x = _block(
                x,
                channels[stage],
                stride=2 if stage > 0 and i == 0 else 1,
                bottleneck=block == "bottleneck",
                selective_kernel=selective_kernel,
                norm=norm,
                name=f"stage{stage + 1}_block{i + 1}",
            )
    # Averaged in float32: the mean of many half-precision numbers loses accuracy in
    # half precision, and the map is small.
    h = keras.layers.GlobalAveragePooling2D(
        dtype=keras.config.dtype_policy().variable_dtype, name="h"
    )(x)  # [n, d]
    return keras.Model(images, h, name=name)


def smallest_image(stem: str) -> int:
    """Returns the smallest image side, in pixels, at which no stage gets a 1x1 map.

    At this size the input of the last stage is 2x2 and its output 1x1. The network runs
    on smaller images too, but then whole stages work on a single pixel and eight of the
    nine weights of a 3x3 kernel are multiplied with padding.
    """
    _check_choice("stem", stem, STEMS)
    # A stride of 2 with symmetric padding gives ceil(side / 2). Before the last stage
    # there are the stem and two stages of stride 2; the map is larger than one pixel if
    # the side is larger than the product of these strides.
    return _STEM_STRIDES[stem] * 4 + 1


def depth_of(block: str, blocks_per_stage: tuple[int, ...]) -> int | None:
    """Returns the depth of the ResNet of these blocks, or None if there is none.

    Args:
        block: "basic" or "bottleneck".
        blocks_per_stage: Number of blocks in each stage.
    """
    depths = (d for d, a in _ARCHITECTURES.items() if a == (block, blocks_per_stage))
    return next(depths, None)


def stages(depth: int, width: float = 1) -> tuple[str, tuple[int, ...], list[int]]:
    """Returns what the four stages of a ResNet consist of.

    Returns:
        The kind of block, "basic" or "bottleneck"; the blocks of each stage; and the
        channels of the 3x3 convolutions of each stage. A bottleneck's output has four
        times as many.
    """
    block, blocks_per_stage = _ARCHITECTURES[depth]
    return block, blocks_per_stage, [_channels(64 * 2**i, width) for i in range(4)]


def _check(depth, width, stem):
    _check_choice("depth", depth, DEPTHS)
    _check_choice("stem", stem, STEMS)
    number = isinstance(width, numbers.Real) and not isinstance(width, bool)
    if not number or not math.isfinite(width) or width <= 0:
        raise UserError(
            f"width must be a positive number, got width={width!r}. "
            "1 is the published network; try 0.25 on a CPU."
        )


def _check_choice(argument, value, choices):
    if value not in choices:
        raise UserError(f"{argument} must be one of {choices}, got {value!r}.")


def _channels(channels, width):
    return max(1, round(channels * width))


def _normalise(images, input_norm):
    if INPUT_NORMS[input_norm] is None:
        return images
    mean, std = INPUT_NORMS[input_norm]
    return keras.layers.Normalization(
        mean=mean,
        variance=[value**2 for value in std],
        # In half precision the difference from the mean would lose digits.
        dtype=keras.config.dtype_policy().variable_dtype,
        name="input_norm",
    )(images)


def _stem(x, stem, filters, selective_kernel, norm):
    if stem != "imagenet":
        x = _conv_norm(x, filters, 3, 1, norm, "stem")
    elif selective_kernel:
        half = _channels(filters, 0.5)
        x = _conv_norm(x, half, 3, 2, norm, "stem1")
        x = _conv_norm(x, half, 3, 1, norm, "stem2")
        x = _conv_norm(x, filters, 3, 1, norm, "stem3")
    else:
        x = _conv_norm(x, filters, 7, 2, norm, "stem")
    if stem == "small":
        return x
    # torch pads with -inf. After a ReLU zeros give the same maximum: no value is below
    # zero, and every window contains at least one pixel of the map.
    x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    return keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)


def _block(x, filters, stride, bottleneck, selective_kernel, norm, name):
    """Returns relu(shortcut(x) + residual(x)), the two in the same shape."""
    out_filters = 4 * filters if bottleneck else filters
    shortcut = x
    if stride > 1 or x.shape[-1] != out_filters:
        shortcut = _shortcut(x, out_filters, stride, selective_kernel, norm, name)
    # Differs: SimCLRv2's code has no selective kernels in basic blocks. Here the first
    # convolution, which has the stride, becomes one, so that the flag has an effect at
    # every depth.
    spatial = _selective_kernel if selective_kernel else _conv_norm_3x3
    if bottleneck:
        x = _conv_norm(x, filters, 1, 1, norm, f"{name}_1")
        x = spatial(x, filters, stride, norm, f"{name}_2")
        x = _conv_norm(x, out_filters, 1, 1, norm, f"{name}_3", relu=False)
    else:
        x = spatial(x, filters, stride, norm, f"{name}_1")
        x = _conv_norm(x, filters, 3, 1, norm, f"{name}_2", relu=False)
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _shortcut(x, filters, stride, selective_kernel, norm, name):
    if selective_kernel:
        # ResNet-D: average pooling instead of a strided 1x1 convolution, which ignores
        # three of four pixels. Like SimCLRv2 we also pool at stride 1.
        # Differs: at odd sizes SimCLRv2 includes padding zeros in the average of the
        # last row and column; "same" averages only real pixels. Even sizes agree.
        x = keras.layers.AveragePooling2D(
            2, stride, padding="same", name=f"{name}_shortcut_pool"
        )(x)
        stride = 1
    return _conv_norm(x, filters, 1, stride, norm, f"{name}_shortcut", relu=False)


def _selective_kernel(x, filters, stride, norm, name):
    """Returns `[n, H', W', filters]`: per image and channel, a mix of two kernels.

    Li et al. 2019, section 3.1, in the form of SimCLRv2: both kernels are 3x3 (one
    convolution of twice the width) and the reduction ratio is 16, but at least 32.
    """
    x = _conv_norm_3x3(x, 2 * filters, stride, norm, name)
    stream_a, stream_b = keras.ops.split(x, 2, axis=-1)
    context = keras.layers.GlobalAveragePooling2D(
        keepdims=True, name=f"{name}_context"
    )(stream_a + stream_b)  # [n, 1, 1, filters]
    context = _conv_norm(context, max(filters // 16, 32), 1, 1, norm, f"{name}_squeeze")
    logits = _conv(context, 2 * filters, 1, 1, f"{name}_mix")
    logits_a, logits_b = keras.ops.split(logits, 2, axis=-1)
    # The softmax over two streams is the sigmoid of their difference.
    share_a = keras.ops.sigmoid(logits_a - logits_b)  # [n, 1, 1, filters]
    return stream_b + share_a * (stream_a - stream_b)


def _conv_norm_3x3(x, filters, stride, norm, name):
    return _conv_norm(x, filters, 3, stride, norm, name)


def _conv_norm(x, filters, kernel_size, stride, norm, name, relu=True):
    convolution = StandardizedConv2D if norm == "group" else keras.layers.Conv2D
    x = _conv(x, filters, kernel_size, stride, name, convolution)
    # Differs: SimCLR's code initialises the scale of a block's last batch norm to zero,
    # so that every block starts as its shortcut. The paper reproduced here used ones,
    # torchvision's default. With zeros the untrained encoder, one of the two baselines
    # of the evaluation, would be little more than its stem.
    if norm == "group":
        x = norms.group_norm(filters, f"{name}_gn")(x)
    else:
        x = norms.SplitBatchNormalization(
            momentum=0.9, epsilon=1e-5, name=f"{name}_bn"
        )(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _conv(x, filters, kernel_size, stride, name, convolution=keras.layers.Conv2D):
    # With a stride "same" pads an even side only at the end; torch pads both ends.
    if stride > 1 and kernel_size > 1:
        x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
    return convolution(
        filters,
        kernel_size,
        stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        # He et al. 2015 (arXiv:1502.01852), equation 14, as in torchvision. A new
        # initializer for each layer: a shared one would give equal weights to layers
        # of equal shape.
        kernel_initializer=keras.initializers.VarianceScaling(
            2.0, mode="fan_out", distribution="untruncated_normal"
        ),
        name=f"{name}_conv",
    )(x)
