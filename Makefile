# make demo | test | test-all | check | docs | evidence | format | wheel | clean. Needs Python 3.11 or later with pip; nothing else.
# The environment is made in .venv on first use; `make VENV=elsewhere test` uses another place.

PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/digits
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check docs evidence format wheel clean

help:
	@echo "make demo      train on real digits, watch influence evolve: dumps and TensorBoard logs in $(OUT)"
	@echo "make test      the tests that take seconds"
	@echo "make test-all  all tests, the slow ones too"
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
# Alone and first, at the version that has a CPU build: a later one brings gigabytes of CUDA packages along.
	@$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.examples $(VENV)/.test $(VENV)/.dev $(VENV)/.docs $(VENV)/.peers: $(VENV)/.%: $(VENV)/.torch pyproject.toml
	@$(PIP) --editable '.[$*]'
	@touch $@
