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

# Workers that each take every core slow each other down. Files stay whole: what a file's tests share is built once. They
# come in the order of tests/conftest.py, not by how many tests they have: one of few would come last, and alone.
test test-slow: export OMP_NUM_THREADS ?= 1
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Keeps the checkout's folders `kernels`, `server` and `evals` from being importable under those bare names.
SAFE := PYTHONSAFEPATH=1

.DEFAULT_GOAL := help
.PHONY: help install serve model test test-peers test-clients test-model test-slow check fmt clean
.PHONY: test-gpu gpu-smoke gpu-kernels gpu-engine gpu-prefill gpu-beside gpu-fp8 gpu-sanitizer
.PHONY: gpu-tests gpu-kernel-tests gpu-engine-tests gpu-pool-tests

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

# On a GPU. With PYTHON given: by that python's own torch and triton, whatever their versions, and nothing is installed;
# what else it lacks is looked for in the folder SITE. The folder on its path holds a link to specdec alone: in the
# checkout itself lie folders that other libraries would take for packages of theirs.
SITE ?=
ifeq ($(origin PYTHON),file)
GPU_PYTHON := $(BIN)/python
GPU_NEEDS := $(STAMP)
else
GPU_PYTHON := $(PYTHON)
GPU_NEEDS := .gpu-path/specdec
GPU_PATH := PYTHONPATH=$(CURDIR)/.gpu-path$(if $(SITE),:$(abspath $(SITE)))
# Other versions warn of other things, and their pytest may not know all of our settings.
GPU_PYTEST := -W default -o addopts=--import-mode=importlib
endif
GPU_WORKERS ?= 10
GPU_SHAPE ?= llama-3-8b
GPU_DRAFT ?= llama-3-0.5b
# Files with tests of engines on a GPU: those that say so, and those that ask for the fixture `device`.
GPU_FILES := $(shell grep -rlE 'mark\.gpu|def .*[( ]device[,)]' tests/engine tests/evals --include='test_*.py')
# Something of every kernel.
GPU_SANITIZED := grouping_of_heads or contexts_are_split or scales_are_those or named_stay_untouched or engine_s_own \
	or walks_as_the_engine or draft_is_accepted or logit_is_the_engine_s or are_the_host_s or output_may_be_the_input \
	or position_0_rotates or gates_of_any_size

# $(call ON_GPU,SECONDS[,SIGNAL]) ARGUMENTS: the python, for no longer than that. A bench that is told to end keeps what it
# has, and pytest says what failed if it is told by Ctrl-C's signal; a kernel that hangs does not hear of either.
ON_GPU = $(SAFE) $(GPU_PATH) HF_HUB_OFFLINE=1 timeout --kill-after=20 $(if $(2),--signal=$(2)) $(1) $(GPU_PYTHON)
ON_GPU_BENCH = @echo '== $@' && $(call ON_GPU,$(1)) -m specdec.cli bench
SANITIZER = $(or $(shell command -v compute-sanitizer),$(wildcard /usr/local/cuda/bin/compute-sanitizer))
# A wrong address within memory that torch keeps for later would be nobody's fault. What the driver is asked for and
# refuses, libraries try out; it is no fault of a kernel.
SANITIZED_ON_GPU = $(SAFE) $(GPU_PATH) PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout --kill-after=20 $(1) $(SANITIZER) \
	--tool $(2) --error-exitcode 1 --report-api-errors no --target-processes application-only \
	$(GPU_PYTHON) -m pytest -q -p no:cacheprovider $(GPU_PYTEST) -m 'gpu and not slow'

.gpu-path/specdec:
	@mkdir -p $(@D) && ln -sfn ../specdec $@

test-gpu: ## on a GPU: the benchmarks, each kept in evals/results/ as it comes, the tests, and the sanitizer
	@$(MAKE) --no-print-directory -j1 --keep-going gpu-smoke gpu-kernels gpu-engine gpu-prefill gpu-beside gpu-fp8 \
		gpu-tests gpu-sanitizer

# Whether anything works at all: a tiny model, drafts and graphs included.
gpu-smoke: $(GPU_NEEDS)
	$(call ON_GPU_BENCH,180) engine --shape tiny --draft-shape tiny-draft --device cuda --batch 1,3 --context 40 \
		--steps 8 $(ARGS)

# $(call GPU_TESTS,SECONDS,HOW THEY ARE SHARED OUT) FILES: in several processes. Engines on the CPU, beside which those on
# the GPU are held, take all processors in each process unless told otherwise.
GPU_TESTS = @echo '== $@' && $(call ON_GPU,$(1),INT) -m pytest -q $(GPU_PYTEST) -m gpu -k 'not gpus_pool' --durations=10 \
	$(if $(filter-out 0,$(GPU_WORKERS)),-n $(GPU_WORKERS) --dist $(2))
gpu-tests:
	@$(MAKE) --no-print-directory -j1 --keep-going gpu-kernel-tests gpu-engine-tests gpu-pool-tests
gpu-kernel-tests gpu-engine-tests: export OMP_NUM_THREADS ?= 2

# Each compiles kernels of its own, of which a file has a hundred.
gpu-kernel-tests: $(GPU_NEEDS)
	$(call GPU_TESTS,240,worksteal) tests/kernels $(ARGS)

# A file's tests share engines.
gpu-engine-tests: $(GPU_NEEDS)
	$(call GPU_TESTS,300,loadfile) $(GPU_FILES) $(ARGS)

# What is taken of the whole device's memory is measured with nobody beside.
gpu-pool-tests: $(GPU_NEEDS)
	@echo '== $@' && $(call ON_GPU,120,INT) -m pytest -q $(GPU_PYTEST) -m gpu -k gpus_pool $(GPU_FILES) $(ARGS)

gpu-kernels: $(GPU_NEEDS)
	$(call ON_GPU_BENCH,180) kernels --shape $(GPU_SHAPE) --context 1024,4096 --save $(ARGS)

gpu-engine: $(GPU_NEEDS)
	$(call ON_GPU_BENCH,240) engine --phase decode --shape $(GPU_SHAPE) --draft-shape $(GPU_DRAFT) --device cuda \
		--batch 1,16,64 --context 1024 --k 0,4 --steps 128 --save $(ARGS)

gpu-prefill: $(GPU_NEEDS)
	$(call ON_GPU_BENCH,120) engine --phase prefill --shape $(GPU_SHAPE) --device cuda --context 8192 --k 0 --save $(ARGS)

gpu-sanitizer: $(GPU_NEEDS)
	@echo '== $@'
	@test -n '$(SANITIZER)' || { \
		echo 'compute-sanitizer is not on the PATH (it comes with the CUDA toolkit): addresses and races are not checked' >&2; exit 1; }
	@$(call SANITIZED_ON_GPU,240,memcheck) tests/kernels -k '$(GPU_SANITIZED)'
	@$(call SANITIZED_ON_GPU,120,racecheck) tests/kernels/test_paged_attention.py -k contexts_are_split

gpu-beside: $(GPU_NEEDS)
	$(call ON_GPU_BENCH,240) engine --beside transformers --shape $(GPU_SHAPE) --device cuda --batch 1,8,64 \
		--context 256 --ways generate,continuous --new-tokens 48 --repeats 2 --save $(ARGS)

gpu-fp8: $(GPU_NEEDS)
	$(call ON_GPU_BENCH,120) engine --phase decode --shape $(GPU_SHAPE) --device cuda --kv-cache-dtype fp8 \
		--batch 64 --context 4096 --k 0 --save $(ARGS)

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
	rm -rf $(VENV) .venv-clients .gpu-path build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
