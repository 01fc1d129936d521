"""The command line: help, refusals in one line, and flagfiles."""

import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest
from command_line import config_of

from tfsimclr import run
from tfsimclr.settings import config
from tfsimclr.settings import config as configs
from tfsimclr.settings.config import Config

ROOT = pathlib.Path(__file__).resolve().parent.parent


def launch(*arguments, code=None, cwd=ROOT):
    """Returns the finished process of the command line, or of `code`."""
    start = ["-c", code] if code else ["-m", "tfsimclr.run"]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def refusal(*arguments, **more):
    """Returns the one line with which the command line refuses to start."""
    done = launch(*arguments, **more)
    assert done.returncode not in (0, None), done.stdout
    assert done.stdout == ""
    assert done.stderr.startswith("tfsimclr: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr.strip()


def flagfile(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"--flagfile={path}"


HELP_WITHOUT_TENSORFLOW = """
import sys
from tfsimclr import run
sys.argv = ["tfsimclr", "--help"]
try:
    run.main()
finally:
    heavy = {"tensorflow", "keras", "tensorflow_datasets", "numpy"} & set(sys.modules)
    print("heavy:", sorted(heavy))
"""


def test_help_shows_every_flag_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = launch("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for name in configs.Config.__dataclass_fields__:
        assert re.search(rf"--(\[no\])?{name}:", done.stdout), name
    assert "python -m tfsimclr.run" in done.stdout
    assert done.stderr == ""
    # Of the processor, not of the clock: other tests may be running.
    assert after.ru_utime - before.ru_utime < 3


def test_help_of_the_console_script_is_the_same_and_light():
    done = launch(code=HELP_WITHOUT_TENSORFLOW)
    assert "heavy: []" in done.stdout
    for name in configs.Config.__dataclass_fields__:
        assert re.search(rf"--(\[no\])?{name}:", done.stdout), name


@pytest.mark.promise("one-line")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--batchsize=3"], ["'batchsize'", "Did you mean", "batch_size", "--help"]),
        (["--epochs=x"], ["--epochs", "'x'"]),
        (["--epochs=2.5"], ["--epochs", "'2.5'"]),
        (["--temperature=warm"], ["--temperature", "warm"]),
        (["--flip=maybe"], ["--flip", "maybe"]),
        (["--epochs"], ["--epochs", "Missing value"]),
        (["--method=dino"], ["--method", "'simclr'", "'dino'"]),
        (["--temperature=nan"], ["--temperature", "finite", "nan"]),
        (["--seed=-1"], ["--seed", "at least 0", "-1"]),
        (["--proj_layers=4", "--feature=head_4"], ["'head_3'", "'z'", "'head_4'"]),
        (["--dataset=folder"], ["--data_dir"]),
        (["pretrain"], ["--name=value", "'pretrain'"]),
        (["--epochs=1", "pretrain", "--seed=2"], ["'pretrain'"]),
        (["--flip", "false"], ["'false'"]),
        (["--flagfile=missing.flags"], ["missing.flags", "No such file"]),
        (["--flagfile", "missing.flags"], ["missing.flags", "No such file"]),
        (["--workdir=a\nb"], ["--workdir", "single line"]),
    ],
)
def test_bad_flags_are_refused_in_one_line(arguments, parts):
    line = refusal(*arguments)
    assert all(part in line for part in parts), line


def test_what_fails_behind_tensorflow_is_one_line_too(tmp_path):
    line = refusal("--dataset=folder", f"--data_dir={tmp_path / 'nothing'}")
    assert str(tmp_path / "nothing") in line


def raising(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.promise("one-line")
@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (lambda *_: Config(epochs=0), "--epochs must be above 0"),
        (raising(OSError(28, "No space left on device")), "No space left on device"),
        (raising(KeyboardInterrupt()), "The same command goes on"),
    ],
)
def test_errors_for_the_user_are_one_line(monkeypatch, fail, message):
    monkeypatch.setattr(config, "from_flags", Config)
    monkeypatch.setattr(run, "run", fail)
    with pytest.raises(SystemExit) as stop:
        run._main(["program"])
    assert message in str(stop.value.code)
    assert "\n" not in str(stop.value.code)


@pytest.mark.promise("one-line")
def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(config, "from_flags", Config)
    monkeypatch.setattr(run, "run", raising(ValueError("from somewhere else")))
    with pytest.raises(ValueError, match="from somewhere else"):
        run._main(["program"])


def test_a_flagfile_names_another_relative_to_itself(tmp_path, monkeypatch):
    flagfile(tmp_path / "a" / "base.flags", "--epochs=7", "--seed=1")
    flagfile(tmp_path / "a" / "b" / "mid.flags", "--flagfile=../base.flags")
    outer = flagfile(
        tmp_path / "ein Ördner" / "top.flags",
        *("# a comment", "", "   ", "--flagfile=../a/b/mid.flags", "  --seed=2  "),
    )
    for folder in (tmp_path, tmp_path / "a", pathlib.Path("/")):
        monkeypatch.chdir(folder)
        config = config_of(outer)
        assert (config.epochs, config.seed) == (7, 2)
    monkeypatch.chdir(tmp_path / "a")
    assert config_of("--flagfile=b/mid.flags").epochs == 7


def test_the_later_of_two_values_wins(tmp_path):
    file = flagfile(tmp_path / "a.flags", "--epochs=7", "--noflip")
    assert config_of(file, "--epochs=9").epochs == 9
    assert config_of("--epochs=9", file).epochs == 7
    assert config_of(file, "--flip").flip is True
    assert config_of(file).flip is False


def test_two_files_may_share_a_base(tmp_path):
    base = flagfile(tmp_path / "base.flags", "--seed=5")
    a = flagfile(tmp_path / "a.flags", base, "--epochs=2")
    b = flagfile(tmp_path / "b.flags", base, "--proj_layers=3")
    config = config_of(a, b)
    assert (config.seed, config.epochs, config.proj_layers) == (5, 2, 3)


@pytest.mark.promise("flagfiles")
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_flagfile_must_not_include_itself(tmp_path, length):
    for i in range(length):
        flagfile(tmp_path / f"{i}.flags", f"--flagfile={(i + 1) % length}.flags")
    with pytest.raises(SystemExit, match="includes itself"):
        config_of(f"--flagfile={tmp_path / '0.flags'}")


@pytest.mark.promise("flagfiles")
@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_an_unreadable_flagfile_is_named(tmp_path, content):
    inner = tmp_path / "inner.flags"
    if content is None:
        inner.mkdir()
    else:
        inner.write_bytes(content)
    with pytest.raises(SystemExit, match="cannot read the flagfile inner.flags"):
        config_of(flagfile(tmp_path / "a.flags", "--flagfile=inner.flags"))


@pytest.mark.parametrize("line", ["batch_size=64", "epochs 3", "–epochs=3", "stl10"])
def test_a_line_that_is_no_flag_is_not_ignored(tmp_path, line):
    # Dropping it would train with the default and call it the recipe.
    file = flagfile(tmp_path / "a.flags", "--seed=1", line)
    # The wrong method comes second, and keeps a program that does from training.
    assert line.split()[0] in refusal(file, "--method=nonsense")


def test_a_flagfile_saved_with_a_byte_order_mark_loses_no_line(tmp_path):
    path = tmp_path / "a.flags"
    path.write_text("--epochs=7\r\n--seed=1\r\n", encoding="utf-8-sig", newline="")
    config = config_of(f"--flagfile={path}")
    assert (config.epochs, config.seed) == (7, 1)


def test_the_lines_of_a_config_are_a_flagfile(tmp_path):
    config = Config(
        workdir="/meine Läufe/猫 # 1", data_dir="/a=b", flip=False, learning_rate=1 / 3
    )
    assert config_of(flagfile(tmp_path / "a b.flags", "# x", *config.lines())) == config


WINDOWS = """
import sys
sys.modules.update(fcntl=None, resource=None)
sys.argv = ["tfsimclr", *{arguments}]
from tfsimclr import run
run.main()
"""


@pytest.mark.parametrize("arguments", [[], ["--mode=plan"], ["--mode=export"]])
def test_a_system_without_file_locks_gets_one_line(tmp_path, arguments):
    """F21: Windows, imitated: it has no modules fcntl and resource.

    Siblings looked for, and what they did: --help (works there); every mode (a
    traceback of fcntl); a study (runs the same command, so it shows the line);
    `from tfsimclr import SimCLR` (works: neither methods nor losses import them).
    """
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS.format(arguments=arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and not os.listdir(tmp_path)
    assert done.stderr.startswith("tfsimclr: runs need Linux or macOS.")
    assert "WSL" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "code",
    [
        "from tfsimclr import SimCLR, LARS, Views, resnet",
        "import tfsimclr.data.dataset",
    ],
)
def test_the_classes_import_without_file_locks(code):
    code = f"import sys; sys.modules.update(fcntl=None, resource=None); {code}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
