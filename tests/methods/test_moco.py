"""MoCo: the queue, the keys, the groups that keep a key's batch a secret."""

import keras
import numpy as np
import pytest
import references
import tensorflow as tf

from tfsimclr.methods import moco
from tfsimclr.networks import heads, resnet
from tfsimclr.views import random_view

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(30, 226, (16, 1, 1, 3))
IMAGES = (COLOURS + RANDOM.integers(-30, 30, (16, 16, 16, 3))).astype("uint8")
VIEWS = random_view.Views(16, jitter_strength=0.2)


def small_model(**options):
    keras.utils.set_random_seed(1)
    encoder = resnet.resnet(10, 0.125, "medium")
    head = heads.ProjectionHead(2, 8)
    settings = {"queue_size": 48, "bn_groups": 4, "ema_decay": 0.9, "temperature": 0.2}
    return moco.MoCo(encoder, head, VIEWS, **{**settings, **options})


def predictor():
    return heads.ProjectionHead(2, 8, hidden_dim=16, name="predictor")


def step(model, rate=0.05):
    if not getattr(model, "optimizer", None):
        model.compile(optimizer=keras.optimizers.SGD(rate))
    return model.fit(IMAGES, batch_size=16, shuffle=False, verbose=0).history


def values(variables):
    return [variable.numpy() for variable in variables]


@pytest.mark.promise("moco-byol")
def test_three_steps_against_numpy():
    """Loss, queue and average of each step from those before it."""
    model = small_model()
    queue = model.queue.numpy()
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, atol=1e-5)
    assert len(np.unique(queue, axis=0)) == 48
    average = values(model.average.trainable_variables)
    for number in range(3):
        view_a, view_b = model.two_views(IMAGES, number)
        query, key = model.project(view_a)[0].p, model.key(view_b)
        np.testing.assert_allclose(np.linalg.norm(key, axis=1), 1, atol=1e-5)
        slow = references.info_nce_of_queue(query, key, queue, 0.2)
        logs = step(model)
        np.testing.assert_allclose(logs["loss"][0], slow, rtol=1e-4)
        above = slow - np.log(1 + 48)
        np.testing.assert_allclose(logs["loss_above_chance"][0], above, atol=1e-3)
        unit = references.unit_rows(query)
        hits = np.sum(unit * key, axis=1) > (unit @ queue.T).max(axis=1)
        assert logs["contrastive_top1"][0] == pytest.approx(hits.mean(), abs=0.07)
        queue[16 * number : 16 * (number + 1)] = key  # the oldest rows
        np.testing.assert_allclose(model.queue, queue, atol=1e-4)
        average = [
            0.9 * old + 0.1 * new
            for old, new in zip(average, values(model.learned_variables), strict=True)
        ]
        for variable, wanted in zip(
            model.average.trainable_variables, average, strict=True
        ):
            np.testing.assert_allclose(variable, wanted, atol=1e-5)
    step(model)
    newest = np.abs(model.queue.numpy() - queue).max(axis=1) > 1e-3
    assert newest[:16].all() and not newest[16:].any()  # once around


def test_three_steps_without_a_queue_against_numpy():
    model = small_model(queue_size=0, predictor=predictor())
    assert model.queue is None
    for number in range(3):
        view_a, view_b = model.two_views(IMAGES, number)
        slow = sum(
            references.info_nce(model.project(one)[0].p, model.key(other), 0.2)
            for one, other in ((view_a, view_b), (view_b, view_a))
        )
        logs = step(model)
        np.testing.assert_allclose(logs["loss"][0], slow / 2, rtol=1e-4)


@pytest.mark.promise("shuffling-bn")
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_query_shares_nothing_with_its_key_but_its_image(batch_norm):
    """He et al., section 3.3: equal batch statistics would tell the key of a query."""
    keras.utils.set_random_seed(1)
    head = heads.ProjectionHead(2, 8, batch_norm=batch_norm)
    encoder = resnet.resnet(10, 0.125, "medium")
    model = moco.MoCo(encoder, head, VIEWS, queue_size=16, bn_groups=4)

    def influences(function):
        """Returns [16, 16]: whether an image (column) reaches an output (row)."""
        images = IMAGES.astype("float32") / 255
        before = np.asarray(function(images))
        reached = []
        for i in range(16):
            changed = images.copy()
            changed[i] = 1 - changed[i]
            after = np.asarray(function(changed))
            reached.append(np.abs(after - before).max(axis=1) > 1e-4)
        return np.stack(reached, axis=1)

    of_query = influences(lambda view: model.project(view)[0].p)
    of_key = influences(model.key)
    assert of_query.sum(axis=1).tolist() == [4] * 16  # batch statistics are in use
    assert of_key.sum(axis=1).tolist() == [4] * 16
    np.testing.assert_array_equal(of_query & of_key, np.eye(16, dtype=bool))


def test_one_group_leaks():
    """The test above can fail: a plain batch norm reaches every image."""
    model = small_model(bn_groups=1)
    images = IMAGES.astype("float32") / 255
    changed = images.copy()
    changed[5] = 1 - changed[5]
    for function in (lambda view: model.project(view)[0].p, model.key):
        moved = np.abs(np.asarray(function(changed)) - function(images)).max(axis=1)
        assert (moved > 1e-4).all()


def test_what_must_move_moves_and_nothing_else():
    model = small_model(predictor=predictor())
    learned = model.learned_variables
    twin = model.average.trainable_variables
    statistics = model.average.non_trainable_variables
    assert len(learned) == len(twin) + 2
    assert not {id(v) for v in learned} & {id(v) for v in (*twin, model.queue)}
    groups = [learned, twin, statistics, [model.queue]]
    before = [values(group) for group in groups]
    step(model)
    for group, old in zip(groups, before, strict=True):
        for variable, value in zip(group, old, strict=True):
            assert np.abs(variable.numpy() - value).max() > 0, variable.path
    # The optimizer has slots for what is learned, and for nothing else.
    slots = [v for v in model.optimizer.variables if "momentum" in v.path]
    assert len(slots) in (0, len(learned))


def test_keys_have_no_gradient():
    model = small_model()
    with tf.GradientTape() as tape:
        key = tf.reduce_sum(model.key(tf.constant(IMAGES / 255, tf.float32)))
    gradients = tape.gradient(key, model.trainable_variables)
    assert all(gradient is None for gradient in gradients)


def test_keras_file_brings_everything_back(tmp_path):
    model = small_model(predictor=predictor(), ema_schedule="cosine", total_steps=50)
    step(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.queue, model.queue)
    assert loaded.get_config()["queue_size"] == 48
    assert loaded.average.total_steps == 50
    for each in (model, loaded):
        step(each)
    for one, other in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    "options,images,message",
    [
        ({"temperature": 0.0}, IMAGES, "temperature must be above 0"),
        ({"queue_size": 40}, IMAGES, "multiple of the batch, got 40 and 16"),
        ({"bn_groups": 3}, IMAGES, "batches of one size that 3 groups divide, got 16"),
        ({"ema_decay": 1.5}, IMAGES, "from 0 to 1, got 1.5"),
    ],
)
def test_bad_arguments_are_explained(options, images, message):
    with pytest.raises(ValueError, match=message):
        model = small_model(**options)
        model.objective(*model.two_views(images, 0))
        model.after_update(model.step)


def test_an_encoder_whose_batch_norm_cannot_be_split_is_refused():
    encoder = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(8, 3),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    with pytest.raises(ValueError, match="SplitBatchNormalization"):
        moco.MoCo(encoder, heads.ProjectionHead(2, 8), VIEWS, queue_size=16)
