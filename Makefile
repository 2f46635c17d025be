# Every target sets itself up from a clean clone: a virtual environment in .venv, installed once with the tested
# versions, and again only when pyproject.toml or constraints.txt change. Only a package registry is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= logical
CASES ?= 6

.PHONY: help demo test lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    watch the bundled model write code, faster and with the same output"
	@echo "make test    ruff, mypy, import contracts, pytest, the README's code blocks"
	@echo "             CASES=300: 300 calls of generate() in every model family, as CI does; WORKERS=1: on one core, not up to 8"
	@echo "make lint    ruff, mypy, import contracts"
	@echo "make bench   the README's first table, about ten minutes on a quiet machine"
	@echo "make clean   remove the virtual environment and caches"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "selfspec needs Python 3.11 or newer; run: make PYTHON=python3.12 ...")'
	@echo "installing into $(VENV) (once; torch is large)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/selfspec demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal --conformance-cases $(CASES)

bench: $(STAMP)
	$(BIN)/python benchmarks/cpu_latency.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
