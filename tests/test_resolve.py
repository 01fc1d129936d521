"""Settings that mean nothing are refused, also at their default value."""

import importlib.util

import pytest
from command_line import check

from tfsimclr import resolve
from tfsimclr.errors import UserError
from tfsimclr.networks import encoders
from tfsimclr.settings import config as configs

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method=byol", "--temperature=0.5"], "--temperature means nothing to --m"),
        (["--method=simsiam", "--ema=0.9"], "--ema_decay means nothing to --method=s"),
        (["--method=simsiam", "--loss=nt_xent"], "Leave it out, or use --method=simcl"),
        (["--pred_hidden=0"], "--pred_hidden means nothing to --method=simclr"),
        (["--data_dir=/photos"], "means nothing to --dataset=textures.*=folder"),
        (["--mode=pretrain", "--feature=h"], "--feature means nothing to --mode=pretr"),
        (["--memory_gb=0"], "--memory_gb means nothing to --mode=all"),
        (["--mode=evaluate", "--labels=0.1"], "--label_fraction means nothing to --mo"),
        (["--mode=finetune", "--teacher_dir=/t"], "--teacher_dir belongs to"),
        (
            ["--method=dino"],
            "--method must be one of .'simclr', 'moco', 'byol', 'simsi",
        ),
        (["--backbone=vit"], "--backbone must be one of .'resnet10', 'resnet18'"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        check(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--method=byol", "--ema=0.996", "--pred_hidden=0"],
        ["--temperature=0.5", "--loss=nt_xent", "--feature=h"],
        ["--mode=plan", "--memory_gb=0"],
        ["--mode=finetune", "--labels=0.1", "--num_train_images=0"],
        ["--dataset=folder", "--data_dir=/photos"],
    ],
)
def test_a_setting_that_means_something_is_accepted(arguments):
    check(*arguments)


def test_an_encoder_without_a_setting_refuses_it(monkeypatch):
    plain = encoders.Encoder(lambda: None, uses=(), smallest_image=lambda _: 8)
    monkeypatch.setitem(encoders.ENCODERS, "plain", plain)
    check("--backbone=plain")
    with pytest.raises(UserError, match="--stem means nothing to --backbone=plain"):
        check("--backbone=plain", "--stem=auto")


def test_a_recipe_may_serve_several_modes(tmp_path):
    recipe = tmp_path / "recipe.flags"
    recipe.write_text("--feature=h\n--probe_epochs=3\n")
    check(f"--flagfile={recipe}", "--mode=pretrain")
    recipe.write_text("--temperature=0.5\n")
    with pytest.raises(UserError, match="--temperature means nothing"):
        check(f"--flagfile={recipe}", "--method=byol")


def test_the_flags_of_a_run_hold_every_setting_and_are_accepted(tmp_path):
    lines = configs.Config(method="byol").lines()
    file = tmp_path / "flags.txt"
    file.write_text("\n".join(["# tfsimclr 0.1.0", *lines]) + "\n")
    check(f"--flagfile={file}", "--mode=export")
    with pytest.raises(UserError, match="--temperature means nothing"):
        check(f"--flagfile={file}", "--temperature=0.5")


def test_the_formats_of_the_export_follow_the_encoder(monkeypatch):
    def formats(backbone, text=None):
        return resolve.export_formats(configs.Config(backbone=backbone, formats=text))

    assert formats("resnet10") == ("saved_model", "keras", "safetensors")
    assert formats("convnexttiny") == ("saved_model", "keras")
    assert formats("resnet10", "litert, keras") == ("litert", "keras")
    with pytest.raises(UserError, match="--formats=safetensors does not go with"):
        resolve.check(
            configs.Config(backbone="convnexttiny", formats="keras,safetensors")
        )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tfsimclr\[onnx\]'"):
        resolve.check(configs.Config(formats="onnx"))
    resolve.check(configs.Config(formats="keras"))


@pytest.mark.parametrize("text", ["tflite", "", "keras,", "keras onnx"])
def test_unknown_formats_are_refused(text):
    with pytest.raises(UserError, match="--formats must be names among .*litert"):
        configs.Config(formats=text)
