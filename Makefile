# Needs Python 3.11 or later and make. All else goes into .venv, at the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench clean

help:
	@echo "make demo    run an agent against the scripted model: no key, no network"
	@echo "make test    lint, then all tests"
	@echo "make lint    ruff and pyright"
	@echo "make bench   measure what this adds to the bare SDK (about 8 minutes)"
	@echo "make clean   remove all that the above made"

demo: $(VENV)/.installed-local
	@$(BIN)/host_client demo

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

bench: $(VENV)/.installed-dev
	@$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find agent_runner host_client tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The build backend (editables is its part) comes first and from the same pins: pip would fetch its newest into an isolated
# build, and how that can be pinned changes from one pip to the next.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing sandspan[$*] into $(VENV), pinned by constraints.txt (the Claude CLI in it is 365 MB)"
	@$(PIP) install -c constraints.txt hatchling editables
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[$*]'
	@touch $@ $(if $(filter dev,$*),$(VENV)/.installed-local) # dev holds local

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or later" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) -V 2>&1) is too old: make PYTHON=/path/to/python3.11 (or later)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make a venv: install python3-venv (apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
