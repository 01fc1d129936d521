"""Every method learns: a thousand steps, and features beat the untrained encoder's.

The images are grey textures. A method without negatives keeps whatever is easy to
predict, which in coloured ones is the colour, and that tells nothing of the class.
"""

import keras
import numpy as np
import pytest

from tfsimclr.data import batches, textures
from tfsimclr.evaluation import knn, metrics
from tfsimclr.methods import byol, moco, simclr
from tfsimclr.modes import pretrain
from tfsimclr.networks import heads, resnet
from tfsimclr.runs import folder as run_folder
from tfsimclr.views import random_view

SIZE, BATCH, STEPS = 16, 64, 1000
SPLITS = {"unlabeled": 600, "train": 400, "test": 400}
CLEARLY = 0.08  # of top-1; one standard error of 400 images is 0.025
# Class, its options, the learning rate of SGD: a queue bears less of it than a batch.
METHODS = {
    "simclr": (simclr.SimCLR, {}, 0.2),
    "dcl": (simclr.SimCLR, {"loss": "dcl"}, 0.2),
    "dclw": (simclr.SimCLR, {"loss": "dclw"}, 0.2),
    "momentum_simclr": (simclr.SimCLR, {"ema_decay": 0.99}, 0.2),
    "moco": (moco.MoCo, {"ema_decay": 0.99, "queue_size": 256, "bn_groups": 8}, 0.05),
    "moco_v3": (moco.MoCo, {"ema_decay": 0.99, "queue_size": 0, "bn_groups": 1}, 0.2),
    "byol": (byol.BYOL, {"ema_decay": 0.99}, 0.2),
    # The experiment with which BYOL begins: the target is untrained, and stays so.
    "fixed_target": (byol.BYOL, {"ema_decay": 1.0}, 0.2),
}
# Batch norm of the head, for those with a predictor.
NORMS = {"moco_v3": True, "byol": "hidden", "fixed_target": "hidden"}


@pytest.fixture(scope="module")
def grey_textures():
    """Returns {split: (uint8 images `[n, s, s, 3]` of one contrast, labels)}."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textures, "SPLITS", SPLITS)
        made = {split: textures.make(split, SIZE) for split in SPLITS}
    for split, (images, labels) in made.items():
        grey = images.astype("float32").mean(axis=3, keepdims=True)
        grey -= grey.mean(axis=(1, 2, 3), keepdims=True)
        grey *= 50 / grey.std(axis=(1, 2, 3), keepdims=True)
        grey = np.clip(128 + grey, 0, 255).astype("uint8")
        made[split] = np.repeat(grey, 3, axis=3), labels
    return made


def neighbours(model, data) -> float:
    """Returns the kNN top-1 of h on the test images."""
    (train, y), (test, labels) = data["train"], data["test"]
    h, of_test = model.features(train)["h"], model.features(test)["h"]
    return metrics.top_k_accuracy(knn.knn_votes(h, y, of_test, 10, k=20), labels, 1)


def slow_cousins_of_simclr():
    slow = ("dcl", "dclw", "momentum_simclr")
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in slow else [])
        for name in METHODS
    ]


@pytest.mark.parametrize("name", slow_cousins_of_simclr())
def test_a_thousand_steps_beat_the_untrained_encoder(grey_textures, name):
    made, options, rate = METHODS[name]
    keras.utils.set_random_seed(0)
    encoder = resnet.resnet(10, 0.125, "medium")
    common = {"dim": 64, "hidden_dim": 128, "batch_norm": NORMS.get(name, False)}
    if name in NORMS:
        predictor = heads.ProjectionHead(2, name="predictor", **common)
        options = {**options, "predictor": predictor}
    views = random_view.Views(SIZE, crop_min_area=0.3, jitter_strength=1.0)
    model = made(encoder, heads.ProjectionHead(2, **common), views, **options)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=1e-4)
    model.compile(optimizer=optimizer)
    model.optimizer.build(model.learned_variables)
    untrained = neighbours(model, grey_textures)
    images = grey_textures["unlabeled"][0]
    loaded = batches.training_batches(images, BATCH, 0, 0, STEPS)
    model.fit(loaded, shuffle=False, verbose=0)
    assert int(model.step) == STEPS
    learned = neighbours(model, grey_textures)
    print(f"{name}: kNN {untrained:.1%} untrained, {learned:.1%} after {STEPS} steps")
    assert learned > untrained + CLEARLY


@pytest.mark.parametrize(
    "settings,rings",
    [
        ({"pred_layers": 0, "ema_decay": 0.99}, True),
        ({"pred_layers": 0, "ema_decay": 0.0}, True),
        ({"ema_decay": 0.99}, False),
        # As SimSiam found: with a predictor it holds up without a moving average.
        ({"ema_decay": 0.0}, False),
    ],
)
def test_the_alarm_rings_where_byol_collapses(
    tiny, monkeypatch, capsys, settings, rings
):
    """Without a predictor z becomes the same for all images, in 200 steps."""
    monkeypatch.setattr(textures, "SPLITS", {**SPLITS, "unlabeled": 1600})
    config, dataset, folder = tiny(
        **{"method": "byol", "ema_schedule": "constant", "proj_hidden": 128},
        **{"optimizer": "sgd", "learning_rate": 0.2, "warmup_epochs": 0.0},
        **settings,
    )
    run_folder.prepare(config)
    pretrain.pretrain(config, dataset, folder)
    warning = capsys.readouterr().err
    assert ("the features z have collapsed" in warning) == rings
    header, *_, last = (folder / "history.csv").read_text().splitlines()
    spread = float(dict(zip(header.split(","), last.split(","), strict=True))["z_std"])
    assert (spread < 0.05) == rings
