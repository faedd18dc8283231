# The commands of the project. `make` alone lists them.
#   make report ARGS="--backend cpu --devices cpu:2 --time-scale 0.1"

VENV ?= .venv
BIN := $(VENV)/bin
# The first Python of 3.11 or later that starts and can make virtual environments.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest
NOTEBOOKS := $(wildcard notebooks/[0-9][0-9]_*.ipynb)
ARGS ?=

.PHONY: help install install-test report serve test test-unit test-notebooks notebooks lint bench lab gpu-check clean
.DEFAULT_GOAL := help

help:
	@echo 'make install    virtual environment in $(VENV)/ with the pinned dependencies and the altlas command'
	@echo 'make report     run all scenarios and write reports/<run>/index.html     (ARGS="--backend cpu ...")'
	@echo 'make test       unit, notebook, API and browser tests                    (ARGS="-k name" goes to pytest)'
	@echo 'make notebooks  execute the notebooks and store their outputs            (ARGS="FILE ...": some of them)'
	@echo 'make lint       ruff and mypy'
	@echo 'make bench      the benchmarks behind docs/benchmarks.md'
	@echo 'make serve      the HTTP API and its live page                           (ARGS="--devices cpu:1 ...")'
	@echo 'make lab        JupyterLab on the notebooks'
	@echo 'make gpu-check  what can only be shown on a CUDA device'
	@echo 'make clean      remove caches and the virtual environment (reports stay)'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or later with venv was not found. Install it (Debian: apt-get install' \
		'python3 python3-venv) or name one: make install PYTHON=/path/to/python3.11' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[test]'
	@touch $@

install: $(VENV)/.installed

install-test: $(VENV)/.installed-test

report: install
	@$(BIN)/altlas run $(ARGS)

serve: install
	@$(BIN)/altlas serve $(ARGS)

test: test-unit test-notebooks

test-unit: install-test
	$(PYTEST) tests $(ARGS)

# Every committed output must come out again, byte for byte: virtual time and a seed make that possible.
test-notebooks: install-test
	$(if $(NOTEBOOKS),ALTLAS_GPU__BACKEND=simulated $(PYTEST) --nbval $(NOTEBOOKS),@echo 'no notebooks yet')

# Executes all notebooks on the default simulated machine and stores the outputs that test-notebooks compares.
notebooks: install-test
	$(BIN)/python -m altlas_core.notebook --refresh $(ARGS)

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install-test
	$(BIN)/python -m benchmarks $(ARGS)

lab: install
	$(BIN)/jupyter lab notebooks

gpu-check: install-test
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find altlas_core tests benchmarks notebooks -name __pycache__ -prune -exec rm -rf {} +
	find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} +
