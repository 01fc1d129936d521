"""The commit that a result names."""

import subprocess

import pytest

from tfsimclr.runs import results

pytestmark = pytest.mark.quick


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of two files, one of them the module; returns (folder, git)."""

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    git("init", "--quiet")
    for name in ("tfsimclr/results.py", "results/bench.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("first")
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    monkeypatch.setattr(results, "__file__", str(tmp_path / "tfsimclr" / "results.py"))
    return tmp_path, git


def test_the_commit_of_a_clean_checkout(checkout):
    _, git = checkout
    assert results.git_commit() == git("rev-parse", "--short=12", "HEAD")


def test_changed_code_is_dirty_and_new_results_are_not(checkout):
    folder, git = checkout
    clean = git("rev-parse", "--short=12", "HEAD")
    (folder / "results" / "bench.json").write_text("measured again")
    assert results.git_commit() == clean
    (folder / "tfsimclr" / "results.py").write_text("changed")
    assert results.git_commit() == f"{clean}-dirty"


def test_a_module_that_git_does_not_track_has_no_commit(checkout, monkeypatch):
    folder, _ = checkout
    (folder / "other.py").write_text("untracked")
    monkeypatch.setattr(results, "__file__", str(folder / "other.py"))
    assert results.git_commit() is None
