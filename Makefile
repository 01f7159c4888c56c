# Two commands for a user: `make demo` and `make test`. Each sets everything up on a machine that has python3 and pip alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint types check clean

help:
	@echo "make demo       train a small network on handwritten digits with SGD, SAM, GAM and SAM + GAM; write runs/digits/"
	@echo "make test       install what is missing and run the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make check      lint, types and tests"

$(STAMP): pyproject.toml constraints.txt
	@echo "installing gam_jax into $(VENV) (once; some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m experiments.main compare --config digits

test: $(STAMP)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow"

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -n 2 --dist worksteal -q -m slow

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
