# One verb each. Every verb creates .venv and installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROJECT := pyproject.toml app/captioner/steps.c
# setuptools warns that it might one day read pyproject.toml in another way
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable
ARGS ?=
IMAGE ?= caption-service

.PHONY: help serve test check train bench image clean

help:  ## list the verbs
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.serve: $(PROJECT) | $(BIN)/python
	$(INSTALL) .
	@touch $@

$(VENV)/.train: $(PROJECT) | $(BIN)/python
	$(INSTALL) '.[train]'
	@touch $@

$(VENV)/.dev: $(PROJECT) | $(BIN)/python
	$(INSTALL) '.[train,dev]'
	@touch $@

$(VENV)/.bench: $(PROJECT) | $(BIN)/python
	$(INSTALL) '.[bench]'
	@touch $@

serve: $(VENV)/.serve  ## install and start the service with the shipped checkpoint
	$(BIN)/caption-service serve $(ARGS)

test: $(VENV)/.dev  ## run the tests
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev  ## lint, format check, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

train: $(VENV)/.train  ## run the trainer: make train ARGS="fit --help"
	$(BIN)/python -m trainer $(ARGS)

bench: $(VENV)/.bench  ## run the benchmarks
	$(BIN)/python benchmarks/limit.py $(ARGS)

image: ## build the container image
	docker build --tag $(IMAGE) .

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
