"""Every promise of docs/guarantees.md has a test, and every marked test a promise."""

import ast
import pathlib
import re

import pytest

pytestmark = pytest.mark.quick
TESTS = pathlib.Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "guarantees.md").read_text(encoding="utf-8")


def names_on_the_page():
    """Returns the names of the promises, in the order of the page."""
    return re.findall(r"^\* `([\w-]+)`: \S", PAGE, re.MULTILINE)


def marked_tests():
    """Returns {name of a promise: tests marked with it}; the tests are not imported."""
    marked = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for decorator in getattr(node, "decorator_list", ()):
                name = promise_of(decorator)
                if name is not None:
                    test = f"{path.relative_to(TESTS).as_posix()}::{node.name}"
                    assert node.name.startswith("test_"), test
                    marked.setdefault(name, []).append(test)
    return marked


def promise_of(decorator):
    """Returns the name in `pytest.mark.promise(name)`; None for other decorators."""
    if ast.unparse(decorator).startswith("pytest.mark.promise"):
        (argument,) = decorator.args
        return ast.literal_eval(argument)
    return None


def test_every_promise_has_a_test_and_every_marked_test_a_promise():
    names, marked = names_on_the_page(), marked_tests()
    assert len(names) == len(set(names)) > 50
    assert not set(names) - set(marked), "promises without a test"
    unknown = {name: marked[name] for name in set(marked) - set(names)}
    assert not unknown, "tests of promises that are not on the page"


def test_decorators_are_read():
    def promise(text):
        return promise_of(ast.parse(text, mode="eval").body)

    assert promise('pytest.mark.promise("lock")') == "lock"
    assert promise("pytest.mark.slow") is None
