PYTHON ?= $(shell command -v python3 || command -v python3.11)
VENV ?= .venv
# Two workers with one thread each; tensors in the tests are too small for more threads to help.
WORKERS ?= 2
THREADS ?= 1
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -q -n $(WORKERS)
# The methods' own tests again, with every annotated shape and dtype checked at each call.
CHECKER := mixwell,beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
SHAPES := tests/sample tests/label tests/ops tests/contract/test_mixing.py '--jaxtyping-packages=$(CHECKER)'

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all lint conformance docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS) THREADS=$(THREADS) PYTEST_ARGS="$(PYTEST_ARGS)"'

venv: $(STAMP) ## make the virtual environment, with all extras and the test tools

$(STAMP): pyproject.toml
	@echo "Installing mixwell[all,dev] into $(VENV); this takes some minutes the first time."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	@touch $@

demo: $(STAMP) ## compare six recipes in a few minutes; makes runs/demo/report.html
	$(BIN)/mixwell demo

test: $(STAMP) ## run the tests, with a sample of the full matrices, then those of the methods with shapes checked
	$(PYTEST) $(PYTEST_ARGS)
	$(PYTEST) $(SHAPES) $(PYTEST_ARGS)

test-all: $(STAMP) ## run the tests, with the full matrices
	$(PYTEST) --all $(PYTEST_ARGS)
	$(PYTEST) $(SHAPES) --all $(PYTEST_ARGS)

lint: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

conformance: $(STAMP) ## compare every method with the outputs of its authors' code
	$(BIN)/mixwell conformance

docs: $(STAMP) ## write the methods' pages and the pictures that are missing
	$(BIN)/python tools/make_docs.py

clean: ## remove the virtual environment, caches and builds
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
