"""LARS against a float64 trajectory, and as a Keras optimizer in every setting."""

import json

import keras
import numpy as np
import pytest
import references
import tensorflow as tf

from tfsimclr.optimizers import lars, schedules

pytestmark = pytest.mark.quick

SHAPES = {"kernel": (4, 3), "convolution": (3, 3, 2, 4), "bias": (5,), "scalar": ()}
STEPS = 10


def problem(shape, seed=0):
    """Returns an initial weight and ten gradients of changing size and direction."""
    rng = np.random.default_rng((seed, len(shape)))
    weight = rng.normal(size=shape)
    sizes = rng.uniform(0.1, 5.0, size=STEPS)
    gradients = [size * rng.normal(size=shape) for size in sizes]
    return weight.astype("float32"), [g.astype("float32") for g in gradients]


def variable(value, **kwargs):
    return keras.Variable(np.asarray(value, "float32"), dtype="float32", **kwargs)


def check_path(fast, slow, start):
    """Compares two trajectories relative to the distance moved."""
    moved = max(np.abs(step - start).max() for step in slow)
    assert moved > 0
    for fast_step, slow_step in zip(fast, slow, strict=True):
        np.testing.assert_allclose(
            fast_step, slow_step, rtol=0, atol=1e-3 * moved + 1e-6
        )


@pytest.mark.promise("lars")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("trust", [0.001, 0.05])
def test_ten_steps_match_a_float64_trajectory(shape, momentum, l2, trust):
    weight, gradients = problem(shape)
    # A changing rate, so that it matters that the rate is inside the velocity.
    rates = [2.0, 2.0, 0.2, 4.0, 1.0, 0.0, 3.0, 0.1, 2.0, 0.5]
    optimizer = lars.LARS(learning_rate=1.0, momentum=momentum, l2=l2, trust=trust)
    moving = variable(weight)
    fast = []
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([tf.constant(gradient)], [moving])
        fast.append(moving.numpy())
    slow = references.lars_trajectory(
        weight, gradients, rates, momentum=momentum, l2=l2, trust=trust
    )
    check_path(fast, slow, weight)


def test_defaults_are_the_documented_ones():
    config = lars.LARS().get_config()
    defaults = {"learning_rate": 0.85, "momentum": 0.9, "l2": 1e-6, "trust": 0.001}
    for name, value in defaults.items():
        assert config[name] == pytest.approx(value), name
    assert config["name"] == "lars"


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_steps_follow_a_schedule_over_all_ranks(jit_compile):
    problems = {name: problem(shape, seed=1) for name, shape in SHAPES.items()}
    schedule = schedules.Schedule(2.0, STEPS, warmup_steps=3, decay="cosine")
    optimizer = lars.LARS(schedule, momentum=0.9, l2=0.1, trust=0.02)
    moving = {name: variable(weight) for name, (weight, _) in problems.items()}
    optimizer.build(list(moving.values()))

    @tf.function(jit_compile=jit_compile)
    def step(gradients):
        optimizer.apply(gradients, list(moving.values()))

    fast = {name: [] for name in SHAPES}
    for t in range(STEPS):
        step([tf.constant(gradients[t]) for _, gradients in problems.values()])
        for name in SHAPES:
            fast[name].append(moving[name].numpy())
    rates = [references.learning_rate(t, 2.0, STEPS, 3, "cosine") for t in range(STEPS)]
    for name, (weight, gradients) in problems.items():
        slow = references.lars_trajectory(
            weight, gradients, rates, momentum=0.9, l2=0.1, trust=0.02
        )
        check_path(fast[name], slow, weight)
    assert int(optimizer.iterations.numpy()) == STEPS


@pytest.mark.promise("lars")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_weights_that_start_at_zero_move(shape):
    _, gradients = problem(shape)
    moving = variable(np.zeros(shape))
    optimizer = lars.LARS(learning_rate=0.5, momentum=0.9, l2=1e-6)
    optimizer.apply([tf.constant(gradients[0])], [moving])
    np.testing.assert_allclose(moving.numpy(), -0.5 * gradients[0], rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("zero_weight", [False, True])
def test_zero_gradients_give_no_nan(shape, l2, zero_weight):
    weight, _ = problem(shape)
    weight = np.zeros_like(weight) if zero_weight else weight
    moving = variable(weight)
    optimizer = lars.LARS(learning_rate=0.5, l2=l2, trust=0.01)
    for _ in range(2):
        optimizer.apply([tf.zeros(shape)], [moving])
    gradients = [np.zeros(shape)] * 2
    slow = references.lars_trajectory(
        weight, gradients, [0.5] * 2, momentum=0.9, l2=l2, trust=0.01
    )
    np.testing.assert_allclose(moving.numpy(), slow[-1], rtol=1e-5)
    if len(shape) <= 1 or l2 == 0 or zero_weight:
        np.testing.assert_array_equal(moving.numpy(), weight)
    else:
        assert np.linalg.norm(moving.numpy()) < np.linalg.norm(weight)


@pytest.mark.parametrize("shape", [(5,), ()])
def test_small_ranks_get_neither_decay_nor_adaptation(shape):
    weight, gradients = problem(shape)
    moving = variable(weight)
    optimizer = lars.LARS(learning_rate=0.1, momentum=0.0, l2=10.0, trust=0.001)
    optimizer.apply([tf.constant(gradients[0])], [moving])
    np.testing.assert_allclose(moving.numpy(), weight - 0.1 * gradients[0], rtol=1e-5)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_kernel_moves_by_its_own_size_whatever_the_gradient(size):
    weight, gradients = problem((4, 3))
    moving = variable(weight)
    optimizer = lars.LARS(learning_rate=1.0, momentum=0.0, l2=0.0, trust=0.01)
    optimizer.apply([tf.constant(size * gradients[0])], [moving])
    distance = np.linalg.norm(moving.numpy() - weight)
    np.testing.assert_allclose(distance, 0.01 * np.linalg.norm(weight), rtol=1e-3)


@pytest.mark.parametrize("shape", [(4, 3), (3, 3, 2, 4), (5,)])
@pytest.mark.parametrize("trust", [0.001, 1.0])
def test_trust_ratio_matches_the_twin(shape, trust):
    weight, gradients = problem(shape)
    zero = np.zeros(shape, "float32")
    for update in gradients[:3]:
        ratio = lars.trust_ratio(tf.constant(weight), tf.constant(update), trust)
        slow = references.trust_ratio(weight, update, trust)
        np.testing.assert_allclose(ratio, slow, rtol=1e-5)
    for pair in [(weight, zero), (zero, gradients[0]), (zero, zero)]:
        ratio = lars.trust_ratio(*map(tf.constant, pair), trust)
        assert float(ratio) == 1.0


def small_model():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, name="out"),
        ]
    )


def test_excluded_lists_biases_and_batch_norm_by_path():
    model = small_model()
    optimizer = lars.LARS()
    expected = {"hidden/bias", "norm/gamma", "norm/beta", "out/bias"}
    excluded = optimizer.excluded(model.trainable_variables)
    assert len(excluded) == 4
    assert {"/".join(path.split("/")[-2:]) for path in excluded} == expected
    small = [v.path for v in model.trainable_variables if len(v.shape) <= 1]
    assert list(excluded) == small
    assert list(optimizer.excluded([model.get_layer("hidden").kernel])) == []


def test_what_excluded_lists_is_what_is_excluded():
    model = small_model()
    optimizer = lars.LARS(learning_rate=1.0, momentum=0.0, l2=0.0, trust=0.001)
    variables = model.trainable_variables
    before = [v.numpy() for v in variables]
    optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    plain = [
        v.path
        for v, old in zip(variables, before, strict=True)
        if np.allclose(old - v.numpy(), 1.0, atol=1e-5)
    ]
    assert plain == list(optimizer.excluded(variables))


def test_l2_does_not_switch_on_the_decay_of_keras():
    optimizer = lars.LARS(learning_rate=0.5, l2=0.5)
    assert not optimizer.weight_decay
    bias, kernel = variable(np.ones(3)), variable(np.ones((3, 2)))
    optimizer.apply([tf.zeros(3), tf.zeros((3, 2))], [bias, kernel])
    np.testing.assert_array_equal(bias.numpy(), np.ones(3))
    # u = l2 * w, so the ratio is trust / l2: the kernel shrinks by lr * trust.
    np.testing.assert_allclose(kernel.numpy(), np.full((3, 2), 1 - 5e-4), rtol=1e-6)


def by_saving(optimizer):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    return keras.saving.deserialize_keras_object(config)


def by_optimizers(optimizer):
    return keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))


def by_config(optimizer):
    return lars.LARS.from_config(optimizer.get_config())


@pytest.mark.parametrize("copy", [by_saving, by_optimizers, by_config])
@pytest.mark.parametrize("scheduled", [False, True])
def test_configuration_survives_serialisation(copy, scheduled):
    rate = 0.25
    if scheduled:
        rate = schedules.Schedule(0.25, 20, warmup_steps=4, decay="cosine")
    optimizer = lars.LARS(rate, momentum=0.8, l2=1e-4, trust=0.02, clipnorm=3.0)
    restored = copy(optimizer)
    assert isinstance(restored, lars.LARS)
    settings = (restored.momentum, restored.l2, restored.trust, restored.clipnorm)
    assert settings == (0.8, 1e-4, 0.02, 3.0)
    weight, gradients = problem((4, 3))
    first, second = variable(weight), variable(weight)
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [first])
        restored.apply([tf.constant(gradient)], [second])
    assert not np.array_equal(first.numpy(), weight)
    np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_learning_rate_can_be_assigned():
    optimizer = lars.LARS(learning_rate=0.5)
    optimizer.learning_rate = 0.125
    assert float(optimizer.learning_rate) == 0.125
    bias = variable(np.zeros(2))
    optimizer.apply([tf.ones(2)], [bias])
    np.testing.assert_allclose(bias.numpy(), [-0.125, -0.125])


@pytest.mark.parametrize(
    "name,value",
    [
        ("momentum", -0.1),
        ("momentum", 1.0),
        ("momentum", 1.5),
        ("l2", -1e-6),
        ("trust", 0.0),
        ("trust", -0.001),
    ],
)
def test_bad_arguments_are_refused_at_construction(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        lars.LARS(**{name: value})


@pytest.mark.parametrize("name,value", [("momentum", 0.0), ("l2", 0.0)])
def test_arguments_at_the_edge_are_taken(name, value):
    assert getattr(lars.LARS(**{name: value}), name) == value


# Data whose loss is linear in the weights, exact in float16: constant gradients.
INPUTS = np.arange(-12, 12, dtype="float32").reshape(6, 4) / 8
TARGETS = np.arange(18, dtype="float32").reshape(6, 3) / 4 - 1


def product_loss(target, output):
    return tf.reduce_mean(target * tf.cast(output, tf.float32), axis=-1)


@pytest.fixture
def set_policy():
    """Yields the setter of the global dtype policy; restores the policy afterwards."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def trained_linear_model(optimizer, epochs=6):
    """Returns the weights before and after `fit`, and the model."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, kernel_initializer="ones", name="linear"),
        ]
    )
    model.compile(optimizer=optimizer, loss=product_loss)
    before = [v.numpy() for v in model.trainable_variables]
    model.fit(INPUTS, TARGETS, batch_size=6, epochs=epochs, verbose=0, shuffle=False)
    return before, [v.numpy() for v in model.trainable_variables], model


@pytest.mark.promise("lars")
@pytest.mark.parametrize("initial_scale", [1.0, 8.0, 1024.0])
def test_mixed_float16_follows_float32(set_policy, initial_scale):
    settings = {"learning_rate": 0.5, "l2": 0.01, "trust": 0.05}
    before, expected, _ = trained_linear_model(lars.LARS(**settings))
    set_policy("mixed_float16")
    wrapped = keras.optimizers.LossScaleOptimizer(
        lars.LARS(**settings), initial_scale=initial_scale
    )
    _, mixed, model = trained_linear_model(wrapped)
    assert model.layers[-1].compute_dtype == "float16"
    assert int(wrapped.inner_optimizer.iterations.numpy()) == 6  # none was skipped
    for start, first, second in zip(before, expected, mixed, strict=True):
        moved = np.abs(first - start).max()
        assert moved > 0.05  # the bias too, which no trust ratio rescales
        np.testing.assert_allclose(second, first, atol=2e-3 * moved)


def test_compile_scales_the_loss_by_itself(set_policy):
    set_policy("mixed_float16")
    before, after, model = trained_linear_model(lars.LARS(learning_rate=0.5))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(model.optimizer.inner_optimizer, lars.LARS)
    assert int(model.optimizer.inner_optimizer.iterations.numpy()) > 0
    for start, end in zip(before, after, strict=True):
        assert np.isfinite(end).all()
        assert np.abs(end - start).max() > 0


def test_an_overflow_skips_the_step():
    optimizer = lars.LARS(learning_rate=0.5)
    wrapped = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=4.0)
    weight, gradients = problem((4, 3))
    moving = variable(weight)
    wrapped.apply([tf.constant(gradients[0])], [moving])
    kept = [v.numpy() for v in [moving, *optimizer.variables]]
    wrapped.apply([tf.fill((4, 3), np.float32("inf"))], [moving])
    for old, new in zip(kept, [moving, *optimizer.variables], strict=True):
        np.testing.assert_array_equal(new.numpy(), old)
    assert float(wrapped.dynamic_scale.numpy()) == 2.0


def test_fit_matches_the_twin():
    settings = {"momentum": 0.9, "l2": 0.01, "trust": 0.05}
    before, after, _ = trained_linear_model(lars.LARS(0.5, **settings))
    gradients = [INPUTS.T @ TARGETS / TARGETS.size, TARGETS.sum(0) / TARGETS.size]
    for start, end, gradient in zip(before, after, gradients, strict=True):
        slow = references.lars_trajectory(start, [gradient] * 6, [0.5] * 6, **settings)
        check_path([end], slow[-1:], start)


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_saved_model_goes_on_where_it_stopped(tmp_path, scheduled):
    rate = 0.5
    if scheduled:
        rate = schedules.Schedule(0.5, 20, warmup_steps=5, decay="cosine")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(8, 4)).astype("float32")
    targets = rng.normal(size=(8, 3)).astype("float32")
    model = small_model()
    model.compile(optimizer=lars.LARS(rate, l2=0.01, trust=0.05), loss="mse")
    settings = {"batch_size": 8, "verbose": 0, "shuffle": False}
    model.fit(inputs, targets, epochs=3, **settings)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")

    assert isinstance(restored.optimizer, lars.LARS)
    assert int(restored.optimizer.iterations.numpy()) == 3
    kept = model.optimizer.variables
    assert len(kept) >= 1 + len(model.trainable_variables)
    for old, new in zip(kept, restored.optimizer.variables, strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy())
        assert np.abs(old.numpy()).max() > 0  # a velocity that moved, a count, a rate
    model.fit(inputs, targets, epochs=2, **settings)
    restored.fit(inputs, targets, epochs=2, **settings)
    for old, new in zip(model.variables, restored.variables, strict=True):
        np.testing.assert_allclose(old.numpy(), new.numpy(), rtol=1e-5, atol=1e-7)
