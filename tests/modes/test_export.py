"""The SavedModel: alone, with its own preprocessing."""

import dataclasses
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfsimclr.modes import distill, evaluate, export
from tfsimclr.runs import loading


@pytest.fixture
def exported(exported_once, tmp_path):
    """Returns config, data set and a run folder of the test's own, exported."""
    config, dataset, folder = exported_once
    shutil.copytree(folder, tmp_path / "exported")
    return config, dataset, tmp_path / "exported"


@pytest.fixture(scope="module")
def exported_once(finished_once, tmp_path_factory):
    config, dataset, folder = finished_once
    copy = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(folder, copy)
    evaluate.evaluate(config, dataset, copy)
    export.export(config, dataset, copy)
    return config, dataset, copy


@pytest.mark.promise("export-equal")
def test_loads_where_there_is_only_tensorflow(exported, tmp_path):
    config, dataset, folder = exported
    images = dataset.test.images[:9]
    model, _ = loading.model(config, folder)
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "wanted.npz", **model.features(images))
    program = f"""
        import sys
        sys.modules["keras"] = None  # importing it fails
        sys.modules["tfsimclr"] = None
        import numpy as np
        import tensorflow as tf

        images = np.load("{tmp_path}/images.npy")
        wanted = np.load("{tmp_path}/wanted.npz")
        loaded = tf.saved_model.load("{folder}/saved_model")
        serve = loaded.signatures["serving_default"]
        outputs = serve(images=images.astype("float32"))
        names = {{"h", "head_1", "z", "feature_map", "logits"}}
        assert set(outputs) == names, set(outputs)
        average = np.mean(outputs["feature_map"], axis=(1, 2))
        np.testing.assert_allclose(average, outputs["h"], atol=1e-5)
        for name in wanted.files:
            np.testing.assert_allclose(outputs[name], wanted[name], atol=1e-5)
        again = loaded.signatures["serving_uint8"](images=tf.constant(images))
        np.testing.assert_allclose(again["h"], wanted["h"], atol=1e-5)
        other = serve(images=tf.zeros([2, 40, 23, 3]))
        assert other["h"].shape == (2, outputs["h"].shape[1])
        assert len(loaded.variables) > 20
        names = [name.decode() for name in loaded.class_names().numpy()]
        assert names == {list(dataset.class_names)!r}, names
        print("all fine")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.strip().endswith("all fine"), done.stderr


def test_logits_are_the_evaluated_classifier(exported):
    config, dataset, folder = exported
    loaded = tf.saved_model.load(str(folder / "saved_model"))
    logits = loaded.signatures["serving_uint8"](
        images=tf.constant(dataset.test.images)
    )["logits"]
    result = evaluate.evaluate(config, dataset, folder)
    top1 = np.mean(np.argmax(logits, axis=1) == dataset.test.labels)
    assert abs(result["top1"] - top1) <= 1 / 40 + 1e-9  # a tie may fall either way


def test_images_of_any_size_are_cropped_square_and_resized(exported):
    config, dataset, folder = exported
    serve = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_uint8"]
    image = np.asarray(Image.fromarray(dataset.test.images[0]).resize((64, 64)))
    wide = np.zeros((64, 100, 3), np.uint8)
    wide[:, 18:82] = image
    # Pillow's own antialiased resizing of the central square, at the network's size.
    square = Image.fromarray(wide).resize((16, 16), Image.BILINEAR, box=(18, 0, 82, 64))
    wanted = serve(images=tf.constant(np.asarray(square)[None]))["h"]
    got = serve(images=tf.constant(wide[None]))["h"]
    tall = serve(images=tf.constant(wide.swapaxes(0, 1)[None]))["h"]
    np.testing.assert_allclose(got, wanted, atol=2e-2 * np.abs(wanted).max())
    assert np.abs(tall - got).max() > 2e-2 * np.abs(wanted).max()  # another image


def test_exporting_again_replaces_the_old_one(exported):
    config, dataset, folder = exported
    (folder / "saved_model" / "old").touch()
    export.export(config, dataset, folder)
    assert not (folder / "saved_model" / "old").exists()
    assert (folder / "saved_model" / "saved_model.pb").exists()
    leftovers = [p for p in folder.iterdir() if p.name.startswith(".saved_model-")]
    assert leftovers == []


def assert_lite_agrees(path, images):
    """The SavedModel, converted to TensorFlow Lite, gives the same outputs."""
    loaded = tf.saved_model.load(str(path))
    expected = loaded.signatures["serving_default"](images=tf.constant(images))
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(path), signature_keys=["serving_default"]
    )
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    outputs = interpreter.get_signature_runner("serving_default")(images=images)
    assert outputs.keys() == expected.keys() >= {"h", "logits"}
    for name, value in expected.items():
        assert np.abs(value).max() > 0
        np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-5)


def class_names_in(path):
    text = (path / "assets.extra" / "class_names.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


@pytest.mark.slow
def test_a_run_converts_to_tensorflow_lite(exported):
    _, dataset, folder = exported
    assert_lite_agrees(
        folder / "saved_model", dataset.test.images[:3].astype("float32")
    )


@pytest.mark.slow
def test_a_fine_tuned_network_converts_to_tensorflow_lite(finetuned_once, tmp_path):
    _, dataset, _, folder = finetuned_once
    shutil.copytree(folder, tmp_path / "network")
    path = export.export_classifier(tmp_path / "network")
    assert_lite_agrees(path, dataset.test.images[:3].astype("float32"))


@pytest.mark.slow
def test_a_distilled_network_converts_to_tensorflow_lite(finetuned_once, tmp_path):
    config, dataset, run_, _ = finetuned_once
    config = dataclasses.replace(
        config,
        mode="distill",
        workdir=str(tmp_path / "student"),
        teacher_dir=str(run_),
        label_fraction=0.5,
    )
    (tmp_path / "student").mkdir()
    folder = distill.distill(config, dataset, tmp_path / "student")
    path = export.export_classifier(folder)
    assert class_names_in(path) == tuple(dataset.class_names)
    assert len(tf.saved_model.load(str(path)).variables) > 20
    assert_lite_agrees(path, dataset.test.images[:3].astype("float32"))


def test_a_fine_tuned_network_knows_its_variables_and_classes(finetuned_once, tmp_path):
    _, dataset, _, folder = finetuned_once
    shutil.copytree(folder, tmp_path / "network")
    path = export.export_classifier(tmp_path / "network")
    loaded = tf.saved_model.load(str(path))
    assert len(loaded.variables) > 20
    names = tuple(name.decode() for name in loaded.class_names().numpy())
    assert names == class_names_in(path) == tuple(dataset.class_names)


def test_a_run_is_exported_without_its_images(exported):
    config, dataset, folder = exported
    export.export(config, None, folder)
    assert class_names_in(folder / "saved_model") == tuple(dataset.class_names)
