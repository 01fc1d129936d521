"""The order of the modules: imports point down, and other rules of the source."""

import ast
import graphlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tfsimclr"
MAX_LINES = 250

# From the top down; a module may import from the lines below its own only.
LEVELS = (
    {"run"},
    {"pretrain", "evaluate", "export", "embed", "report", "plan", "distill"},
    {"finetune"},
    {"tuned"},  # networks with a classifier: teachers, and what they teach
    {"trained", "results", "runfolder", "trial", "fitting"},  # what the harness shares
    {"build"},
    {"simclr", "moco", "byol", "classifier"},
    {"method"},
    {"data"},
    {"prepare", "callbacks", "projector"},
    {"folder_source", "tfds_source", "store_writer", "probes", "guards"},
    {
        *("store", "images", "textures", "augment", "resnet", "heads", "losses"),
        *("ema", "lars", "schedules", "metrics", "flops", "checkpoints", "config"),
    },
    {"network_options", "training_options", "label_options"},
    {"resample", "color", "options", "defaults", "names", "norms", "decoding"},
    {"__init__"},
)
LEAVES = set.union(*LEVELS[-4:])
# A leaf imports nothing of ours, except the parts that it was split into.
PARTS = {
    "augment": {"resample", "color"},
    "config": {
        *("network_options", "training_options", "label_options"),
        *("options", "defaults", "names"),
    },
    "network_options": {"options"},
    "training_options": {"options", "defaults"},
    "label_options": {"options"},
    "heads": {"names", "norms"},
    "resnet": {"norms"},
    "images": {"decoding"},
}
SEES_CONFIG = set.union(*LEVELS[:6]) | {"config"}
# What the package cannot do without: an empty folder must not pass.
CORE = {"run", "pretrain", "evaluate", "export", "build", "simclr", "method", "data"}
CORE |= LEVELS[-4] - {"ema", "checkpoints", "images"}

STATELESS = re.compile(
    r"tf\.random\.(stateless_\w+|split|fold_in|"
    r"experimental\.(stateless_\w+|index_shuffle))"
    r"|np\.random\.(default_rng|Generator|SeedSequence|Philox|PCG64)"
)
RANDOM = re.compile(r"(tf|np|keras)\.random\.\w+|tf\.image\.random_\w+|random\.\w+")
RANDOM_MODULES = re.compile(r"(numpy\.|tensorflow\.|keras\.)?random(\.|$)")
FULL_NAMES = {"tensorflow": "tf", "numpy": "np"}

SOURCES = sorted(PACKAGE.glob("*.py"))
MODULES = {path.stem for path in SOURCES}
PLACED = set.union(*LEVELS)
by_module = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(node) -> str:
    """Returns `a.b.c` of nested attributes, with our short names of the modules."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    names.append(FULL_NAMES.get(node.id, node.id))
    return ".".join(reversed(names))


def imported(tree, modules) -> set[str]:
    """Returns our modules that a file imports, anywhere and in any way."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = "tfsimclr" if node.level else ""
            source = ".".join(filter(None, [source, node.module]))
            full = [f"{source}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            full = [dotted(node)]
        elif isinstance(node, ast.Call):  # importlib.import_module("tfsimclr.data")
            full = [a.value for a in node.args if isinstance(a, ast.Constant)]
        else:
            continue
        for name in full:
            parts = str(name).split(".")
            if parts[0] == "tfsimclr" and parts[1:2] and parts[1] in modules:
                found.add(parts[1])
    return found


def mentions_config(tree) -> bool:
    """Tells whether code, annotations included, names the class `Config`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "Config":
            return True
        if isinstance(node, ast.Attribute) and node.attr == "Config":
            return True
        if isinstance(node, ast.alias) and node.name in ("Config", "tfsimclr.config"):
            return True
        annotation = getattr(node, "annotation", None) or getattr(node, "returns", None)
        if isinstance(annotation, ast.Constant) and "Config" in str(annotation.value):
            return True
    return "config" in imported(tree, {"config"})


def stateful_randomness(tree) -> list[str]:
    """Returns the random sources of a file that depend on more than a seed."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if RANDOM.fullmatch(name) and not STATELESS.fullmatch(name):
                if name != "tf.random.experimental":  # judged by what follows it
                    found.append(name)
            elif name.startswith("tf.random.experimental."):
                if not STATELESS.fullmatch(name):
                    found.append(name)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found += [name for name in names if RANDOM_MODULES.match(name)]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if RANDOM_MODULES.match(name)]
    return found


def level(module: str) -> int:
    assert module in PLACED, f"{module} has no place in LEVELS yet"
    return next(i for i, names in enumerate(LEVELS) if module in names)


def test_every_module_has_its_place():
    assert SOURCES == sorted(PACKAGE.rglob("*.py")), "the package is flat"
    unknown = MODULES - PLACED
    assert not unknown, (
        f"{sorted(unknown)} have no place in the layout. Add each to LEVELS in "
        f"{pathlib.Path(__file__).name}: above all that it imports, below all that "
        "import it, and among the leaves if it imports nothing of ours."
    )


def test_no_module_has_two_places():
    assert sum(len(names) for names in LEVELS) == len(PLACED)


def test_the_core_is_there():
    assert not CORE - MODULES, f"missing: {sorted(CORE - MODULES)}"


@by_module
def test_imports_point_down(path):
    module = path.stem
    uses = imported(parse(path), MODULES | PLACED)
    upward = {other for other in uses if level(other) <= level(module)}
    assert not upward, f"{module} imports {sorted(upward)}, which do not lie below it"
    if module in LEAVES:
        foreign = uses - PARTS.get(module, set())
        assert not foreign, f"{module} is a leaf, yet imports {sorted(foreign)}"


def test_there_is_no_cycle():
    graph = {path.stem: imported(parse(path), MODULES) for path in SOURCES}
    assert any(graph.values())
    graphlib.TopologicalSorter(graph).prepare()


@by_module
def test_only_the_harness_sees_a_config(path):
    if path.stem not in SEES_CONFIG:
        assert not mentions_config(parse(path)), (
            f"{path.name} names Config. Pass it plain arguments, from build.py."
        )


@pytest.mark.parametrize(
    "path",
    [*SOURCES, *sorted((ROOT / "scripts").glob("*.py"))],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_files_are_short_and_do_not_assert(path):
    text = path.read_text(encoding="utf-8")
    count = len(text.splitlines())
    assert count <= MAX_LINES, f"{path.name} has {count} lines: split it by idea"
    lines = [n.lineno for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Assert)]
    assert not lines, f"{path.name} asserts in lines {lines}: raise an error instead"


@by_module
def test_randomness_is_a_function_of_its_seed(path):
    found = stateful_randomness(parse(path))
    assert not found, (
        f"{path.name} draws from {found}. Use tf.random.stateless_* keyed by seed "
        "and step, or np.random.default_rng((seed, ...)) on the host."
    )


@pytest.mark.parametrize("module", ["config", "run"])
def test_flags_answer_without_loading_tensorflow(module):
    code = (
        f"import sys, tfsimclr.{module}\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "from tfsimclr import losses",
        "from tfsimclr import ema, losses as l",
        "from tfsimclr.losses import nt_xent",
        "import tfsimclr.losses",
        "import tfsimclr\ndef f():\n    return tfsimclr.losses.nt_xent",
        "from . import losses",
        "from .losses import nt_xent",
        "def f():\n    from tfsimclr import losses",
        "import importlib\nimportlib.import_module('tfsimclr.losses')",
    ],
)
def test_every_kind_of_import_is_seen(code):
    assert "losses" in imported(ast.parse(code), {"losses", "ema"})


def test_other_imports_are_not_seen():
    code = "from tfsimclr import __version__\nimport losses\nfrom keras import losses"
    assert imported(ast.parse(code), {"losses"}) == set()


@pytest.mark.parametrize(
    "code,expected",
    [
        ("from tfsimclr.config import Config", True),
        ("from tfsimclr import config", True),
        ("def f(config: Config): pass", True),
        ("def f(c: 'configs.Config'): pass", True),
        ("def f() -> 'Config | None': pass", True),
        ("def f():\n    '''No Config here.'''\n    return x.get_config()", False),
    ],
)
def test_config_is_recognised(code, expected):
    assert mentions_config(ast.parse(code)) is expected


@pytest.mark.parametrize(
    "code,expected",
    [
        ("tf.random.uniform([3], seed=1)", ["tf.random.uniform"]),
        ("tf.random.normal([3])", ["tf.random.normal"]),
        ("tf.random.shuffle(x)", ["tf.random.shuffle"]),
        ("tf.random.set_seed(1)", ["tf.random.set_seed"]),
        ("tf.random.Generator.from_seed(1)", ["tf.random.Generator"]),
        ("tf.random.experimental.Generator", ["tf.random.experimental.Generator"]),
        ("tensorflow.random.normal([3])", ["tf.random.normal"]),
        ("tf.image.random_flip_left_right(x)", ["tf.image.random_flip_left_right"]),
        ("np.random.seed(0)", ["np.random.seed"]),
        ("np.random.permutation(5)", ["np.random.permutation"]),
        ("numpy.random.rand(5)", ["np.random.rand"]),
        ("keras.random.normal([3])", ["keras.random.normal"]),
        ("import random\nrandom.random()", ["random", "random.random"]),
        ("from numpy import random", ["numpy.random"]),
        ("from numpy.random import rand", ["numpy.random.rand"]),
        ("from tensorflow import random", ["tensorflow.random"]),
        ("tf.random.stateless_uniform([3], seed)", []),
        ("tf.random.experimental.index_shuffle(0, s, 5)", []),
        ("tf.random.experimental.stateless_fold_in(s, 1)", []),
        ("tf.random.fold_in(s, 1)", []),
        ("np.random.default_rng((0, 1)).permutation(5)", []),
        ("tf.image.stateless_random_flip_left_right(x, s)", []),
        ("layer.random.uniform", []),
    ],
)
def test_stateful_randomness_is_recognised(code, expected):
    assert sorted(stateful_randomness(ast.parse(code))) == sorted(expected)
