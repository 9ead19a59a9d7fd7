# Everything runs in .venv, made on first use. Nothing else is needed than Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# tests/support lets timm import its torchvision where only the CPU build of PyTorch is installed.
export PYTHONPATH := $(CURDIR)/tests/support$(if $(PYTHONPATH),:$(PYTHONPATH))

# Searches start hundreds of processes: what Python has compiled for one is kept for the next.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint bench clean

demo: $(STAMP)
	$(BIN)/alula demo

# A file's tests run in one process: what they share is made once.
test: $(STAMP) lint
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder \
		--durations 20 --durations-min 20

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/recipes.py
	$(BIN)/python benchmarks/folder.py
	$(BIN)/python benchmarks/resnet20.py

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# PyTorch first: with 2.13.0 there, nothing asks for a newer build with its CUDA packages. torchvision
# (for timm, tests and benchmarks only) without its dependencies, for the same reason.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps torchvision timm
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
