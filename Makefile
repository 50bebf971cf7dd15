# Every target sets up what it needs: a virtual environment in .venv with the exact versions of constraints.txt.
#
#   make demo        train a small LoRA on the base that comes with Velatura, and show it
#   make app         open the web UI on this machine
#   make test        lint, types and the fast tests;  make test-all  the slow ones too;  make test-gpu  those for a GPU
#   make format      lay the code out as ruff does;  make lint  see that it is, and the types
#   make screenshots the README's pictures anew
#
# torch is the one large download. Linux: PyPI serves the CUDA build (several GB, needs no GPU to run). Without an
# NVIDIA GPU take the small one, once:
#
#   make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#
# macOS: PyPI's build is the right one. Another interpreter: make setup PYTHON=python3.11

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
BEGUN := $(VENV)/.begun

# Test files side by side, a core each; more than four only get in each other's way.
SPREAD := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo app format lint test test-all test-gpu screenshots clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

# .begun stays behind when an install is cut off; the environment is then built afresh, since half a package can look
# like a whole one to pip. .stamp is written last.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "there is no '$(PYTHON)' here; name yours: make setup PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "Velatura needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name a newer one: make setup PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) can't make virtual environments. Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@if [ -e $(BEGUN) ]; then echo "the last install was cut off; starting afresh"; rm -rf $(VENV); fi
	$(PYTHON) -m venv $(VENV)
	@touch $(BEGUN)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt setuptools
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --no-build-isolation -e '.[dev]'
	@rm -f $(BEGUN)
	@touch $(STAMP)

demo: setup
	$(BIN)/velatura demo

app: setup
	$(BIN)/velatura app

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint
	$(BIN)/python -m pytest $(SPREAD)

test-all: lint
	$(BIN)/python -m pytest -m "not gpu" $(SPREAD)

# What only a card can prove, skipped with a message where there is none. Tests side by side: tiny models leave the card
# waiting for Python.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu -rs -n auto --maxprocesses 4 --dist load tests/test_gpu.py tests/test_gpu_kernels.py

# The README's pictures, taken anew from a demo and a page of this checkout; needs Debian's chromium.
screenshots: setup
	VELATURA_SCREENSHOTS=1 $(BIN)/python -m pytest -m slow -s tests/test_demo.py

# What was built and cached; outputs/ is your work and stays.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find app trainer tests -name __pycache__ -type d -prune -exec rm -rf {} +
