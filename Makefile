.PHONY: install test lint format types docs bench ci

PYTHON ?= python3
BIN := .venv/bin

install:  ## a virtual environment with the pinned versions
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[test,dev,docs]'

test:
	$(BIN)/pytest -n 2 --dist loadfile

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types:
	$(BIN)/pyright

docs:  ## the site, in build/site; `.venv/bin/mkdocs serve` shows it while it is written
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

bench:
	$(BIN)/python benchmarks/run.py

ci:
	.ci/run
