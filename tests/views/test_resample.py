"""Resize matrices against Pillow and TensorFlow Addons; crops against torchvision."""

import pathlib

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image
from scipy import stats

from tfsimclr.views import random_view, resample

pytestmark = pytest.mark.quick

ADDONS = np.load(pathlib.Path(__file__).parents[1] / "data/addons_0_23_0.npz")
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.fixture(scope="module")
def photographs():
    """Two real photographs, not square, uint8 `[2, 106, 160, 3]`."""
    images = sklearn.datasets.load_sample_images().images
    return np.stack([np.asarray(Image.fromarray(i).reduce(4)) for i in images])[:, :106]


def resized(images, box, size, kernel):
    """Resizes a box (left, top, right, bottom) to (width, height), in 0-255."""
    left, top, right, bottom = (np.array([edge], "float32") for edge in box)
    height, width = images.shape[1:3]
    rows = resample.resize_matrices(top, bottom, size[1], height, kernel)
    columns = resample.resize_matrices(left, right, size[0], width, kernel)
    return random_view.resample_images(images, rows, columns).numpy()


def blur_matrix(sigma, size, radius):
    """Returns matrices that only blur: a whole axis resized to its own size."""
    kernels = resample.blur_kernels(sigma, radius)
    start, stop = np.zeros(len(sigma), "float32"), np.full(len(sigma), size, "float32")
    return resample.resize_matrices(start, stop, size, size, kernels=kernels)


@pytest.mark.promise("view-formula")
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "box,size",
    [
        ((0, 0, 160, 106), (32, 32)),  # down, another aspect ratio
        ((0, 0, 160, 106), (320, 240)),  # up
        ((0, 0, 160, 106), (160, 106)),  # nothing to do
        ((10.25, 20.5, 47.75, 50.125), (96, 96)),  # up, fractional
        ((3.3, 7.7, 157.1, 99.9), (48, 40)),  # down, fractional
        ((100.5, 0, 160, 105.5), (96, 33)),  # up in one axis, down in the other
        ((80.2, 60.1, 82.9, 63.3), (16, 16)),  # a few pixels
    ],
)
def test_resize_matches_pillow(photographs, kernel, box, size):
    """Pillow rounds to bytes and clips after each axis; we do neither.

    The mean difference is 0 to 0.32 of 255. The largest is 1.0 for bilinear and 8.2
    for bicubic, whose overshoot Pillow clips between the axes.
    """
    ours = np.clip(resized(photographs, box, size, kernel), 0, 255)
    for photograph, our in zip(photographs, ours, strict=True):
        theirs = Image.fromarray(photograph).resize(size, PILLOW[kernel], box=box)
        difference = np.abs(our - np.asarray(theirs, "float32"))
        assert difference.mean() <= 0.5
        assert difference.max() <= {"bilinear": 1.5, "bicubic": 10.0}[kernel]


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_stop_before_start_flips(kernel):
    start, stop = np.float32([3.25, 30.0]), np.float32([20.5, 1.0])
    plain = resample.resize_matrices(start, stop, 12, 32, kernel)
    flipped = resample.resize_matrices(stop, start, 12, 32, kernel)
    np.testing.assert_allclose(flipped, plain[:, ::-1], atol=1e-5)
    assert np.abs(flipped - plain).max() > 0.1


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_whole_axis_at_its_own_size_is_the_identity(kernel):
    matrix = resample.resize_matrices(np.float32([0]), np.float32([17]), 17, 17, kernel)
    np.testing.assert_allclose(matrix[0], np.eye(17), atol=1e-6)


@pytest.mark.parametrize("radius", [None, 1, 4])
@pytest.mark.parametrize(
    "size,in_size,narrow",
    [
        (96, 96, True),
        (96, 128, True),  # down
        (97, 97, True),  # padding rows in the last block
        (50, 300, True),
        (96, 20, False),
        (16, 16, False),
        (2, 90, False),
    ],
)
def test_banded_matrices_equal_the_full_ones(size, in_size, narrow, radius):
    """For crops at both ends of the axis, of all of it, of one pixel, and flipped."""
    rng = np.random.default_rng(0)
    edges = np.sort(rng.uniform(0, in_size, [40, 2]), axis=1)
    edges[:4] = [0, in_size], [0, 1], [in_size - 1, in_size], [0.3, in_size - 0.3]
    edges = np.concatenate([edges, edges[:, ::-1]]).astype("float32")
    kernels = None
    if radius:
        sigma = resample.random_sigmas(rng.random([80, 2], "float32"), 0.7)
        kernels = resample.blur_kernels(sigma, min(radius, size - 1))
    start, stop = edges.T
    images = rng.integers(0, 256, [80, in_size, 7], dtype="uint8")
    matrices = resample.resize_matrices(start, stop, size, in_size, kernels=kernels)
    banded = resample.banded_resize_matrices(
        start, stop, size, in_size, kernels=kernels
    )
    assert (banded.weights.shape[3] < 0.7 * in_size) is narrow
    expected = resample.multiply(matrices, images)
    transposed = np.swapaxes(images, 1, 2)
    for product in (
        resample.multiply(banded, images),
        resample.multiply(banded, transposed, transpose=True),
        resample.multiply(matrices, transposed, transpose=True),
    ):
        np.testing.assert_allclose(product, expected, atol=255e-5)


@pytest.mark.promise("view-formula")
@pytest.mark.parametrize("case", range(len(ADDONS["blur_taps_sigma"])))
def test_blur_matches_tensorflow_addons(case):
    kernel_size, sigma = ADDONS["blur_taps_sigma"][case]
    images, expected = ADDONS["images"], ADDONS["blurred"][case]
    rows, columns = (
        blur_matrix(np.float32([sigma]), size, int(kernel_size) // 2)
        for size in images.shape[1:3]
    )
    blurred = random_view.resample_images(images, rows, columns)
    np.testing.assert_allclose(blurred, expected, atol=1e-5)
    if sigma > 0.3:  # a smaller sigma is almost the identity
        assert np.abs(expected - images).max() > 0.1


def test_each_image_has_its_own_blur_and_sigma_0_is_none():
    sigma = np.float32([0.0, 0.5, 2.0])
    blurs = blur_matrix(sigma, 32, 3).numpy()
    np.testing.assert_array_equal(blurs[0], np.eye(32))
    np.testing.assert_allclose(blurs.sum(axis=2), 1.0, atol=1e-6)
    assert 0.5 < blurs[1, 16, 16] < 0.9
    assert blurs[2, 16, 16] < 0.25


@pytest.mark.parametrize(
    "size,kernel_size", [(1, 1), (2, 3), (32, 3), (96, 9), (224, 23)]
)
def test_blur_kernel_is_a_tenth_of_the_image(size, kernel_size):
    radius = resample.blur_radius(size)
    assert 2 * radius + 1 == kernel_size
    matrix = blur_matrix(np.float32([1.0]), size, radius)[0].numpy()
    assert (matrix[size // 2] > 0).sum() <= kernel_size
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-6)


def torchvision_boxes(rng, n, height, width, min_area):
    """Returns boxes `[n, 4]` by torchvision's loop, without its rounding."""
    boxes = []
    for _ in range(n):
        for _ in range(10):
            area = height * width * rng.uniform(min_area, 1)
            aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)
            if w <= width and h <= height:
                top, left = rng.uniform(0, height - h), rng.uniform(0, width - w)
                break
        else:
            w, h = width, height
            if width / height < 3 / 4:
                h = w / (3 / 4)
            elif width / height > 4 / 3:
                w = h * (4 / 3)
            top, left = (height - h) / 2, (width - w) / 2
        boxes.append([top, top + h, left, left + w])
    return np.array(boxes)


def random_boxes(n, height, width, min_area):
    draws = random_view.uniform([4, 2], random_view.CROP, [n, resample.CROP_DRAWS, 2])
    return resample.random_boxes(draws, height, width, min_area).numpy()


def features(boxes, height, width):
    top, bottom, left, right = boxes.T.astype("float64")
    values = {
        "area": (bottom - top) * (right - left) / (height * width),
        "log aspect": np.log((right - left) / (bottom - top)),
        "middle y": (top + bottom) / 2,
        "middle x": (left + right) / 2,
    }
    # Rounded, so that the fallback boxes, which are all the same, compare as equal.
    return {name: np.round(value, 4) for name, value in values.items()}


@pytest.mark.parametrize(
    "height,width,min_area",
    [(32, 32, 0.08), (32, 32, 0.5), (96, 40, 0.08), (40, 96, 0.2)],
)
def test_boxes_are_distributed_as_torchvision_draws_them(height, width, min_area):
    """Kolmogorov-Smirnov distance of 20,000 draws; 0.0195 is its p = 0.001."""
    ours = random_boxes(20_000, height, width, min_area)
    rng = np.random.default_rng(0)
    slow = torchvision_boxes(rng, 20_000, height, width, min_area)
    assert ours[:, [0, 2]].min() >= 0
    assert (ours[:, [1, 3]] <= np.array([height, width]) + 1e-4).all()
    expected = features(slow, height, width)
    for name, values in features(ours, height, width).items():
        distance = stats.ks_2samp(values, expected[name]).statistic
        assert distance < 0.0195, (name, distance)


def test_areas_and_aspect_ratios_are_uniform_where_every_box_fits():
    """A crop of less than 3/4 of a square image fits with every aspect ratio."""
    values = features(random_boxes(20_000, 64, 64, 0.08), 64, 64)
    small = values["area"] < 0.74
    areas = (values["area"][small] - 0.08) / 0.66
    aspects = values["log aspect"][small] / (2 * np.log(4 / 3)) + 0.5
    assert small.sum() > 12_000
    assert stats.kstest(areas, "uniform").pvalue > 0.001
    assert stats.kstest(aspects, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(areas, aspects)[0, 1]) < 0.03


@pytest.mark.parametrize(
    "height,width,expected",
    [
        (30, 30, [0, 30, 0, 30]),
        (30, 100, [0, 30, 30, 70]),
        (100, 30, [30, 70, 0, 30]),
    ],
)
def test_a_box_that_never_fits_becomes_the_largest_central_one(height, width, expected):
    boxes = random_boxes(50, height, width, 1.0)
    np.testing.assert_allclose(boxes, np.tile(expected, [50, 1]), atol=1e-4)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_sigmas_are_uniform_with_their_probability(probability):
    draws = random_view.uniform([0, 1], random_view.BLUR, [20_000, 2])
    sigmas = resample.random_sigmas(draws, probability).numpy()
    blurred = sigmas[sigmas > 0]
    assert abs(len(blurred) / 20_000 - probability) < 0.013  # four deviations
    if probability:
        assert stats.kstest(blurred, stats.uniform(0.1, 1.9).cdf).pvalue > 0.001
