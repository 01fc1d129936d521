"""Distillation: the loss, the unchanged teacher, and that no label is used."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from interruption import stopped_at

from tfsimclr import build, losses, resolve
from tfsimclr.data import batches, sampling
from tfsimclr.data import dataset as datasets
from tfsimclr.methods import classifier
from tfsimclr.modes import distill, export
from tfsimclr.networks import heads
from tfsimclr.runs import classifiers
from tfsimclr.settings.config import Config
from tfsimclr.training import checkpoints, fit
from tfsimclr.views import random_view


def slow_distillation(student, teacher, temperature):
    """Returns equation 2 of the SimCLRv2 paper, times T^2, in float64 by loops."""
    total = 0.0
    for s, t in zip(student.astype("float64"), teacher.astype("float64"), strict=True):
        p_student = np.exp((s - s.max()) / temperature)
        p_teacher = np.exp((t - t.max()) / temperature)
        p_student /= p_student.sum()
        p_teacher /= p_teacher.sum()
        for a, b in zip(p_teacher, p_student, strict=True):
            total -= a * np.log(b)
    return temperature**2 * total / len(student)


def small(network, classes=3, seed=0, **more):
    """Returns a network of 8-pixel images that compiles at once."""
    keras.utils.set_random_seed(seed)
    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu"),
        ]
    )
    head = heads.ProjectionHead(1, dim=classes, bias=True)
    return network(encoder, head, random_view.Views(8, 0.5, 0.0, grayscale=0.0), **more)


def pictures(count=32):
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3))
    return images.astype("uint8")


@pytest.fixture(scope="module")
def student_once(finetuned_once, tmp_path_factory):
    """Returns config, data set and run folder of a student, and its teacher."""
    config, dataset, run, teacher = finetuned_once
    config = dataclasses.replace(
        config,
        mode="distill",
        teacher_dir=str(run),
        width=0.0625,
        epochs=2,
        optimizer="adam",
        workdir=str(tmp_path_factory.mktemp("student")),
    )
    folder = distill.distill(config, dataset, tmp_path_factory.mktemp("student"))
    keras.config.set_dtype_policy("float32")
    return dataclasses.replace(config, workdir=str(folder)), dataset, folder, teacher


@pytest.fixture
def student(student_once, tmp_path):
    """Returns the same with a copy of the student's folder."""
    config, dataset, folder, teacher = student_once
    shutil.copytree(folder, tmp_path / "student")
    config = dataclasses.replace(config, workdir=str(tmp_path / "student"))
    return config, dataset, tmp_path / "student", teacher


# The loss


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 4.0])
@pytest.mark.parametrize(("n", "classes"), [(1, 2), (5, 10)])
def test_distillation_matches_loops(n, classes, temperature):
    logits = np.random.default_rng(0).normal(size=(2, n, classes), scale=2)
    student, teacher = logits.astype("float32")
    fast = losses.distillation(student, teacher, temperature)
    assert fast.dtype == tf.float32 and fast.shape == ()
    np.testing.assert_allclose(
        fast, slow_distillation(student, teacher, temperature), rtol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_its_gradient_is_the_difference_of_the_predictions(temperature):
    logits = np.random.default_rng(1).normal(size=(2, 4, 3)).astype("float32")
    student, teacher = tf.Variable(logits[0]), tf.Variable(logits[1])
    with tf.GradientTape() as tape:
        loss = losses.distillation(student, teacher, temperature)
    answers = [tf.nn.softmax(x / temperature) for x in (student, teacher)]
    expected = temperature * (answers[0] - answers[1]) / 4
    np.testing.assert_allclose(tape.gradient(loss, student), expected, atol=1e-6)


def test_equal_predictions_give_the_entropy_of_the_teacher():
    uniform = losses.distillation(tf.zeros((3, 8)), tf.ones((3, 8)), 0.5)
    np.testing.assert_allclose(uniform, 0.25 * np.log(8), rtol=1e-6)
    sure = tf.constant([[90.0, 0.0, 0.0]])
    np.testing.assert_allclose(losses.distillation(sure, sure, 0.1), 0, atol=1e-6)


def test_half_precision_and_cold_temperatures_stay_finite():
    logits = tf.constant([[100.0, -100.0, 3.0]], tf.float16)
    loss = losses.distillation(logits, logits[:, ::-1], 0.01)
    assert loss.dtype == tf.float32 and np.isfinite(loss)


# The step


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_student_learns_the_predictions_of_the_teacher(precision):
    teacher = small(classifier.Classifier, seed=1)
    teacher.head.last.kernel.assign(8 * teacher.head.last.kernel)  # more confident
    keras.config.set_dtype_policy(precision)
    student = small(
        classifier.Student,
        seed=2,
        teacher=lambda view: teacher(view, training=False)[-1],
        temperature=0.5,
    )
    before = [w.numpy() for w in teacher.weights]
    start = [w.numpy() for w in student.learned_variables]
    student.compile(optimizer=keras.optimizers.Adam(0.02))
    history = student.fit(pictures(), batch_size=16, epochs=30, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["agreement"][-1] > max(0.8, history["agreement"][0])
    for old, variable in zip(before, teacher.weights, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    for old, variable in zip(start, student.learned_variables, strict=True):
        assert np.abs(old - variable.numpy()).max() > 0, variable.path
    ours = {id(v) for v in student.variables}
    assert ours.isdisjoint(id(v) for v in teacher.variables)


def test_teacher_and_student_see_the_same_view():
    seen = []
    student = small(
        classifier.Student, teacher=lambda view: seen.append(view) or view[:, 0, 0]
    )
    view, answer = student.prepare_batch(tf.constant(pictures(4)), None)
    assert seen[0] is view
    np.testing.assert_array_equal(answer, view[:, 0, 0])
    other, _ = student.prepare_batch(tf.constant(pictures(4)), None)
    np.testing.assert_array_equal(other, view)  # of the same seed and step
    student.step.assign_add(1)
    assert (
        np.abs(student.prepare_batch(tf.constant(pictures(4)), None)[0] - view).max()
        > 0.1
    )


def test_labels_in_a_batch_change_nothing():
    student = small(classifier.Student, teacher=lambda view: view[:, 0, 0])
    images = tf.constant(pictures(4))
    unlabelled = student.prepare_batch(images, None)
    for labels in (np.zeros(4), np.arange(4)):
        labelled = student.prepare_batch(images, labels)
        for ours, theirs in zip(labelled, unlabelled, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_temperature_must_be_above_zero():
    with pytest.raises(ValueError, match="temperature=0"):
        small(classifier.Student, teacher=None, temperature=0)


# The run


def test_the_result_names_the_teacher_and_the_settings(student):
    config, dataset, folder, teacher = student
    result = json.loads((folder / "result.json").read_text())
    entry = result["distill"]
    assert entry["labels"] == 0.5 and entry["from"] == "head_1" and entry["seed"] == 0
    assert entry["temperature"] == 0.5 and entry["generation"] == 1
    assert entry["teacher"] == checkpoints.hash_weights(classifiers.load(teacher)[0])
    assert result["config"]["width"] == 0.0625
    assert result["training"]["steps"] == 2 * 80 // 16
    model, meta = classifiers.load(folder)
    logits = [*model.features(dataset.test.images).values()][-1]
    assert result["top1"] == pytest.approx(
        np.mean(logits.argmax(axis=1) == dataset.test.labels)
    )
    assert meta["layer"] == "h" and len(model(np.zeros((1, 16, 16, 3), "f"))) == 2
    larger = classifiers.load(teacher)[0].encoder.count_params()
    assert entry["encoder_parameters"] == model.encoder.count_params() < larger
    header = (folder / "history.csv").read_text().splitlines()[0]
    assert header.endswith("agreement")


def test_without_any_label_it_is_the_same_student(student, tmp_path, monkeypatch):
    config, dataset, folder, _ = student
    labels = []
    original = batches.training_batches

    def spy(*arguments):
        labels.extend(arguments[5:])
        return original(*arguments)

    monkeypatch.setattr(batches, "training_batches", spy)
    pretrain = datasets.Split(dataset.pretrain.images, 7 + 0 * dataset.pretrain.labels)
    blind = dataclasses.replace(dataset, unlabeled=pretrain, train=None, test=None)
    other = tmp_path / "blind"
    other.mkdir()
    distill.distill(dataclasses.replace(config, workdir=str(other)), blind, other)
    assert labels == [None]
    ours, _ = checkpoints.load_latest(other / "checkpoints")
    theirs, _ = checkpoints.load_latest(folder / "checkpoints")
    for key in theirs:
        if key.startswith("model/"):
            np.testing.assert_allclose(ours[key], theirs[key], atol=1e-3, err_msg=key)
    assert json.loads((other / "result.json").read_text())["top1"] is None


def test_it_is_trained_on_the_unlabelled_images_in_crops_and_flips(
    student, tmp_path, monkeypatch
):
    config, dataset, _, _ = student
    seen = {}

    def look(model, optimizer, schedule, images, folder, **more):
        seen.update(model=model, images=images, more=more)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "fit", look)
    config = dataclasses.replace(config, num_pretrain_images=50)
    with pytest.raises(KeyboardInterrupt):
        distill.distill(config, dataset, tmp_path / "new")
    expected = sampling.random_subset(dataset.unlabeled.images, 50)
    np.testing.assert_array_equal(seen["images"], expected)
    assert "labels" not in seen["more"] and seen["more"]["epochs"] == 2
    assert seen["model"].views.jitter_strength == 0 == seen["model"].views.grayscale
    assert seen["model"].temperature == config.temperature
    # It starts as the untrained encoder of its settings.
    build.start(config)
    fresh = build.encoder(config)
    for ours, theirs in zip(seen["model"].encoder.weights, fresh.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_finished_student_is_not_trained_again(student, capsys, monkeypatch):
    config, dataset, folder, _ = student
    monkeypatch.delattr(fit, "fit")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert distill.distill(config, dataset, folder) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert "Finished before" in capsys.readouterr().out


def test_an_interrupted_student_resumes(student, tmp_path):
    config, dataset, whole, _ = student
    folder = tmp_path / "stopped"
    folder.mkdir()
    with stopped_at(7):
        distill.distill(config, dataset, folder)
    assert not (folder / "result.json").exists()
    distill.distill(config, dataset, folder)
    ours, _ = checkpoints.load_latest(folder / "checkpoints")
    theirs, _ = checkpoints.load_latest(whole / "checkpoints")
    for key in theirs:
        if key.startswith("model/"):
            np.testing.assert_allclose(ours[key], theirs[key], atol=1e-3, err_msg=key)


def test_another_teacher_in_the_same_folder_is_refused(student):
    config, dataset, folder, _ = student
    config = dataclasses.replace(config, temperature=1.0)
    with pytest.raises(ValueError, match="temperature 0.5 there, 1.0 here"):
        distill.distill(config, dataset, folder)


def test_a_student_can_be_a_teacher(student, tmp_path, monkeypatch):
    config, dataset, folder, _ = student
    config = dataclasses.replace(config, teacher_dir=str(folder))
    assert classifiers.teacher_folder(config) == folder
    seen = {}
    monkeypatch.setattr(fit, "fit", lambda *a, meta, **more: seen.update(meta))
    monkeypatch.setattr(classifiers, "finish", lambda *arguments: None)
    distill.distill(config, dataset, tmp_path / "second")
    assert seen["distill"]["generation"] == 2
    assert seen["distill"]["labels"] == 0.5  # of the first teacher


def test_the_exported_student_gives_its_logits(student):
    _, dataset, folder, _ = student
    path = export.export_classifier(folder)
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    outputs = serve(images=tf.cast(dataset.test.images, tf.float32))
    assert set(outputs) == {"h", "feature_map", "logits"}
    expected = classifiers.load(folder)[0].features(dataset.test.images)
    np.testing.assert_allclose(outputs["logits"], expected["z"], atol=1e-4)


# Refusals


def fake_finetunings(run, *names):
    for name in names:
        folder = run / "finetuned" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text('{"finetune": {}}')


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "labels-0.1-head_1-seed0"),
        ({"label_fraction": 0.01, "finetune_layer": "h"}, "labels-0.01-h-seed0"),
        ({"finetune_seed": 1}, "labels-0.1-head_1-seed1"),
        ({"label_fraction": 1.0}, "labels-1-h-seed0"),
    ],
)
def test_the_flags_choose_the_teacher(tmp_path, flags, expected):
    fake_finetunings(
        *(tmp_path, "labels-0.1-head_1-seed0", "labels-0.1-head_1-seed1"),
        *("labels-0.01-h-seed0", "labels-0.01-head_1-seed0", "labels-1-h-seed0"),
    )
    config = Config(mode="distill", teacher_dir=str(tmp_path), **flags)
    assert classifiers.teacher_folder(config).name == expected


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ({"label_fraction": 0.5}, ["no fine-tuned networks labels-0.5-*-seed0"]),
        ({"label_fraction": 0.01}, ["2 fine-tuned networks", "labels-0.01-h-seed0"]),
    ],
)
def test_no_teacher_and_too_many_list_what_there_is(tmp_path, flags, parts):
    fake_finetunings(tmp_path, "labels-0.01-h-seed0", "labels-0.01-head_1-seed0")
    with pytest.raises(ValueError) as error:
        classifiers.teacher_folder(Config(teacher_dir=str(tmp_path), **flags))
    for part in [*parts, "--finetune_layer", "labels-0.01-head_1-seed0"]:
        assert part in str(error.value)


def test_a_run_without_a_fine_tuned_network_says_what_to_do(finished):
    _, _, run = finished
    (run / "finetuned" / "labels-0.1-head_1-seed0").mkdir(parents=True)  # unfinished
    with pytest.raises(ValueError, match="has no fine-tuned network") as error:
        classifiers.teacher_folder(Config(teacher_dir=str(run)))
    assert f"--mode=finetune --flagfile={run}/flags.txt" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "distill"}, "--mode=distill needs --teacher_dir"),
        (
            {"mode": "all", "teacher_dir": "/t"},
            "--teacher_dir belongs to --mode=distill",
        ),
        ({"mode": "evaluate", "teacher_dir": "/t"}, "got --mode=evaluate"),
        ({"mode": "distill", "teacher_dir": "/t", "workdir": "/t"}, "both /t"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        resolve.check(Config(**settings))


def test_a_student_is_a_run_of_its_own():
    config = Config(mode="distill", teacher_dir="/t", workdir="/s")
    resolve.check(config)
    other = dataclasses.replace(config, teacher_dir="/other")
    assert config.default_workdir() != other.default_workdir()
    assert "teacher_dir" not in config.pretraining()  # its weights are compared


def test_a_teacher_of_another_size_or_other_classes_is_refused(student, tmp_path):
    config, dataset, _, _ = student
    larger = dataclasses.replace(config, image_size=24)
    with pytest.raises(ValueError, match="Use --image_size=16"):
        distill.distill(larger, dataset, tmp_path / "new")
    names = ("cat", *dataset.class_names[1:])
    with pytest.raises(ValueError, match="knows the classes"):
        distill.distill(
            config, dataclasses.replace(dataset, class_names=names), tmp_path / "new"
        )
