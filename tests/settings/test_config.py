"""The settings: ranges, contradictions, defaults, and their life as flags."""

import dataclasses
import math
import os
import typing

import pytest
from absl import flags

from tfsimclr.optimizers import schedules
from tfsimclr.settings import config as configs
from tfsimclr.settings import options
from tfsimclr.settings.config import Config

pytestmark = pytest.mark.quick

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
# The table of the command line, without its reserved names. None: decided later, by
# the data set or the optimizer.
DOCUMENTED = {
    **{"mode": "all", "workdir": "", "dataset": "textures", "data_dir": ""},
    **{"method": "simclr", "backbone": None, "width": None, "selective_kernel": False},
    **{
        "stem": "auto",
        "image_size": None,
        "batch_size": 128,
        "epochs": None,
        "seed": 0,
    },
    **{"temperature": 0.5, "loss": "nt_xent", "proj_layers": 2, "proj_dim": 64},
    **{"proj_hidden": 0, "proj_activation": "relu", "proj_batch_norm": None},
    **{"optimizer": "adam", "learning_rate": None, "learning_rate_scaling": None},
    **{"warmup_epochs": None, "schedule": None, "weight_decay": None},
    **{"precision": "auto", "jit_compile": "auto", "crop_min_area": 0.08},
    **{"jitter_strength": 1.0, "blur": 0.0, "flip": True, "grayscale": 0.2},
    **{"feature": "h", "probe_epochs": 100, "probe_optimizer": "adam"},
    **{"probe_learning_rate": 0.0, "probe_batch_size": 256},
}
# What may change without making it another pretraining.
AFTER_PRETRAINING = {
    # Weights are known by --init_checksum, wherever they lie.
    *("mode", "workdir", "cache_dir", "num_train_images", "feature", "probe_epochs"),
    "init",
    *("probe_optimizer", "probe_learning_rate", "probe_batch_size"),
    *("keep_checkpoints", "checkpoint_minutes", "steps_per_check", "worker_timeout"),
    *("label_fraction", "finetune_layer", "finetune_epochs", "finetune_learning_rate"),
    *("finetune_batch_size", "finetune_seed", "memory_gb", "formats"),
    *("eval_dataset", "eval_data_dir", "eval_label_key"),
    "compare",
    "strategy",
    *("images", "layers", "output", "embeddings", "query", "top", "duplicates"),
    *("outliers", "neighbors", "select", "search_index"),
}
# Another value for the fields that cannot be derived from their limits.
OTHER = {
    **{
        "workdir": "/runs/a",
        "data_dir": "/data",
        "init": "/weights.npz",
        "cache_dir": "/c",
        "dataset": "stl10",
    },
    **{"proj_activation": "tanh", "feature": "head_1", "method": None, "loss": None},
    **{"teacher_dir": "/runs/teacher", "finetune_layer": "head_1", "formats": "onnx"},
    **{"eval_data_dir": "/other"},
    **{"output": "/a.parquet", "embeddings": "/b.parquet", "query": "/c.jpg"},
    "local_crop_areas": "0.1,0.3",
}


def kind_of(name):
    """Returns the type of a setting, without its `| None`."""
    return next(iter(typing.get_args(FIELDS[name].type)), FIELDS[name].type)


def other_value(name):
    """Returns a valid value that is not the default, or None if there is none."""
    field, kind = FIELDS[name], kind_of(name)
    if name in OTHER:
        return OTHER[name]
    if field.metadata["choices"]:
        return [c for c in field.metadata["choices"] if c != field.default][-1]
    if kind is bool:
        return not field.default
    if field.metadata["maximum"] is not None:
        return kind(field.metadata["maximum"])
    return kind((field.default or field.metadata["greater_than"] or 0) + 3)


def wrong_values(name):
    """Yields (value, what the message must contain) of all kinds for a setting."""
    field, kind, limits = FIELDS[name], kind_of(name), FIELDS[name].metadata
    types = {
        bool: (1, "true"),
        int: ("3", 2.5, True),
        float: ("3", True),
        str: (3, b""),
    }
    yield from ((value, [kind.__name__]) for value in types[kind])
    if field.default is not None:
        yield None, [kind.__name__]
    if limits["choices"]:
        yield from ((value, limits["choices"]) for value in ("nonsense", "", "H"))
    elif kind is str and name != "feature":
        yield from ((value, ["single line"]) for value in ("a\nb", "a\rb"))
    if kind is float:
        yield from ((value, ["finite"]) for value in (math.nan, math.inf, -math.inf))
    if limits["greater_than"] is not None:
        for value in (limits["greater_than"], limits["greater_than"] - 1):
            yield kind(value), [f"above {limits['greater_than']}"]
    if limits["minimum"] is not None:
        yield kind(limits["minimum"] - 1), [f"at least {limits['minimum']}"]
    if limits["maximum"] is not None:
        yield kind(limits["maximum"] + 1), [f"at most {limits['maximum']}"]


def parse(*arguments):
    """Returns the config of a command line."""
    values = flags.FlagValues()
    configs.define_flags(values)
    values(["program", *arguments])
    return configs.from_flags(values)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_documented_flag_has_its_default(name):
    assert getattr(Config(), name) == DOCUMENTED[name]
    assert getattr(parse(), name) == DOCUMENTED[name]


@pytest.mark.parametrize("name", FIELDS)
def test_every_flag_explains_itself(name):
    text = FIELDS[name].metadata["help"]
    assert len(text.split()) > 1
    assert text.rstrip().endswith((".", "..."))


@pytest.mark.promise("ranges")
@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_value_is_refused_by_name(name):
    wrong = list(wrong_values(name))
    assert len(wrong) >= 2
    for value, expected in wrong:
        with pytest.raises(ValueError) as error:
            pytest.fail(f"accepted: {Config(**{name: value})}")
        message = str(error.value)
        assert message.startswith(f"--{name} must be ")
        assert message.endswith(f", got {value!r}.")
        for part in expected:
            assert part in message


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        (name, limit)
        for name, field in FIELDS.items()
        for limit in ("minimum", "maximum")
        if field.metadata[limit] is not None
    ],
)
def test_the_limits_themselves_are_allowed(name, limit):
    value = kind_of(name)(FIELDS[name].metadata[limit])
    assert getattr(Config(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "choice"),
    [(n, c) for n, field in FIELDS.items() for c in field.metadata["choices"] or ()],
)
def test_every_choice_is_allowed_and_named_in_the_help(name, choice):
    assert getattr(parse(f"--{name}={choice}"), name) == choice
    values = flags.FlagValues()
    configs.define_flags(values)
    assert choice in values[name].help


@pytest.mark.promise("ranges")
@pytest.mark.parametrize("layers", [1, 2, 3, 8])
def test_the_features_follow_the_layers_of_the_head(layers):
    names = configs.feature_names(layers)
    assert names == ("h", *(f"head_{i}" for i in range(1, layers)), "z")
    for name in names:
        assert Config(proj_layers=layers, feature=name).feature == name
    with pytest.raises(ValueError, match="--feature must be one of") as error:
        Config(proj_layers=layers, feature=f"head_{layers}")
    assert all(repr(name) in str(error.value) for name in names)
    assert f"--proj_layers={layers}" in str(error.value)
    assert f"'head_{layers}'" in str(error.value)


@pytest.mark.promise("ranges")
@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"warmup_epochs": 3.0, "epochs": 3}, ["--warmup_epochs", "--epochs=3", "3.0"]),
        ({"warmup_epochs": 40.0}, ["--warmup_epochs", "--epochs=40", "40.0"]),
        ({"dataset": "folder"}, ["--dataset=folder", "--data_dir"]),
    ],
)
def test_contradictions_are_refused(settings, parts):
    with pytest.raises(ValueError) as error:
        Config(**settings)
    assert all(part in str(error.value) for part in parts)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3


@pytest.mark.parametrize("name", FIELDS)
def test_flags_and_config_describe_each_other(name):
    value = other_value(name)
    config = Config(**({} if value is None else {name: value}))
    assert parse(*config.lines()) == config


@pytest.mark.parametrize(
    "path", ["/a b/c  d", "/köln/猫", "/a=b/--c", "/# no comment", "/'quoted' \"too\""]
)
def test_lines_carry_any_path(path):
    config = Config(workdir=path, data_dir=path, cache_dir=path)
    assert parse(*config.lines()) == config


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-12, 3e-4, 123456.789, 1 / 3])
def test_lines_carry_every_digit(value):
    config = Config(learning_rate=value, weight_decay=value)
    assert parse(*config.lines()) == config


@pytest.mark.parametrize(
    "name", [n for n in FIELDS if kind_of(n) is float and n != "crop_min_area"]
)
def test_a_whole_number_means_the_same_as_int_and_as_float(name):
    # A data set's default may be the integer 1, the same flag parsed is 1.0: one run.
    whole, real = Config(**{name: 1}), Config(**{name: 1.0})
    assert whole.lines() == real.lines()
    assert whole.pretraining() == real.pretraining()
    assert whole.default_workdir() == real.default_workdir()


def test_lines_leave_out_what_is_undecided():
    names = {line[2:].split("=")[0] for line in Config().lines()}
    assert names == {name for name in FIELDS if getattr(Config(), name) is not None}


@pytest.mark.parametrize(
    "name",
    [
        *("workdir", "data_dir", "cache_dir", "teacher_dir", "eval_data_dir", "init"),
        *("output", "embeddings", "query"),
    ],
)
def test_paths_become_absolute(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    folder = os.getcwd()
    assert getattr(parse(f"--{name}=~/x"), name) == str(tmp_path / "home" / "x")
    assert getattr(parse(f"--{name}=a/../x"), name) == os.path.join(folder, "x")
    assert getattr(parse(), name) == ""


@pytest.mark.parametrize("name", [n for n in FIELDS if other_value(n) is not None])
def test_the_default_folder_follows_the_pretraining_only(name):
    base = Config(data_dir="/elsewhere")
    changed = dataclasses.replace(base, **{name: other_value(name)})
    same = changed.default_workdir() == base.default_workdir()
    assert same == (name in AFTER_PRETRAINING)
    # A run is tied to its images and its teacher's weights, wherever they lie.
    is_path = name in ("data_dir", "teacher_dir")
    assert (changed.pretraining() == base.pretraining()) == (same or is_path)


def test_settings_that_mean_what_older_versions_did_keep_the_default_folder():
    older, none = Config(), Config(input_norm="none")
    assert none.default_workdir() == older.default_workdir()
    imagenet = Config(input_norm="imagenet")
    assert imagenet.default_workdir() != older.default_workdir()


def test_the_default_folder_names_method_and_data():
    folder = Config(dataset="stl10").default_workdir()
    assert os.path.basename(folder).startswith("simclr-stl10-")
    assert os.path.basename(os.path.dirname(folder)) == "runs"


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adam", (3e-4, "none", 0.0, "constant", 0.0)),
        ("lars", (0.075, "sqrt", 1.0, "cosine", 1e-6)),
        ("sgd", (0.03, "none", 0.0, "cosine", 1e-4)),
    ],
)
def test_optimizer_defaults(optimizer, expected):
    names = "learning_rate learning_rate_scaling warmup_epochs schedule weight_decay"
    config = Config(optimizer=optimizer).with_optimizer_defaults()
    assert tuple(getattr(config, name) for name in names.split()) == expected
    own = dict(zip(names.split(), (0.7, "linear", 2.0, "cosine", 0.5), strict=True))
    config = Config(optimizer=optimizer, epochs=40, **own)
    assert config.with_optimizer_defaults() == config


@pytest.mark.parametrize(
    ("optimizer", "rule", "peak"),
    [
        *(("adam", rule, 3e-4) for rule in ("none", "linear", "sqrt")),
        *(("sgd", rule, 0.03) for rule in ("none", "linear", "sqrt")),
        *(("lars", "none", 0.3), ("lars", "linear", 0.15), ("lars", "sqrt", 0.85)),
    ],
)
def test_peak_learning_rate_at_batch_128(optimizer, rule, peak):
    config = Config(optimizer=optimizer, learning_rate_scaling=rule)
    config = config.with_optimizer_defaults()
    assert config.learning_rate_scaling == rule
    rate = schedules.scaled_learning_rate(config.learning_rate, 128, rule)
    assert rate == pytest.approx(peak, rel=2e-3)


def test_a_start_from_weights_trains_shorter_after_a_warm_up():
    plain = Config().with_optimizer_defaults()
    initial = Config(init="a.npz").with_optimizer_defaults()
    assert plain.epochs == 40
    assert initial.epochs < plain.epochs
    assert initial.warmup_epochs > plain.warmup_epochs
    own = {"epochs": 7, "learning_rate": 0.1, "warmup_epochs": 2.0}
    given = Config(init="a.npz", **own).with_optimizer_defaults()
    assert {name: getattr(given, name) for name in own} == own


@pytest.mark.parametrize("epochs", [1, 2, 10, 40])
def test_default_warm_up_leaves_something_to_train(epochs):
    config = Config(optimizer="lars", epochs=epochs).with_optimizer_defaults()
    assert 0 < config.warmup_epochs <= min(1, epochs / 10)


def test_replace_none_keeps_what_was_decided():
    config = Config(width=0.5).replace_none(width=2.0, image_size=32)
    assert (config.width, config.image_size) == (0.5, 32)
    with pytest.raises(ValueError, match="--image_size must be at least 8"):
        Config().replace_none(image_size=4)


def test_text_is_what_a_flag_understands():
    assert [options.to_flag_value(v) for v in (True, False, 3, "a b")] == [
        *("true", "false", "3", "a b")
    ]
