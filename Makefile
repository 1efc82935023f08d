# SPDX-License-Identifier: Apache-2.0
# Thin targets; the programs behind them are `freehold`, pytest, and the packages demo/, bench/, attack/ and fuzz/.
# The C programs have a makefile of their own, Makefile.c, which runs in the tools tree.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGUMENTS ?=
ATTACK_ARGUMENTS ?=
FUZZ_ARGUMENTS ?=

.DEFAULT_GOAL := help
.PHONY: help prepare test test-unit campaign demo bench attack fuzz clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

prepare: ## install what is missing: Debian packages (as root) and the Python environment
	@PYTHON=$(PYTHON) VENV=$(VENV) bash .ci/prepare

# Two workers: one for the virtual machines, one for everything else.
WORKERS := -n 2

test: prepare ## run the tests, virtual machines included
	@$(BIN)/python -m pytest $(WORKERS) -m "not campaign" $(PYTEST_ARGUMENTS)

test-unit: prepare ## run the tests that need no virtual machine and build no image
	@$(BIN)/python -m pytest -n 2 -m "not vm and not build and not campaign" $(PYTEST_ARGUMENTS)

campaign: prepare ## run the long tests that `make test` leaves out
	@$(BIN)/python -m pytest -m campaign $(PYTEST_ARGUMENTS)

demo: prepare ## build the reference system, boot it, and play the whole story
	@$(BIN)/python -m demo

bench: prepare ## measure beside the peers; results in bench/results/
	@$(BIN)/python -m bench

attack: prepare ## what root plants on a locked machine, then what is changed from outside; how each ended
	@$(BIN)/python -m attack $(or $(strip $(ATTACK_ARGUMENTS)),all)

fuzz: prepare ## fuzz every parser of foreign input, ten minutes each; goes on where it was interrupted
	@$(BIN)/python -m fuzz $(FUZZ_ARGUMENTS)

clean: ## remove what builds and tests left here; caches and the store outside stay
	rm -rf $(VENV) build-output .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
