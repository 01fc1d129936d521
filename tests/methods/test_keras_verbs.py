"""Keras's own verbs on the methods: evaluate, validation, predict, export, weights."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from method_rows import ROWS

from tfsimclr import build
from tfsimclr.methods import classifier
from tfsimclr.networks import heads, resnet
from tfsimclr.training import checkpoints
from tfsimclr.views import random_view

pytestmark = pytest.mark.usefixtures("shallow_module")
ROOT = pathlib.Path(__file__).resolve().parents[2]


# The others have another loss, decay or number of views than these.
EVALUATED = ("simclr", "group_norm", "many_views", "moco", "moco_v3", "byol", "simsiam")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in EVALUATED))
        for name in ROWS
    ],
)
def test_evaluation_is_the_loss_on_fixed_views_and_changes_nothing(tiny, name):
    """It is `objective` on the views of `prepare_test_batch`, in inference mode.

    Siblings: batch norm of the encoder, the head, the predictor and the momentum
    network; MoCo's queue and its keys of the next update; the step; the optimizer.
    """
    config, dataset, _ = tiny(**ROWS[name].settings)
    images = dataset.pretrain.images[:43]
    model = build.method(config, 10)
    model.compile(optimizer=keras.optimizers.SGD(0.05), run_eagerly=True)
    model.optimizer.build(model.learned_variables)
    before = checkpoints.hash_weights(model)
    slots = [variable.numpy() for variable in model.optimizer.variables]
    scores = model.evaluate(images, batch_size=16, return_dict=True, verbose=0)
    assert set(scores) == {"loss", *model.metric_names}
    assert checkpoints.hash_weights(model) == before
    in_order = model.test_on_batch(images[:16])
    assert len(in_order) == len(scores)
    single = model.evaluate(images[:16], return_dict=True, verbose=0)
    pairs = zip(model.metrics_names, in_order, strict=False)
    assert dict(pairs) == pytest.approx(single, rel=1e-5)
    for variable, value in zip(model.optimizer.variables, slots, strict=True):
        np.testing.assert_array_equal(variable, value)
    new_keys = getattr(model, "_new_keys", None)
    assert new_keys is None or new_keys.take() is None
    # The mean over the images: a smaller last batch counts less.
    expected = np.zeros(2)
    for start, stop in ((0, 16), (16, 32), (32, 43)):
        batch = model.prepare_test_batch(tf.constant(images[start:stop]), None)
        loss, logs = model.objective(*batch, training=False)
        values = float(loss), float(logs["contrastive_top1"])
        expected += np.array(values) * (stop - start) / 43
    found = scores["loss"], scores["contrastive_top1"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_views_of_evaluation_are_fixed_and_no_views_of_training(tiny):
    config, dataset, _ = tiny()
    model = build.method(config)
    images = tf.constant(dataset.pretrain.images[:8])
    first = model.prepare_test_batch(images, None)
    model.step.assign(7)
    for view, again in zip(first, model.prepare_test_batch(images, None), strict=True):
        np.testing.assert_array_equal(view, again)
    compiled = tf.function(model.prepare_test_batch, jit_compile=True)
    np.testing.assert_allclose(compiled(images, None)[0], first[0], atol=1e-5)
    as_float = model.prepare_test_batch(tf.cast(images, tf.float32), None)
    np.testing.assert_allclose(as_float[0], first[0], atol=1e-6)
    others = [
        model.prepare_test_batch(tf.constant(dataset.pretrain.images[8:16]), None),
        *(model.two_views(images, step) for step in (0, 7, 2**31 - 1)),
    ]
    for pair in others:
        assert np.abs(pair[0] - first[0]).mean() > 0.01


def test_a_classifier_is_evaluated_on_plain_images():
    encoder = resnet.resnet(10, 0.125, stem="medium")
    head = heads.ProjectionHead(1, dim=3, bias=True)
    model = classifier.Classifier(encoder, head, random_view.Views(16))
    model.compile(optimizer="sgd", run_eagerly=True)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, 16, 16, 3), np.uint8)
    labels = random.integers(0, 3, 20)
    loss, top1 = model.evaluate(images, labels, batch_size=8, verbose=0)
    logits = model.features(images)["z"]
    assert top1 == pytest.approx(np.mean(logits.argmax(axis=1) == labels))
    exact = keras.losses.sparse_categorical_crossentropy(labels, logits, True)
    assert loss == pytest.approx(float(np.mean(exact)), rel=1e-4)
    with pytest.raises(ValueError, match="needs labels"):
        model.evaluate(images, verbose=0)
    # A student is asked what its teacher answers, also on plain images.
    student = classifier.Student(
        encoder, head, random_view.Views(16), teacher=lambda view: model(view)[-1]
    )
    student.compile(optimizer="sgd", run_eagerly=True)
    assert student.evaluate(images, return_dict=True, verbose=0)["agreement"] == 1
    student.teacher = None
    with pytest.raises(ValueError, match="needs a teacher"):
        student.evaluate(images, verbose=0)


# What a user writes, with nothing else imported.
START = """
    import json
    import pathlib
    import sys
    import numpy as np
    import keras
    import tfsimclr
    folder = pathlib.Path(sys.argv[1])
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (24, 16, 16, 3), np.uint8)
    labels = random.integers(0, 3, 24)
"""
TRAIN = """
    from tfsimclr.methods.classifier import Classifier
    # A ResNet of one block: building graphs takes the time of this program.
    tfsimclr.resnet._ARCHITECTURES[10] = ("basic", (1,))
    def parts():
        encoder = tfsimclr.resnet.resnet(depth=10, width=0.125, stem="medium")
        return encoder, tfsimclr.ProjectionHead(2, dim=8), tfsimclr.Views(16)
    def predictor():
        return tfsimclr.ProjectionHead(2, dim=8, name="predictor")
    models = {
        "simclr": tfsimclr.SimCLR(*parts()),
        "moco": tfsimclr.MoCo(*parts(), queue_size=16, bn_groups=2),
        "byol": tfsimclr.BYOL(*parts(), predictor=predictor()),
        "simsiam": tfsimclr.SimSiam(*parts(), predictor=predictor()),
        "classifier": Classifier(*parts()),
    }
    scores = {}
    for name, model in models.items():
        y = (labels,) if name == "classifier" else ()
        model.compile(optimizer=tfsimclr.LARS(0.1))
        data = {"validation_split": 1 / 3} if name in ("simclr", "classifier") else {
            "validation_data": tuple(a[16:] for a in (images, *y))
        }
        count = 24 if "validation_split" in data else 16
        fitted = model.fit(
            *(a[:count] for a in (images, *y)),
            batch_size=8, epochs=2, verbose=0, **data
        ).history
        held_out = [a[16:] for a in (images, *y)]
        score = model.evaluate(*held_out, batch_size=8, return_dict=True, verbose=0)
        for key, value in score.items():
            assert abs(fitted[f"val_{key}"][-1] - value) < 1e-4, (name, key)
        model.summary(print_fn=lambda *text, **more: None)
        outputs = model.predict(images[:8] / np.float32(255), verbose=0)
        np.testing.assert_allclose(
            outputs[-1], model.features(images[:8])["z"], atol=1e-4
        )
        np.savez(folder / f"{name}.npz", *outputs)
        model.save(folder / f"{name}.keras")
        model.save_weights(folder / f"{name}.weights.h5")
        model.export(folder / name, verbose=False)
        scores[name] = score
    (folder / "scores.json").write_text(json.dumps(scores))
"""
LOAD = """
    for name, score in json.loads((folder / "scores.json").read_text()).items():
        model = keras.models.load_model(folder / f"{name}.keras")
        held_out = [images[16:], *([labels[16:]] if name == "classifier" else [])]
        again = model.evaluate(*held_out, batch_size=8, return_dict=True, verbose=0)
        assert again.keys() == score.keys()
        for key, value in score.items():
            assert abs(again[key] - value) < 1e-4, (name, key)
        saved = [*np.load(folder / f"{name}.npz").values()]
        other = type(model).from_config(model.get_config())
        before = other.predict(images[:8] / np.float32(255), verbose=0)
        assert np.abs(before[-1] - saved[-1]).max() > 1e-3, name
        other.load_weights(folder / f"{name}.weights.h5")
        for each in (model, other):
            outputs = each.predict(images[:8] / np.float32(255), verbose=0)
            for output, expected in zip(outputs, saved, strict=True):
                np.testing.assert_allclose(output, expected, atol=1e-5)
        assert int(other.step) == int(model.step) == 4
    print("loaded")
"""
SERVE = """
    import json, pathlib, sys
    import numpy as np
    import tensorflow as tf
    folder = pathlib.Path(sys.argv[1])
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (24, 16, 16, 3), np.uint8)
    for name in json.loads((folder / "scores.json").read_text()):
        served = tf.saved_model.load(str(folder / name))
        outputs = served.serve(tf.constant(images[:8] / np.float32(255)))
        for output, expected in zip(
            outputs, np.load(folder / f"{name}.npz").values(), strict=True
        ):
            np.testing.assert_allclose(output, expected, atol=1e-4)
    assert "tfsimclr" not in sys.modules
    print("served")
"""


def fresh_process(*parts, folder):
    program = "".join(textwrap.dedent(part) for part in parts)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.promise("methods")
def test_every_verb_works_in_a_fresh_process(tmp_path):
    """F10, F12: the verbs of Keras that a `train_step` of one's own breaks.

    Siblings: `fit(validation_data=)`, `fit(validation_split=)` and `evaluate` had no
    loss; `evaluate` and `test_on_batch` returned the loss twice, and in another order
    than `metrics_names`; `export` said "has never called"; `load_model` needed our
    modules imported, also `Student` and `Schedule`; `predict`, `summary`,
    `save_weights` and `load_weights` worked. Each is done here for every method and the
    classifier, in a process that imports `tfsimclr` and `keras` alone; the export is
    loaded in one without `tfsimclr`.
    """
    fresh_process(START, TRAIN, folder=tmp_path)
    assert set(json.loads((tmp_path / "scores.json").read_text())) == {
        *("simclr", "moco", "byol", "simsiam", "classifier"),
    }
    assert "loaded" in fresh_process(START, LOAD, folder=tmp_path)
    assert "served" in fresh_process(SERVE, folder=tmp_path)
