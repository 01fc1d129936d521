"""The fuzzing script: a few cases in every run of the tests, many in the slow ones."""

import pytest
from fuzz_script import script


@pytest.mark.promise("any-image")
@pytest.mark.parametrize(
    ("kind", "results"),
    [
        ("images", {"read", "unreadable"}),
        ("folders", {"labelled", "unlabelled", "refused"}),
        ("flags", {"settings", "refused", "refused flagfile"}),
    ],
)
@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_input_gives_a_result_or_one_line(kind, results, count):
    counts, failures = script.fuzz(kind, 1, 0, count)
    assert not failures
    assert sum(counts.values()) == count and set(counts) == results


def test_a_failure_and_a_hang_are_found(monkeypatch):
    calls = []

    def broken(content, name):
        calls.append(name)
        while len(calls) == 2:
            pass
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(script.images, "extent", broken)
    monkeypatch.setattr(script, "SECONDS", 1)
    counts, failures = script.fuzz("images", 0, 0, 3)
    assert len(failures) == 3 and not counts
    assert [failure.split(":")[0] for failure in failures] == [
        f"images {number}" for number in range(3)
    ]
    assert "ZeroDivisionError" in failures[0] and "ZeroDivisionError" in failures[2]
    assert "Hang: no answer in 1 s" in failures[1]
