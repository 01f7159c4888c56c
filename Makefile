# Two commands for a user: `make demo` and `make test`. Each sets everything up on a machine that has python3 and pip alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint types check docs wheel versions clean

help:
	@echo "make demo       train a small network on handwritten digits with SGD, SAM, GAM and SAM + GAM; write runs/digits/"
	@echo "make test       install what is missing and run the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make check      lint, types and tests"
	@echo "make docs       the site, in docs/_build, every example executed"
	@echo "make wheel      dist/, tried as by somebody who has nothing else"
	@echo "make versions   the library's tests with older and newer Python and JAX; hours on 2 cores"

# One stamp for each set of packages: the demonstration does not need what tests and lint do.
$(VENV)/installed-experiments: EXTRA = experiments
$(VENV)/installed-dev: EXTRA = dev
$(VENV)/installed-docs: EXTRA = docs
$(VENV)/installed-release: EXTRA = release
$(addprefix $(VENV)/installed-,experiments dev docs release): pyproject.toml constraints.txt
	@echo "installing gam_jax with '$(EXTRA)' into $(VENV) (once; some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) '.[$(EXTRA)]'
	@touch $(VENV)/installed-experiments $@

install: $(VENV)/installed-dev

demo: $(VENV)/installed-experiments
	@$(BIN)/python -m experiments.main compare --config digits

test: $(VENV)/installed-dev
	@$(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow"

test-slow: $(VENV)/installed-dev
	@$(BIN)/python -m pytest -n 2 --dist worksteal -q -m slow

lint: $(VENV)/installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	@$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test

docs: $(VENV)/installed-docs
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel: $(VENV)/installed-release
	@$(BIN)/python -m tests.wheel

versions:
	@.ci/versions

clean:
	rm -rf $(VENV) .versions docs/_build docs/reports build dist *.egg-info .pytest_cache .ruff_cache
