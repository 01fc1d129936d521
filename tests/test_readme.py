"""README and docs: commands parse, Python runs, links resolve, numbers are true."""

import ast
import importlib.util
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from command_line import check

import tfsimclr
from tfsimclr.settings import config as configs

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
TEXTS = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in PAGES}
README = TEXTS["README.md"]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
by_page = pytest.mark.parametrize("page", TEXTS)


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(TEXTS[page]) if kind == language]


COMMANDS = sorted(
    {
        command.strip()
        for page in TEXTS
        for block in blocks(page, "bash")
        for line in block.splitlines()
        for command in line.split("&&")
    }
)
RUNS = [command for command in COMMANDS if "tfsimclr.run" in command]
SCRIPTS = [command for command in COMMANDS if command.startswith("python scripts/")]
# The tools of the other commands.
TOOLS = (
    *("python3", ".", "pip", "pre-commit", "pytest", "ruff", "mypy", "lint-imports"),
    "tensorboard",
)


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.quick
def test_the_readme_is_short_and_its_two_commands_stand_in_it():
    assert len(README.encode()) <= 9000
    first, second = blocks("README.md", "bash")[:2]
    start = (
        "python3 -m venv .venv && . .venv/bin/activate && pip install --upgrade pip && "
    )
    run = "python -m tfsimclr.run --optimizer=lars --proj_layers=4"
    assert first == f"{start}pip install . && {run}\n"
    assert second == f"{start}pip install -e '.[dev]' && pytest\n"


@pytest.mark.quick
def test_every_command_is_a_run_a_script_or_a_known_tool():
    assert len(RUNS) >= 10 and len(SCRIPTS) >= 6
    others = set(COMMANDS) - set(RUNS) - set(SCRIPTS)
    assert {command.split()[0] for command in others} <= set(TOOLS)


@pytest.mark.quick
@pytest.mark.parametrize("command", RUNS)
def test_runs_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    python, module, name, *arguments = shlex.split(command)
    assert (python, module, name) == ("python", "-m", "tfsimclr.run")
    config = check(*arguments)
    # Larger ones only where the text is about their memory.
    assert config.batch_size <= 256 or config.microbatch_size or config.memory_gb
    words = re.findall(r"--(\w+)", " ".join(arguments))
    assert not set(words) & set(configs.ALIASES), "an old name"


@pytest.mark.quick
@pytest.mark.parametrize("command", SCRIPTS)
def test_scripts_exist_and_know_their_options(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, path, *arguments = shlex.split(command)
    target = ROOT / path
    sources = target.rglob("*.py") if target.is_dir() else [target]
    sources = [*sources, *(ROOT / "tfsimclr" / "study").glob("*.py")]
    texts = "".join(source.read_text("utf-8") for source in sources)
    of_runs = []
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and f'"{option}"' not in texts:
            of_runs.append(argument)
    check(*of_runs)
    if target.is_dir() and arguments[0] != "all":
        assert (target / f"{arguments[0]}.py").exists()
    for value in re.findall(r"flags/[\w/.]+", command):
        assert (ROOT / value).exists(), value


@pytest.mark.quick
def test_old_flags_and_scripts_are_not_mentioned():
    old = r"--(?:labels|finetune_from|teacher|ema)\b(?!_)|bench\.py|addons_reference"
    for page, text in TEXTS.items():
        text = text.partition("## Old names")[0]
        assert not re.findall(old, text), page


@pytest.mark.quick
@by_page
def test_python_blocks_are_python(page):
    for block in blocks(page, "python"):
        ast.parse("{" + block + "}" if block.startswith('"') else block)


def test_the_notebook_block_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = next(b for b in blocks("README.md", "python") if "resnet.resnet(" in b)
    fit, epochs = tfsimclr.SimCLR.fit, []

    def short_fit(self, *arguments, **options):
        epochs.append(options.pop("epochs"))
        return fit(self, *arguments, epochs=2, **options)

    monkeypatch.setattr(tfsimclr.SimCLR, "fit", short_fit)
    random = np.random.default_rng(0)
    names = {
        "images": random.integers(0, 256, (3, 24, 24, 3)).astype("uint8"),
        "z_a": random.normal(size=(4, 8)).astype("float32"),
        "z_b": random.normal(size=(4, 8)).astype("float32"),
    }
    exec(block, names)
    assert epochs == [40]
    assert list(names["features"]) == ["h", "head_1", "head_2", "head_3", "z"]
    assert names["features"]["h"].shape == (3, 512)
    assert np.isfinite(float(names["loss"]))
    assert (tmp_path / "run.keras").exists()


@pytest.mark.quick
def test_the_public_names_are_imported_as_printed():
    block = next(b for b in blocks("README.md", "python") if "SimSiam" in b)
    names = {}
    exec(block, names)
    for name in tfsimclr.__all__:
        assert hasattr(tfsimclr, name)


@pytest.mark.quick
def test_code_of_the_docs_stands_in_the_code():
    """What adding_a_method.md shows is what the files hold, up to indentation."""
    files = ("methods/simsiam.py", "methods/__init__.py")
    code = "".join((ROOT / "tfsimclr" / name).read_text("utf-8") for name in files)
    code += (ROOT / "tests" / "method_rows.py").read_text("utf-8")
    code = [line.strip() for line in code.splitlines()]
    for block in blocks("docs/adding_a_method.md", "python"):
        for line in block.splitlines():
            assert line.strip() in code, line


@pytest.mark.quick
def test_the_page_of_flags_is_up_to_date():
    assert TEXTS["docs/flags.md"] == script("flags_table").page(), (
        "Run python scripts/flags_table.py."
    )


@pytest.mark.quick
def test_every_setting_is_in_the_page_of_flags():
    fields = [
        name for part in script("flags_table").sections().values() for name in part
    ]
    assert [field.name for field in fields] == list(configs.Config.__dataclass_fields__)


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.quick
@by_page
def test_links_resolve(page):
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", TEXTS[page]))
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


@pytest.mark.quick
@by_page
def test_files_that_are_named_exist(page):
    names = re.findall(
        r"`((?:flags|scripts|tests|results|docs|tfsimclr)/[\w/.]*)`", TEXTS[page]
    )
    for name in names:
        assert (ROOT / name).exists(), name


@pytest.mark.quick
def test_every_page_is_linked_in_the_readme():
    for page in TEXTS:
        assert page == "README.md" or f"]({page})" in README


@pytest.mark.quick
@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_numbers_of_the_results_stand_in_their_flagfiles(page):
    rows = re.findall(r"^\| `(flags/[^`]+)`(.*%.*)\|$", TEXTS[page], re.MULTILINE)
    assert rows
    for path, cells in rows:
        header = (ROOT / path).read_text(encoding="utf-8").split("\n--")[0]
        numbers = re.findall(r"\d+\.\d+(?= %)", cells)
        assert numbers, f"no number in the row of {path}"
        for number in numbers:
            assert number in header, f"{number} is not in the header of {path}"


TABLES = {
    "cifar10_small": "The study on CIFAR-10",
    "cifar10_20k": "The study on CIFAR-10, longer",
    "textures": "The study on the textures",
    "textures_rates": "LARS's learning rate",
    "methods": "All methods with one budget",
}


@pytest.mark.quick
@pytest.mark.parametrize("folder", TABLES)
def test_numbers_of_the_studies_stand_in_their_tables(folder):
    section = TEXTS["docs/results.md"].split(f"## {TABLES[folder]}\n")[1]
    section = section.split("\n## ")[0]
    tables = (ROOT / "results" / folder / "tables.md").read_text("utf-8")
    pattern = r"\d+\.\d\d ± \d+\.\d\d|[+-]\d+\.\d\d \[[^]]+\]"
    if " ± " not in section:  # one seed
        pattern = r"\b\d\d\.\d\d\b"
    numbers = re.findall(pattern, section)
    assert len(numbers) >= 6
    for number in numbers:
        assert number in tables, number


@pytest.mark.quick
def test_numbers_of_the_readme_are_those_of_the_pages():
    result = json.loads((ROOT / "results/quickstart/result.json").read_text())
    for name, scores in result["features"].items():
        line = next(x for x in README.splitlines() if x.startswith(f"  {name:9} "))
        assert f"top-1 {scores['top1']:.2%}" in line
        assert f"kNN {scores['knn']:.2%}" in line
    for number in re.findall(r"\d\d\.\d\d ± \d+\.\d\d", README):
        assert number in TEXTS["docs/results.md"]


@pytest.mark.quick
def test_the_citation_names_this_version():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"version: {tfsimclr.__version__}\n" in citation
