"""The run folder: new, continued or refused, and used by one process at a time."""

import dataclasses
import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from command_line import config_of
from last_words import last_words

from tfsimclr import __version__, modes, run
from tfsimclr.runs import folder as run_folder
from tfsimclr.settings import flagfiles
from tfsimclr.settings.config import Config

pytestmark = pytest.mark.quick

HOLD = """
import pathlib, sys, time
from tfsimclr.runs import folder
with folder.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def config(tmp_path):
    return Config(workdir=str(tmp_path / "run"), width=0.25, image_size=32)


@pytest.fixture
def holder(tmp_path):
    """Returns a process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def contents(path):
    """Returns every file of a folder with its bytes."""
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_new_folder_is_made_with_all_above_it(config, tmp_path):
    config = dataclasses.replace(config, workdir=str(tmp_path / "a" / "b é" / "c"))
    path = run_folder.prepare(config)
    assert str(path) == config.workdir
    assert {p.name for p in path.iterdir()} - {".lock"} == {"flags.txt"}
    lines = (path / "flags.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# tfsimclr {__version__}"
    # What other data a run was scored on, and which devices, are not part of it.
    others = ("--mode=all", "--eval_", "--strategy", "--worker_timeout")
    written = {line for line in config.lines() if not line.startswith(others)}
    assert written <= set(lines) and not any(x.startswith(others) for x in lines)


def test_an_empty_folder_will_do(config, tmp_path):
    (tmp_path / "run").mkdir()
    assert (run_folder.prepare(config) / "flags.txt").exists()


def test_flags_txt_continues_the_run(config):
    path = run_folder.prepare(config)
    again = config_of(f"--flagfile={path / 'flags.txt'}")
    assert again == config
    assert run_folder.prepare(again) == path


@pytest.mark.parametrize("mode", ["pretrain", "evaluate", "export"])
def test_flags_txt_continues_the_whole_run_whatever_was_done_last(config, mode):
    # "Give the same flags (--flagfile=<run>/flags.txt) to continue it": not only the
    # part that happened to be asked for last.
    run_folder.prepare(config)
    path = run_folder.prepare(dataclasses.replace(config, mode=mode))
    assert config_of(f"--flagfile={path / 'flags.txt'}").mode == "all"


def test_whole_numbers_of_a_data_set_are_the_same_run(config):
    # A data set's default width is the integer 1; the flag parses to 1.0.
    config = dataclasses.replace(config, width=1)
    path = run_folder.prepare(config)
    again = config_of(f"--flagfile={path / 'flags.txt'}")
    assert run_folder.prepare(again) == path


@pytest.mark.promise("run-folder-settings")
@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 7},
        {"optimizer": "lars", "temperature": 0.1},
        {"flip": False, "seed": 3, "width": 0.5, "dataset": "cifar10"},
    ],
)
def test_other_settings_are_refused_and_listed(config, tmp_path, changes):
    run_folder.prepare(config)
    before = contents(tmp_path)
    other = dataclasses.replace(config, **changes, probe_epochs=3)
    with pytest.raises(ValueError, match="other settings") as error:
        run_folder.prepare(other)
    message = str(error.value)
    old, new = config.pretraining(), other.pretraining()
    for name in changes:
        assert f"--{name}={old[name]} there, --{name}={new[name]} here" in message
    assert message.count(" there, ") == len(changes)
    assert f"--flagfile={config.workdir}" in message and "--workdir" in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"feature": "z"},
        {"probe_epochs": 3, "probe_optimizer": "sgd", "probe_learning_rate": 0.1},
        {"probe_batch_size": 9, "num_train_images": 50, "cache_dir": "/elsewhere"},
        {"keep_checkpoints": 5, "checkpoint_minutes": 1.0},
        {"mode": "evaluate"},
    ],
)
def test_what_comes_after_the_pretraining_may_change(config, changes):
    run_folder.prepare(config)
    changed = dataclasses.replace(config, **changes)
    path = run_folder.prepare(changed)
    lines = set((path / "flags.txt").read_text(encoding="utf-8").splitlines())
    others = ("--mode", "--eval_", "--strategy", "--worker_timeout")
    assert {x for x in changed.lines() if not x.startswith(others)} <= lines


def test_a_run_from_before_a_setting_existed_goes_on(config, tmp_path):
    path = run_folder.prepare(config) / "flags.txt"
    kept = [line for line in path.read_text().splitlines() if "--blur" not in line]
    path.write_text("\n".join(kept) + "\n")
    run_folder.prepare(config)
    assert "--blur=0.0" in path.read_text()


@pytest.mark.parametrize("name", ["holiday.jpg", "flags.text", ".hidden"])
def test_a_folder_of_something_else_is_refused(config, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(ValueError, match="is not a run folder"):
        run_folder.prepare(config)
    assert [p.name for p in (tmp_path / "run").iterdir()] == [name]


@pytest.mark.parametrize("content", ["", "--other=1\n", "Germany, France\n"])
def test_somebody_else_s_flags_txt_is_not_overwritten(config, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "flags.txt").write_text(content)
    with pytest.raises(ValueError):
        run_folder.prepare(config)
    assert (tmp_path / "run" / "flags.txt").read_text() == content


def test_a_file_is_refused(config, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match="is not a run folder"):
        run_folder.prepare(config)
    assert (tmp_path / "run").read_text() == "mine"


def bumped(place):
    numbers = [int(part) for part in __version__.split(".")]
    numbers[place] += 10  # two digits: not to be compared as text
    return ".".join(map(str, numbers))


@pytest.mark.promise("run-folder-settings")
@pytest.mark.parametrize("version", [bumped(0), bumped(-1), f"{__version__}.1"])
def test_a_newer_version_s_folder_is_refused(config, version):
    path = run_folder.prepare(config) / "flags.txt"
    text = path.read_text().replace(__version__, version, 1)
    path.write_text(text)
    with pytest.raises(ValueError, match="Update tfsimclr") as error:
        run_folder.prepare(config)
    assert version in str(error.value) and __version__ in str(error.value)
    assert path.read_text() == text


def test_an_older_version_s_folder_is_taken_over(config):
    path = run_folder.prepare(config) / "flags.txt"
    path.write_text(path.read_text().replace(f"tfsimclr {__version__}", "tfsimclr 0.0"))
    run_folder.prepare(config)
    assert path.read_text().startswith(f"# tfsimclr {__version__}\n")


@pytest.mark.promise("run-folder-settings")
@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["was not written by tfsimclr", "--workdir"]),
        (None, ["was not written by tfsimclr", "--workdir"]),  # a folder
        (b"\xff\xfe\x00", ["was not written by tfsimclr", "--workdir"]),
        (b"# tfsimclr 0.1\n--seed=0\n--epo", ["damaged", "'--epo'", "--workdir"]),
        (b"# tfsimclr 0.1\nseed=0\n", ["damaged", "'seed=0'", "--workdir"]),
        (b"# tfsimclr 0.1\n--seed=\xff\n", ["--seed=\udcff there", "--workdir"]),
        (b"# tfsimclr \xc2\xb2.0\n--seed=1\n", ["--seed=1 there", "--workdir"]),
    ],
)
def test_a_damaged_flags_txt_is_refused_in_one_line(
    config, tmp_path, monkeypatch, content, parts
):
    path = tmp_path / "run" / "flags.txt"
    path.parent.mkdir()
    path.mkdir() if content is None else path.write_bytes(content)
    message = last_words(monkeypatch, action=lambda *_: run_folder.prepare(config))
    assert all(part in message for part in [*parts, str(path.parent)]), message
    assert path.is_dir() if content is None else path.read_bytes() == content


def test_comments_and_empty_lines_in_flags_txt_do_no_harm(config):
    path = run_folder.prepare(config) / "flags.txt"
    path.write_text(path.read_text() + "\n# mine\n")
    assert run_folder.prepare(config) == path.parent


@pytest.mark.promise("run-folder-settings")
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "Permission denied"),
        (errno.EROFS, "Read-only file system"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("place", ["mkdir", "lock", "flags.txt"])
def test_a_folder_that_cannot_be_used_is_named_with_the_remedy(
    config, monkeypatch, place, number, words
):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    owner, name = {
        "mkdir": (pathlib.Path, "mkdir"),
        "lock": (fcntl, "flock"),
        "flags.txt": (os, "fsync"),
    }[place]
    monkeypatch.setattr(owner, name, refuse)
    message = last_words(monkeypatch, action=lambda *_: run_folder.prepare(config))
    assert config.workdir in message and words in message
    assert "name another --workdir" in message


def test_a_full_disk_has_another_remedy(config, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    message = last_words(monkeypatch, action=lambda *_: run_folder.prepare(config))
    assert "flags.txt" in message and "Make room" in message


@pytest.mark.promise("odd-images")
def test_a_path_that_tensorflow_cannot_write_to_is_refused(config, tmp_path):
    workdir = str(tmp_path / os.fsdecode(b"\xff"))
    with pytest.raises(ValueError, match="--workdir=.*udcff.*is not UTF-8"):
        run_folder.prepare(dataclasses.replace(config, workdir=workdir))
    assert not os.path.exists(workdir)


@pytest.mark.promise("odd-images")
def test_other_paths_need_not_be_text(config):
    odd = os.fsdecode(b"/in/\xff/b\xc3\xa4h\x0c\xe2\x80\xa8x")  # also a page break
    config = dataclasses.replace(config, data_dir=odd, cache_dir=odd)
    path = run_folder.prepare(config)
    assert run_folder.prepare(config) == path
    again = config_of(f"--flagfile={path / 'flags.txt'}")
    assert again == config and again.data_dir == odd
    assert flagfiles.read_config(path / "flags.txt") == config


@pytest.mark.parametrize("name", ["data_dir", "teacher_dir"])
def test_images_and_teacher_may_move_to_another_path(config, name):
    run_folder.prepare(dataclasses.replace(config, **{name: "/old"}))
    path = run_folder.prepare(dataclasses.replace(config, **{name: "/new"}))
    assert f"--{name}=/new" in (path / "flags.txt").read_text().splitlines()


LEFT = (".partial-abc", "features/.partial-abc", ".saved_model-abc/new/saved_model.pb")
KEPT = ("saved_model/saved_model.pb", "features/h-test.npy", ".partial", "notes.txt")


def leave(path):
    for name in (*LEFT, *KEPT):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("x")


@pytest.mark.promise("leftovers")
def test_what_killed_processes_left_is_removed_when_the_run_goes_on(config):
    path = run_folder.prepare(config)
    leave(path)
    run_folder.prepare(config)
    left = {str(p.relative_to(path)) for p in contents(path)}
    assert left == {*KEPT, ".lock", "flags.txt"}


@pytest.mark.promise("leftovers")
def test_nothing_of_a_run_in_use_or_of_other_settings_is_removed(config):
    path = run_folder.prepare(config)
    leave(path)
    before = contents(path)
    with pytest.raises(ValueError, match="other settings"):
        run_folder.prepare(dataclasses.replace(config, seed=7))
    with run_folder.lock(path), pytest.raises(ValueError, match="in use"):
        run_folder.prepare(config)
    assert contents(path) == before


@pytest.mark.parametrize("mode", ["evaluate", "export"])
@pytest.mark.parametrize("empty_folder", [False, True])
def test_evaluation_needs_a_run(config, tmp_path, mode, empty_folder):
    if empty_folder:
        (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=f"--mode={mode} needs a run") as error:
        run_folder.prepare(dataclasses.replace(config, mode=mode))
    assert "--workdir" in str(error.value)
    assert contents(tmp_path) == {}
    assert (tmp_path / "run").exists() == empty_folder


@pytest.mark.promise("lock")
def test_a_second_process_is_refused_with_the_pid_of_the_first(holder, tmp_path):
    with pytest.raises(ValueError, match=rf"in use by process {holder.pid}\b") as error:
        with run_folder.lock(tmp_path):
            pytest.fail("two processes hold one folder")
    assert "--workdir" in str(error.value)
    with pytest.raises(ValueError, match=str(holder.pid)):  # still there
        with run_folder.lock(tmp_path):
            pass


@pytest.mark.promise("lock")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_no_lock(holder, tmp_path, number):
    holder.send_signal(number)
    holder.wait(10)
    with run_folder.lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_the_lock_is_free_after_its_block_and_after_an_error(tmp_path):
    with run_folder.lock(tmp_path):
        with pytest.raises(ValueError, match=str(os.getpid())):
            with run_folder.lock(tmp_path):
                pass
    with pytest.raises(ZeroDivisionError):
        with run_folder.lock(tmp_path):
            raise ZeroDivisionError
    with run_folder.lock(tmp_path):
        pass


def test_a_folder_in_use_keeps_its_flags(tiny, tmp_path):
    config, _, path = tiny()
    run_folder.prepare(config)
    before = (path / "flags.txt").read_text()
    with run_folder.lock(path):
        with pytest.raises(ValueError, match="in use by process"):
            run.run(dataclasses.replace(config, probe_epochs=77))
    assert (path / "flags.txt").read_text() == before


def test_the_default_folder_can_be_continued_from_elsewhere(
    tiny, tmp_path, monkeypatch
):
    config, *_ = tiny()
    monkeypatch.setitem(modes.MODES, "all", ())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run.run(dataclasses.replace(config, workdir=""))
    (folder,) = (tmp_path / "here" / "runs").iterdir()
    monkeypatch.chdir(tmp_path)
    again = config_of(f"--flagfile={folder / 'flags.txt'}")
    assert os.path.realpath(again.workdir) == os.path.realpath(folder)


@pytest.mark.promise("lock")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_warned_of_once(config, monkeypatch, capsys, number):
    """As some network disks: the run goes on, its files are whole even so."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = run_folder.prepare(config)
    with run_folder.lock(path):
        assert (path / ".lock").read_text() == str(os.getpid())
    warning = capsys.readouterr().err
    assert warning.startswith("Warning: ") and warning.count("\n") == 1
    assert str(path) in warning and "--workdir" in warning


def test_a_lock_of_no_text_is_named_all_the_same(holder, tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="in use by process"):
        with run_folder.lock(tmp_path):
            pass
