# Each target does all its set-up: an environment of its own in .venv, with the versions in constraints.txt.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs

demo: .venv/installed
	$(BIN)/nti-batch invert --config configs/demo.yaml
	$(BIN)/nti-batch status demo-output

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check nti_batch tests
	$(BIN)/ruff format --check nti_batch tests
	$(BIN)/mypy

docs: .venv/documented
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/documented: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@
