# Everything a user or a contributor runs. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CLIENTS := $(patsubst tests/clients/%.txt,.venv-clients/%/.installed,$(wildcard tests/clients/*.txt))
ARGS ?=
WORKERS ?= 2

# Tests run beside other work: threads that wait should sleep.
test test-model test-slow test-peers test-clients check: export OMP_WAIT_POLICY ?= passive

# Workers that each take every core slow each other down. Files stay whole: what a file's tests share is built once.
test test-slow: export OMP_NUM_THREADS ?= 1
PARALLEL := -n $(WORKERS) --dist loadfile

# Keeps the checkout's folders `kernels`, `server` and `evals` from being importable under those bare names.
SAFE := PYTHONSAFEPATH=1

.DEFAULT_GOAL := help
.PHONY: help install serve model test test-peers test-clients test-model test-slow check fmt clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  Flags pass through ARGS: make serve ARGS="--spec ngram --port 9000"'

install: $(STAMP) ## create .venv with everything that running, testing and checking need

# A Python without ensurepip (Debian and Ubuntu ship it in a package of its own) still makes a venv when it has pip.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo 'make: $(PYTHON) not found; install Python 3.11 or newer (Debian, Ubuntu: apt install python3 python3-venv) or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"make: $(PYTHON) is Python {v.major}.{v.minor}; specdec needs 3.11 or newer (Debian, Ubuntu: apt install python3.11 python3.11-venv, then make PYTHON=python3.11 $(MAKECMDGOALS))")'
	@if $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -c 'import venv, pip' 2>/dev/null; then \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install --quiet pip; \
	else \
		$(PYTHON) -c 'import sys; sys.exit("make: $(PYTHON) cannot create virtual environments; install the package python%d.%d-venv (Debian, Ubuntu: apt install python%d.%d-venv) and run make again" % (sys.version_info[:2] * 2))'; \
	fi

$(STAMP): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

model: $(STAMP) ## pull the default model into the cache
	@$(BIN)/specdec pull $(ARGS)

serve: $(STAMP) ## pull the default model and serve it on 127.0.0.1:8000
	@$(BIN)/specdec serve $(ARGS)

test: $(STAMP) ## the tests that need no model, no GPU and little time
	$(SAFE) $(BIN)/pytest -m "not slow and not gpu and not model and not peers and not clients" $(PARALLEL) $(ARGS)

test-model: $(STAMP) ## the tests on the default model, which they pull
	@$(BIN)/specdec pull
	$(SAFE) $(BIN)/pytest -m "model and not slow and not gpu" $(ARGS)

test-peers: $(STAMP) ## our verdicts beside those of llguidance, xgrammar and outlines-core, which it installs
	$(BIN)/python -m pip install --quiet -e '.[dev,peers]'
	$(SAFE) $(BIN)/pytest -m peers $(ARGS)

# Their requirements exclude each other, so each has an environment of its own.
.venv-clients/%/.installed: tests/clients/%.txt | $(STAMP)
	@$(BIN)/python -m venv --without-pip $(@D)
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet -r $<
	@touch $@

test-clients: $(STAMP) $(CLIENTS) ## client libraries and schemathesis against the server, each in its own environment
	$(SAFE) $(BIN)/pytest -m clients $(ARGS)

test-slow: $(STAMP) ## the tests that take more than ten seconds each
	@$(BIN)/specdec pull
	$(SAFE) $(BIN)/pytest -m "slow and not gpu" $(PARALLEL) $(ARGS)

check: $(STAMP) ## lint, format, types, import directions, layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(SAFE) $(BIN)/pytest -q tests/test_layout.py

fmt: $(STAMP) ## format the tree and apply the safe lint fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## remove .venv, caches and build output
	rm -rf $(VENV) .venv-clients build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
