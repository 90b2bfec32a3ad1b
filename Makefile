.PHONY: install test lint format types bench ci

PYTHON ?= python3
BIN := .venv/bin

install:  ## a virtual environment with the pinned versions
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[test,dev]'

test:
	$(BIN)/pytest

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types:
	$(BIN)/pyright

bench:
	$(BIN)/python benchmarks/mmd.py

ci:
	.ci/run
