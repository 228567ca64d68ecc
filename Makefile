# make demo | test | test-all | test-lowest | test-clients | check | docs | evidence | format | wheel | clean. Needs Python 3.11 or later with pip; nothing else.
# The environment is made in .venv on first use; `make VENV=elsewhere test` uses another place.

PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
OUT ?= runs/digits
BIN := $(VENV)/bin
# At a version with a CPU build where the index has one, in every installation: others bring gigabytes of CUDA packages along.
TORCH := torch==2.13.0
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-compile
# On all cores, where pip takes one; what is written for another Python does not compile, and need not.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

# Each process that a test starts would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-lowest test-clients check docs evidence format wheel clean

help:
	@echo "make demo      train on real digits, watch influence evolve: dumps and TensorBoard logs in $(OUT)"
	@echo "make test      the tests that take seconds"
	@echo "make test-all  all tests, the slow ones too"
	@echo "make test-lowest  the same with the oldest versions of all dependencies, but for torch, in $(LOWEST)"
	@echo "make test-clients  trainings with other libraries, each in an environment in .venv-clients; LIBRARY=name for one"
	@echo "make check     lint, formatting, types, import layers"
	@echo "make docs      the documentation site, into site/"
	@echo "make evidence  measure every table of the documentation anew; hours"
	@echo "make format    mend lint and formatting where a tool can"
	@echo "make wheel     build the wheel into dist/"
	@echo "make clean     remove what was built, the environment too; runs/ stays"

demo: $(VENV)/.examples
	@$(BIN)/python examples/digits.py --out $(OUT)

test: $(VENV)/.test
	@$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

test-all: $(VENV)/.test
	@$(BIN)/python -m pytest -q -n auto --dist worksteal --timeout=1500

test-lowest: $(LOWEST)/.test
	@$(LOWEST)/bin/python -m pytest -q -n auto --dist worksteal -m "not slow"

test-clients: $(VENV)/.torch
	@$(PIP) uv
	@$(BIN)/python tests/clients/run.py $(LIBRARY)

check: $(VENV)/.dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports

# NO_MKDOCS_2_WARNING silences an advertisement.
docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html"

evidence: $(VENV)/.peers
	@$(BIN)/python benchmarks/evidence.py

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

wheel: $(VENV)/.dev
	@rm -rf dist
	@$(BIN)/python -m build --wheel --outdir dist

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# One stamp for each set of packages, so that a second run installs nothing.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bif_lightning needs Python 3.11 or later; name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "Installing into $(VENV); this takes some minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH)
	@$(COMPILE)
	@touch $@

# kronfluence asks for torchvision without using it here, and the one on PyPI does not load beside a CPU build of torch.
$(VENV)/.peers: $(VENV)/.torch pyproject.toml
	@$(PIP) $(TORCH) --editable '.[peers]'
	@$(BIN)/python -m pip --disable-pip-version-check uninstall -qq -y torchvision
	@touch $@

$(VENV)/.examples $(VENV)/.test $(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: $(VENV)/.torch pyproject.toml
	@$(PIP) $(TORCH) --editable '.[$*]'
	@$(COMPILE)
	@touch $@

# What .ci/run needs, at once: each installation resolves all and builds the package.
$(VENV)/.all: $(VENV)/.torch pyproject.toml
	@$(PIP) $(TORCH) --editable '.[dev,docs]'
	@$(COMPILE)
	@touch $(addprefix $(VENV)/.,all dev test examples docs)

# Older builds of torch on PyPI bring gigabytes of CUDA packages along.
$(LOWEST)/.test: $(VENV)/.torch pyproject.toml tests/lowest.txt
	@$(PIP) uv
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	@$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --override tests/lowest.txt \
		$(TORCH) --editable '.[test]'
	@touch $@
