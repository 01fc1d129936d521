# The commands of CONTRIBUTING.md in short. `make setup` makes .venv; if there is none, the
# other targets use the environment that is active.
PYTHON ?= python3
BIN := $(if $(wildcard .venv/bin/python),.venv/bin/,)

.PHONY: setup check test quick slow gpu

setup:
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --upgrade pip
	.venv/bin/python -m pip install -e '.[dev]'
	.venv/bin/pre-commit install

check:
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy
	$(BIN)lint-imports

test:
	$(BIN)pytest

quick:
	$(BIN)pytest -m quick

slow:
	$(BIN)pytest -m slow

gpu:
	$(BIN)pytest -m gpu -n 0
