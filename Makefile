PYTHON ?= $(shell command -v python3 || command -v python3.11)
VENV ?= .venv
# Two workers with one thread each; tensors in the tests are too small for more threads to help.
WORKERS ?= 2
THREADS ?= 1
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LIGHTNING := .venv-lightning
PYTEST := OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -q -n $(WORKERS)
# The methods' own tests run with every annotated shape and dtype checked at each call.
METHODS := tests/sample tests/label tests/ops tests/contract/test_mixing.py
CHECKER := mixwell,beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
SHAPES := $(METHODS) '--jaxtyping-packages=$(CHECKER)'

# Modules are compiled when first imported, for the many processes of the tests.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all test-lightning lint conformance results docs site clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS) THREADS=$(THREADS) PYTEST_ARGS="$(PYTEST_ARGS)"'

venv: $(STAMP) ## make the virtual environment, with all extras and the test tools

$(STAMP): pyproject.toml
	@echo "Installing mixwell[all,dev,docs] into $(VENV); this takes some minutes the first time."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[all,dev,docs]'
	@touch $@

demo: $(STAMP) ## compare six recipes in a few minutes; makes runs/demo/report.html
	$(BIN)/mixwell demo

test: $(STAMP) ## run the tests, with a sample of the full matrices, those of the methods with shapes checked
	$(PYTEST) $(METHODS:%=--ignore=%) $(PYTEST_ARGS)
	$(PYTEST) $(SHAPES) $(PYTEST_ARGS)

test-all: $(STAMP) ## run the tests, with the full matrices, those of the methods with and without shapes checked
	$(PYTEST) --all $(PYTEST_ARGS)
	$(PYTEST) $(SHAPES) --all $(PYTEST_ARGS)

test-lightning: $(LIGHTNING)/.installed ## run the Lightning adapter's tests in an environment of their own, .venv-lightning
	OMP_NUM_THREADS=$(THREADS) $(LIGHTNING)/bin/python -m pytest -q tests/compat/test_lightning.py \
		tests/examples -k "lightning" $(PYTEST_ARGS)

$(LIGHTNING)/.installed: $(STAMP) tools/lightning_env.sh
	@tools/lightning_env.sh $(BIN)/python $(LIGHTNING)
	@touch $@

lint: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

conformance: $(STAMP) ## compare every method with the outputs of its authors' code
	$(BIN)/mixwell conformance

results: $(STAMP) ## train what results/ lacks, for hours and resumable, and write its page and its figures in the docs
	for bench in fashion-mini label-noise crop-flip; do $(BIN)/mixwell bench results/$$bench.toml --jobs 2 || exit; done
	$(BIN)/mixwell report results --title 'mixwell on fashion-mini' -o results/index.html
	$(BIN)/python tools/make_docs.py --pictures none

docs: $(STAMP) ## write the methods' pages and the pictures that are missing
	$(BIN)/python tools/make_docs.py

site: $(STAMP) ## build the documentation site in build/site
	$(BIN)/python tools/make_site.py

clean: ## remove the virtual environment, caches and builds
	rm -rf $(VENV) $(LIGHTNING) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
