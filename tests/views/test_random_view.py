"""Random views against the formula, Pillow, and the distributions they draw from."""

import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from PIL import Image
from scipy import stats

from tfsimclr.views import random_view

OPTIONS = {
    "default": {},
    "blur": {"blur": 0.5},
    "crop only": {"jitter_strength": 0.0, "grayscale": 0.0, "flip": False},
    "gray only": {"jitter_strength": 0.0, "grayscale": 0.5},
    "jitter only": {"grayscale": 0.0, "crop_min_area": 1.0},
    "strong": {"jitter_strength": 2.0, "blur": 1.0, "grayscale": 1.0},
}
SEED = tf.constant([3, 4], tf.int32)


@pytest.fixture(scope="module")
def photographs():
    """Two real photographs four times each, uint8 `[8, 60, 80, 3]`."""
    images = sklearn.datasets.load_sample_images().images
    small = [np.asarray(Image.fromarray(i).resize((80, 60))) for i in images]
    return np.stack(small * 4)


def traced(views, **options):
    """Returns views as a graph for batches of unknown number and size."""
    images = tf.TensorSpec([None, None, None, 3], tf.uint8)
    seed = tf.TensorSpec([2], tf.int32)
    return tf.function(views, input_signature=[images, seed], **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("image_size", [1, 32, 75])
def test_graph_agrees_with_eager(photographs, options, image_size):
    views = random_view.Views(image_size, **options)
    view = views(photographs, SEED)
    assert view.dtype == tf.float32
    assert view.shape == (8, image_size, image_size, 3)
    assert view.numpy().min() >= 0
    assert view.numpy().max() <= 1
    graph = traced(views)
    np.testing.assert_allclose(graph(photographs, SEED), view, atol=1e-4)
    shape = graph.get_concrete_function().output_shapes.as_list()
    assert shape == [None, image_size, image_size, 3]


@pytest.mark.promise("view-formula")
@pytest.mark.parametrize("options", ["blur", "crop only"])
@pytest.mark.parametrize("image_size", [24, 75])
def test_xla_agrees_with_eager(photographs, image_size, options):
    views = random_view.Views(image_size, **OPTIONS[options])
    compiled = traced(views, jit_compile=True)
    view = views(photographs, SEED)
    np.testing.assert_allclose(compiled(photographs, SEED), view, atol=1e-4)


@pytest.mark.promise("view-formula")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("image_size", [24, 75])
def test_matches_the_formula_in_numpy(photographs, image_size, options):
    views = random_view.Views(image_size, **options)
    rows, columns = (
        m.numpy().astype("float64") for m in views.resize_matrices(photographs, SEED)
    )
    expected = np.einsum("nyh,nhwc,nxw->nyxc", rows, photographs / 255, columns)
    maps = views.color_maps(tf.constant(expected * 255, tf.float32), SEED)
    if maps is not None:
        maps = maps.numpy() / [1, 1, 1, 255]
        expected = np.einsum("nij,nyxj->nyxi", maps[:, :, :3], expected)
        expected += maps[:, None, None, :, 3]
    view = views(photographs, SEED)
    np.testing.assert_allclose(view, np.clip(expected, 0, 1), atol=1e-5)


def test_bytes_and_floats_give_the_same_view(photographs):
    views = random_view.Views(32, blur=0.5)
    from_bytes = views(photographs, SEED)
    from_floats = views(photographs.astype("float32"), SEED)
    np.testing.assert_array_equal(from_bytes, from_floats)


@pytest.mark.promise("views")
def test_a_view_is_a_function_of_the_seed(photographs):
    views = random_view.Views(32)
    again = random_view.Views(32)
    np.testing.assert_array_equal(views(photographs, SEED), again(photographs, SEED))
    for other in ([3, 5], [4, 4], [4, 3]):
        changed = views(photographs, tf.constant(other, tf.int32)).numpy()
        difference = np.abs(changed - views(photographs, SEED)).mean(axis=(1, 2, 3))
        assert (difference > 0.01).all()


def test_every_image_has_random_parameters_of_its_own(photographs):
    views = random_view.Views(32, blur=1.0)
    same = np.repeat(photographs[:1], 64, axis=0)
    rows, columns = views.resize_matrices(same, SEED)
    resampled = random_view.resample_images(same, rows, columns)
    maps = views.color_maps(resampled, SEED).numpy()
    for matrices in (rows.numpy(), columns.numpy()):
        assert len(np.unique(matrices.reshape(64, -1), axis=0)) == 64
    # A fifth of the images has no jitter, so those have equal colour maps.
    assert len(np.unique(maps.reshape(64, -1), axis=0)) > 40


@pytest.mark.parametrize("image_size", [16, 40])
def test_rows_of_a_batch_have_their_views_of_the_whole_batch(photographs, image_size):
    """Also in another order: micro-batches and replicas rely on it."""
    views = random_view.Views(image_size, blur=0.5)
    whole = views(photographs, SEED)
    indices = [2, 0]
    part = views(
        photographs[indices],
        SEED,
        random_view.Rows(tf.constant(indices), len(photographs)),
    )
    # The random numbers are equal; the vectorised arithmetic rounds the last bit of a
    # row by its place in the batch.
    np.testing.assert_allclose(part, whole.numpy()[indices], atol=1e-7)
    # Without `rows` the first image would get the view of row 0.
    assert np.abs(views(photographs[indices], SEED).numpy() - part).mean() > 0.01


def test_an_image_has_the_same_view_in_a_batch_of_another_size(photographs):
    views = random_view.Views(32, blur=0.5)
    few, many = views(photographs[:3], SEED), views(photographs, SEED)
    np.testing.assert_allclose(few, many[:3], atol=1e-5)


def gradient_images(n):
    """Returns images on which a flip and a change to gray can be detected."""
    ramp = np.linspace(40, 200, 16)
    image = np.stack(
        [np.tile(ramp, [16, 1]), np.full([16, 16], 90), 0 * ramp + ramp[:, None]], 2
    )
    return np.tile(image.astype("uint8"), [n, 1, 1, 1])


@pytest.mark.parametrize("flip,expected", [(True, 0.5), (False, 0.0)])
def test_share_of_flipped_views(flip, expected):
    views = random_view.Views(8, flip=flip, jitter_strength=0.0, grayscale=0.0)
    view = views(gradient_images(4000), SEED).numpy()
    flipped = view[:, :, 0, 0].mean(axis=1) > view[:, :, -1, 0].mean(axis=1)
    assert abs(flipped.mean() - expected) < 0.032  # four deviations
    assert (view[:, 0, :, 2].mean(axis=1) < view[:, -1, :, 2].mean(axis=1)).all()


@pytest.mark.parametrize("grayscale", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("jitter_strength", [0.0, 0.5])
def test_share_of_gray_views(grayscale, jitter_strength):
    views = random_view.Views(8, grayscale=grayscale, jitter_strength=jitter_strength)
    view = views(gradient_images(4000), SEED).numpy()
    gray = np.ptp(view, axis=3).max(axis=(1, 2)) < 1e-5
    assert abs(gray.mean() - grayscale) < 0.026  # four deviations


@pytest.mark.parametrize("blur", [0.0, 0.4, 1.0])
def test_share_of_blurred_views(blur):
    views = random_view.Views(16, blur=blur, crop_min_area=1.0, flip=False)
    images = np.zeros([4000, 16, 16, 3], "uint8")
    rows, _ = views.resize_matrices(images, SEED)
    # A sigma below 0.2 (5 % of the blurs) changes no pixel by 1e-5.
    identity = np.abs(rows.numpy() - np.eye(16)).max(axis=(1, 2)) < 1e-5
    assert abs((1 - identity.mean()) - 0.945 * blur) < 0.034 * bool(blur) + 1e-9


def test_uniform_numbers_are_uniform_and_purposes_independent():
    draws = [
        random_view.uniform(SEED, purpose, [20_000]).numpy() for purpose in range(5)
    ]
    draws.append(random_view.uniform(SEED + 1, 0, [20_000]).numpy())
    for numbers in draws:
        assert numbers.min() >= 0
        assert numbers.max() < 1
        assert stats.kstest(numbers, "uniform").pvalue > 0.001
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlations).max() < 0.0283  # four deviations


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_survives_a_round_trip_through_its_config(photographs, options):
    views = random_view.Views(24, **options)
    config = keras.saving.serialize_keras_object(views)
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again, random_view.Views)
    assert again.get_config() == views.get_config()
    assert options.items() <= again.get_config().items()
    np.testing.assert_array_equal(again(photographs, SEED), views(photographs, SEED))


@pytest.mark.parametrize(
    "name,value",
    [
        ("image_size", 0),
        ("image_size", 31.5),
        ("crop_min_area", 0.0),
        ("crop_min_area", 1.01),
        ("crop_min_area", float("nan")),
        ("jitter_strength", -0.1),
        ("jitter_strength", float("inf")),
        ("blur", -0.1),
        ("blur", 1.1),
        ("grayscale", -0.1),
        ("grayscale", 2),
    ],
)
def test_arguments_out_of_range_are_errors(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*got {value}"):
        random_view.Views(**{"image_size": 32, name: value})


@pytest.mark.parametrize("shape", [(60, 80, 3), (2, 60, 80, 1), (2, 60, 80)])
def test_anything_but_a_batch_of_rgb_images_is_an_error(shape):
    with pytest.raises(ValueError, match="batch of RGB images"):
        random_view.Views(32)(np.zeros(shape, "uint8"), SEED)
    with pytest.raises(ValueError, match="batch of RGB images"):
        random_view.plain_view(np.zeros(shape, "uint8"), 32)


@pytest.mark.parametrize("size", [16, 60, 90])
@pytest.mark.parametrize("tall", [False, True])
def test_plain_view_is_pillows_resize_of_the_central_square(photographs, size, tall):
    images = np.swapaxes(photographs, 1, 2) if tall else photographs
    ours = random_view.plain_view(images, size).numpy() * 255
    for image, our in zip(images[:2], ours[:2], strict=True):
        square = image[10:70] if tall else image[:, 10:70]
        theirs = Image.fromarray(np.ascontiguousarray(square))
        theirs = theirs.resize((size, size), Image.Resampling.BILINEAR)
        # Ours also uses pixels outside the square, so the outermost two may differ.
        inner = np.abs(our - np.asarray(theirs, "float32"))[2:-2, 2:-2]
        assert inner.mean() <= 0.5
        assert inner.max() <= 1.5


def test_plain_view_of_its_own_size_only_scales(photographs):
    square = photographs[:, :, :60]
    view = random_view.plain_view(square, 60)
    assert view.dtype == tf.float32
    np.testing.assert_array_equal(view, square.astype("float32") / np.float32(255))


@pytest.mark.parametrize("dtype", [tf.uint8, tf.float32])
def test_plain_view_takes_any_size_in_one_graph(photographs, dtype):
    graph = tf.function(
        lambda images: random_view.plain_view(images, 32),
        input_signature=[tf.TensorSpec([None, None, None, 3], dtype)],
    )
    for images in (photographs, photographs[:3, :32, :32], photographs[:1, 5:, :41]):
        view = graph(tf.cast(images, dtype))
        np.testing.assert_allclose(view, random_view.plain_view(images, 32), atol=1e-5)
    assert graph.experimental_get_tracing_count() == 1
