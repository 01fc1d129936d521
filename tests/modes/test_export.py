"""The SavedModel: alone, with its own preprocessing."""

import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfsimclr.modes import evaluate, export
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
        assert set(outputs) == {{"h", "head_1", "z", "logits"}}, set(outputs)
        for name in wanted.files:
            np.testing.assert_allclose(outputs[name], wanted[name], atol=1e-5)
        again = loaded.signatures["serving_uint8"](images=tf.constant(images))
        np.testing.assert_allclose(again["h"], wanted["h"], atol=1e-5)
        other = serve(images=tf.zeros([2, 40, 23, 3]))
        assert other["h"].shape == (2, outputs["h"].shape[1])
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
