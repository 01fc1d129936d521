"""The encoder against torchvision's outputs, published sizes and NumPy."""

import importlib.util
import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsimclr.networks import resnet, torchvision_names

DATA = pathlib.Path(__file__).parents[1] / "data"


def load_script(name):
    path = DATA / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_script("make_torchvision")


def pixels(n, side, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(n, side, side, 3)).astype("float32")


def without_values(**arguments):
    """Builds an encoder whose variables have shapes but no memory."""
    with keras.StatelessScope(initialize_variables=False):
        return resnet.resnet(**arguments)


def count(variables):
    return sum(math.prod(variable.shape) for variable in variables)


@pytest.fixture(autouse=True)
def same_weights_in_every_run():
    keras.utils.set_random_seed(0)


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


# --- torchvision -------------------------------------------------------------------


def fill(model):
    """Gives a model the weights that the script gave torchvision's."""
    for name, variable in torchvision_names.variables_by_name(model).items():
        shape = torchvision_names.to_torch(variable).shape
        value = reference.draw(name, shape)
        variable.assign(torchvision_names.from_torch(value))


@pytest.mark.promise("resnet")
@pytest.mark.parametrize("network", reference.NETWORKS)
def test_weights_of_torchvision_give_its_output(network):
    expected = np.load(DATA / "torchvision_resnet.npz")
    model = resnet.resnet(depth=int(network.removeprefix("resnet")))
    fill(model)
    for height, width in reference.SIZES:
        h = model(reference.image(height, width), training=False)
        theirs = expected[f"{network}_{height}x{width}"]
        assert theirs.std() > 0.1
        np.testing.assert_allclose(h, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "network,stem",
    [("resnet18", "medium"), ("resnet18", "small"), ("resnet50", "small")],
)
def test_a_smaller_stem_is_torchvision_with_other_first_layers(network, stem):
    expected = np.load(DATA / "torchvision_resnet.npz")[f"{network}_{stem}_64x64"]
    model = resnet.resnet(depth=int(network.removeprefix("resnet")), stem=stem)
    fill(model)
    h = model(reference.image(64, 64), training=False)
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-4)


# torchvision's published counts less those of its classifier for 1000 classes.
@pytest.mark.parametrize(
    "depth,total,features",
    [
        (18, 11_689_512, 512),
        (34, 21_797_672, 512),
        (50, 25_557_032, 2048),
        (101, 44_549_160, 2048),
        (152, 60_192_808, 2048),
    ],
)
def test_parameters_are_as_many_as_in_torchvision(depth, total, features):
    model = without_values(depth=depth)
    classifier = (features + 1) * 1000
    assert count(model.trainable_variables) == total - classifier
    assert model.output_shape == (None, features)


# --- SimCLRv2 ----------------------------------------------------------------------


# Chen et al. 2020 (arXiv:2006.10029), table 1. Its millions count the moving
# averages too: without them 152 (2x) would be 232 and 353.
@pytest.mark.parametrize(
    "depth,width,selective_kernel,millions",
    [
        (50, 1, False, 24),
        (50, 1, True, 35),
        (50, 2, False, 94),
        (50, 2, True, 140),
        (101, 1, False, 43),
        (101, 1, True, 65),
        (101, 2, False, 170),
        (101, 2, True, 257),
        (152, 1, False, 58),
        (152, 1, True, 89),
        (152, 2, False, 233),
        (152, 2, True, 354),
        (152, 3, True, 795),
    ],
)
def test_parameters_are_as_many_as_in_simclrv2(
    depth, width, selective_kernel, millions
):
    model = without_values(depth=depth, width=width, selective_kernel=selective_kernel)
    assert round(count(model.variables) / 1e6) == millions
    assert model.output_shape == (None, 2048 * width)


def test_selective_kernel_mixes_two_streams_by_a_softmax():
    model = resnet.resnet(10, 0.25, stem="small", selective_kernel=True)
    name = "stage2_block1_1"
    streams, logits, mixed = keras.Model(
        model.input,
        [
            model.get_layer(f"{name}_relu").output,
            model.get_layer(f"{name}_mix_conv").output,
            model.get_layer("stage2_block1_2_conv").input,
        ],
    )(pixels(2, 13))
    assert streams.shape == (2, 7, 7, 64)
    weights = np.exp(np.split(np.array(logits, "float64"), 2, axis=-1))
    weights /= weights.sum(axis=0)
    assert np.ptp(weights) > 0.01
    slow = (weights * np.split(np.array(streams), 2, axis=-1)).sum(axis=0)
    np.testing.assert_allclose(mixed, slow, rtol=1e-5, atol=1e-6)


def test_selective_kernel_looks_at_the_sum_of_the_streams():
    model = resnet.resnet(10, 0.25, stem="small", selective_kernel=True)
    streams, context = keras.Model(
        model.input,
        [
            model.get_layer("stage1_block1_1_relu").output,
            model.get_layer("stage1_block1_1_squeeze_conv").input,
        ],
    )(pixels(2, 8))
    stream_a, stream_b = np.split(np.array(streams), 2, axis=-1)
    slow = (stream_a + stream_b).mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(context, slow, rtol=1e-5)


@pytest.mark.parametrize("side", [8, 9])
def test_selective_kernel_shortcut_averages_what_is_there(side):
    model = resnet.resnet(10, 0.25, stem="small", selective_kernel=True)
    pool = model.get_layer("stage2_block1_shortcut_pool")
    averaged = pool(np.ones((1, side, side, 1), "float32"))
    half = math.ceil(side / 2)
    np.testing.assert_array_equal(averaged, np.ones((1, half, half, 1)))


def test_selective_kernel_changes_the_imagenet_stem_only():
    def stem(name):
        model = without_values(depth=10, stem=name, selective_kernel=True)
        return [
            (*layer.kernel.shape, *layer.strides)
            for layer in model.layers
            if layer.name.startswith("stem") and hasattr(layer, "kernel")
        ]

    assert stem("imagenet") == [
        (3, 3, 3, 32, 2, 2),
        (3, 3, 32, 32, 1, 1),
        (3, 3, 32, 64, 1, 1),
    ]
    assert stem("medium") == stem("small") == [(3, 3, 3, 64, 1, 1)]


# --- shapes ------------------------------------------------------------------------


# The deeper ones repeat the same blocks; their number is counted below.
@pytest.mark.parametrize("selective_kernel", [False, True])
@pytest.mark.parametrize("depth", [10, 18, 50])
def test_features_are_finite_and_tell_images_apart(depth, selective_kernel):
    model = resnet.resnet(depth, 0.25, selective_kernel=selective_kernel)
    h = model(pixels(2, 32), training=True)
    assert h.shape == (2, 128 if depth < 50 else 512)
    assert np.isfinite(h).all()
    assert np.ptp(h, axis=0).max() > 0


# The other depths are known by their parameters, above.
@pytest.mark.parametrize("depth", [10, 200])
def test_depth_counts_the_layers_on_the_longest_path(depth):
    model = without_values(depth=depth)
    convolutions = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and "shortcut" not in layer.name
    ]
    assert len(convolutions) + 1 == depth  # the name counts a classifier


@pytest.mark.parametrize("selective_kernel", [False, True])
@pytest.mark.parametrize(
    "stem,stride", [("imagenet", 32), ("medium", 16), ("small", 8)]
)
@pytest.mark.parametrize("side", [33, 48])
def test_stem_decides_the_size_of_the_last_map(stem, stride, side, selective_kernel):
    model = resnet.resnet(10, 0.25, stem, selective_kernel)
    last_map = keras.Model(model.input, model.get_layer("h").input)
    x = last_map(pixels(1, side))
    assert x.shape == (1, math.ceil(side / stride), math.ceil(side / stride), 128)
    np.testing.assert_allclose(
        model(pixels(1, side)), np.mean(x, axis=(1, 2)), rtol=1e-5
    )


@pytest.mark.parametrize("stem", resnet.STEMS)
def test_smallest_image_leaves_the_last_stage_something_to_shrink(stem):
    model = resnet.resnet(10, 0.25, stem)
    before_last = keras.Model(model.input, model.get_layer("stage3_block1_relu").output)
    side = resnet.smallest_image(stem)
    assert before_last(pixels(1, side)).shape[1:3] == (2, 2)
    assert before_last(pixels(1, side - 1)).shape[1:3] == (1, 1)
    assert np.isfinite(model(pixels(1, 1))).all()


@pytest.mark.parametrize(
    "width,features",
    [(0.25, 128), (1, 512), (1.1, 563), (2, 1024), (3, 1536), (1e-9, 1)],
)
def test_width_multiplies_the_channels(width, features):
    model = without_values(depth=18, width=width)
    assert model.output_shape == (None, features)


def test_sides_may_differ_from_call_to_call():
    model = resnet.resnet(10, 0.25)
    assert model(np.zeros((1, 40, 72, 3), "float32")).shape == (1, 128)
    assert model(np.zeros((3, 65, 33, 3), "float32")).shape == (3, 128)


# --- variables ---------------------------------------------------------------------


@pytest.mark.parametrize("depth,selective_kernel", [(18, False), (50, True)])
def test_rank_tells_kernels_from_batch_norm(depth, selective_kernel):
    model = without_values(depth=depth, selective_kernel=selective_kernel)
    kernels = [v for v in model.trainable_variables if len(v.shape) > 1]
    others = [v for v in model.trainable_variables if len(v.shape) <= 1]
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert {v.name for v in kernels} == {"kernel"}
    assert {v.name for v in others} == {"gamma", "beta"}
    assert len(others) == 2 * len(norms) > 0


def test_kernels_start_as_he_says_and_differ():
    model = resnet.resnet(18)
    first = model.get_layer("stage4_block2_1_conv").kernel.numpy()
    second = model.get_layer("stage4_block2_2_conv").kernel.numpy()
    assert first.std() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.01


def test_set_random_seed_repeats_the_weights():
    drawn = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        drawn.append(resnet.resnet(10, 0.25).get_weights())
    for a, b in zip(drawn[0], drawn[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(drawn[0][0] != drawn[2][0])


def test_batch_norm_moves_a_tenth_of_the_way():
    model = resnet.resnet(10, 0.25, stem="small")
    norm = model.get_layer("stem_bn")
    before_norm = keras.Model(model.input, norm.input)
    images = pixels(4, 8)
    mean = np.mean(before_norm(images), axis=(0, 1, 2))
    model(images, training=True)
    np.testing.assert_allclose(norm.moving_mean, 0.1 * mean, rtol=1e-4, atol=1e-6)
    kept = norm.moving_mean.numpy()
    model(images, training=False)
    np.testing.assert_array_equal(norm.moving_mean, kept)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
            np.testing.assert_array_equal(layer.gamma, np.ones(layer.gamma.shape))


@pytest.mark.parametrize("depth,selective_kernel", [(18, False), (50, True)])
def test_every_variable_gets_a_gradient(depth, selective_kernel):
    model = resnet.resnet(depth, 0.25, "medium", selective_kernel)
    with tf.GradientTape() as tape:
        h = model(pixels(4, 17), training=True)
        loss = tf.reduce_sum(h**2)
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert np.abs(gradient).max() > 0, variable.path


# --- precision, compilation, saving ------------------------------------------------


@pytest.mark.parametrize(
    "policy,compute",
    [("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")],
    indirect=["policy"],
)
@pytest.mark.parametrize("selective_kernel", [False, True])
def test_mixed_precision_computes_low_and_keeps_high(policy, compute, selective_kernel):
    model = resnet.resnet(10, 0.25, "small", selective_kernel)
    assert model.get_layer("stage4_block1_relu").output.dtype == compute
    assert {v.dtype for v in model.variables} == {"float32"}
    images = pixels(2, 24)
    low = model(images, training=False)
    assert low.dtype == "float32"
    keras.config.set_dtype_policy("float32")
    copy = resnet.resnet(10, 0.25, "small", selective_kernel)
    copy.set_weights(model.get_weights())
    high = copy(images, training=False).numpy()
    np.testing.assert_allclose(low, high, rtol=0.1, atol=0.02 * high.max())
    assert np.any(low.numpy() != high)


@pytest.mark.parametrize("selective_kernel", [False, True])
def test_xla_computes_the_same(selective_kernel):
    model = resnet.resnet(10, 0.25, "medium", selective_kernel)
    compiled = tf.function(lambda x: model(x, training=False), jit_compile=True)
    images = pixels(2, 21)
    np.testing.assert_allclose(
        compiled(images), model(images, training=False), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("stem", resnet.STEMS)
@pytest.mark.parametrize("selective_kernel", [False, True])
def test_keras_file_brings_the_encoder_back(tmp_path, stem, selective_kernel):
    model = resnet.resnet(10, 0.25, stem, selective_kernel, name="mine")
    images = pixels(3, 20)
    model(images, training=True)
    model.save(tmp_path / "encoder.keras")
    loaded = keras.models.load_model(tmp_path / "encoder.keras")
    assert loaded.name == "mine"
    np.testing.assert_array_equal(
        loaded(images, training=False), model(images, training=False)
    )


# --- errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"depth": 20}, r"depth must be one of \(10, 18, 34, 50, .*got 20"),
        ({"depth": "18"}, "depth must be one of .*got '18'"),
        ({"stem": "large"}, r"stem must be one of \('imagenet', .*got 'large'"),
        ({"width": 0}, "width must be a positive number, got width=0"),
        ({"width": -1.5}, "width must be a positive number, got width=-1.5"),
        ({"width": math.nan}, "width must be a positive number"),
        ({"width": math.inf}, "width must be a positive number"),
        ({"width": True}, "width must be a positive number"),
        ({"width": "2"}, "width must be a positive number, got width='2'"),
    ],
)
def test_bad_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet.resnet(**arguments)


def test_smallest_image_of_an_unknown_stem_is_an_error():
    with pytest.raises(ValueError, match="stem must be one of"):
        resnet.smallest_image("auto")
