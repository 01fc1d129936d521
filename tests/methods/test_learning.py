"""Every method learns: a thousand steps, and features beat the untrained encoder's.

The images are grey textures. A method without negatives learns whatever is easy to
predict, which in coloured ones is the colour, and the colour is independent of the
class.
"""

import dataclasses

import numpy as np
import pytest
from method_rows import ROWS

from tfsimclr import build, resolve
from tfsimclr.data import batches, textures
from tfsimclr.data import dataset as datasets
from tfsimclr.evaluation import knn, metrics
from tfsimclr.methods import METHODS
from tfsimclr.modes import pretrain
from tfsimclr.runs import folder as run_folder
from tfsimclr.settings.config import Config

pytestmark = pytest.mark.usefixtures("shallow_module")
SIZE, BATCH, STEPS = 16, 64, 1000
SPLITS = {"unlabeled": 600, "train": 400, "test": 400}
CLEARLY = 0.08  # of top-1; one standard error of 400 images is 0.025
SETTINGS = {
    "backbone": "resnet10",
    "width": 0.125,
    "stem": "medium",
    "image_size": SIZE,
    "batch_size": BATCH,
    "proj_hidden": 128,
    "crop_min_area": 0.3,
    "grayscale": 0.2,
    "optimizer": "sgd",
}


@pytest.fixture(scope="module")
def grey_textures():
    """Returns {split: (uint8 images `[n, s, s, 3]` of one contrast, labels)}."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textures, "SPLITS", SPLITS)
        splits = {split: textures.make(split, SIZE) for split in SPLITS}
    for split, (images, labels) in splits.items():
        grey = images.astype("float32").mean(axis=3, keepdims=True)
        grey -= grey.mean(axis=(1, 2, 3), keepdims=True)
        grey *= 50 / grey.std(axis=(1, 2, 3), keepdims=True)
        grey = np.clip(128 + grey, 0, 255).astype("uint8")
        splits[split] = np.repeat(grey, 3, axis=3), labels
    return splits


def knn_top1(model, data) -> float:
    """Returns the k-NN top-1 of h on the test images."""
    (train, y), (test, labels) = data["train"], data["test"]
    h, of_test = model.features(train)["h"], model.features(test)["h"]
    return metrics.top_k_accuracy(knn.knn_votes(h, y, of_test, 10, k=20), labels, 1)


@pytest.mark.promise("learning")
@pytest.mark.parametrize(
    "name",
    # By default one row of every method.
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in METHODS)) for n in ROWS],
)
def test_a_thousand_steps_beat_the_untrained_encoder(grey_textures, name):
    row = ROWS[name]
    config = Config(**{**SETTINGS, **row.settings, **row.learning})
    splits = {k: datasets.Split(*v) for k, v in grey_textures.items()}
    dataset = datasets.DataSet(
        "textures", **splits, class_names=textures.CLASS_NAMES, image_size=SIZE
    )
    config = resolve.resolve(config, dataset)
    images = grey_textures["unlabeled"][0]
    model = build.method(config, STEPS, len(images))
    optimizer = build.optimizer(config, config.learning_rate, model.learned_variables)
    model.compile(optimizer=optimizer, steps_per_execution=20)
    model.optimizer.build(model.learned_variables)
    untrained = knn_top1(model, grey_textures)
    index = np.arange(len(images)) if model.needs_index else None
    loaded = batches.training_batches(images, BATCH, 0, 0, STEPS, index)
    model.fit(loaded, shuffle=False, verbose=0)
    assert int(model.step) == STEPS
    learned = knn_top1(model, grey_textures)
    print(f"{name}: kNN {untrained:.1%} untrained, {learned:.1%} after {STEPS} steps")
    assert learned > untrained + CLEARLY


def changes():
    for name, row in ROWS.items():
        for collapses, cases in ((True, row.collapses), (False, row.survives)):
            for settings, attributes in cases:
                case = {"method": row.settings["method"], **row.settings, **settings}
                words = [f"{k}={v}" for k, v in {**settings, **attributes}.items()]
                yield pytest.param(
                    case, attributes, collapses, id="-".join([name, *words])
                )


@pytest.mark.promise("collapse")
@pytest.mark.parametrize("settings,attributes,collapses", list(changes()))
def test_the_warning_appears_where_features_collapse(
    tiny, monkeypatch, capsys, settings, attributes, collapses
):
    """A collapsed z is the same for all images, within 200 steps."""
    monkeypatch.setattr(textures, "SPLITS", {**SPLITS, "unlabeled": 1600})
    config, dataset, folder = tiny(
        **{"proj_hidden": 128, "optimizer": "sgd", "learning_rate": 0.2, **settings}
    )
    if config.ema_schedule is not None:
        config = dataclasses.replace(config, ema_schedule="constant")
    method = build.method

    def with_attributes(*arguments):
        model = method(*arguments)
        for name, value in attributes.items():
            assert hasattr(model, name)
            setattr(model, name, value)
        return model

    monkeypatch.setattr(build, "method", with_attributes)
    run_folder.prepare(config)
    pretrain.pretrain(config, dataset, folder)
    warning = capsys.readouterr().err
    assert ("the features z have collapsed" in warning) == collapses
    header, *_, last = (folder / "history.csv").read_text().splitlines()
    spread = float(dict(zip(header.split(","), last.split(","), strict=True))["z_std"])
    assert (spread < 0.05) == collapses
