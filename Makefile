# One verb each. Every verb creates .venv and installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROJECT := pyproject.toml constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# setuptools warns that it might one day read pyproject.toml in another way
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
# `serve` takes torch only where a driver of NVIDIA's could use it; `make serve NVIDIA=` never does.
NVIDIA ?= $(wildcard /dev/nvidiactl)
ENGINE := $(if $(NVIDIA),gpu,cpu)
EXTRA_gpu := [gpu]
TOLD_gpu := for the GPU of $(NVIDIA): with the extra 'gpu', torch
TOLD_cpu := for the CPU: there is no /dev/nvidiactl
LONG := long or gpu
ARGS ?=
IMAGE ?= caption-service

.PHONY: help serve test test-all check train bench image constraints openapi clean

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.cpu $(VENV)/.gpu: $(PROJECT) | $(BIN)/python
	$(INSTALL) '.$(EXTRA_$(ENGINE))'
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

serve: $(VENV)/.$(ENGINE)  ## install and start the service with the shipped checkpoint
	@echo "Installed $(TOLD_$(ENGINE))." >&2
	$(BIN)/caption-service serve $(ARGS)

# A core for each of the two: torch's threads would wait for one another by spinning.
test: $(VENV)/.dev  ## run the tests but the long ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not ($(LONG))" $(ARGS)
	@echo "Left out: the long tests (soak, rollout, balancer, distributed training, kill at any change, ...). make test-all runs them too."

test-all: $(VENV)/.dev  ## run every test, as CI does
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

image:  ## build the container image for a CPU; ARGS="--target gpu" for a GPU
	docker build --tag $(IMAGE) $(ARGS) .

constraints: | $(BIN)/python  ## write constraints.txt anew, with the newest versions that fit
	$(BIN)/python .ci/constraints.py

openapi: $(VENV)/.dev  ## write docs/openapi.json anew
	PYTHONPATH=. $(BIN)/python .ci/openapi.py

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
