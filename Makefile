# One command each: `make lab` opens the course, `make test` runs every test. Both install what they need first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COURSE := $(BIN)/python -m cme295lab.course
WORKERS ?= 2
# One thread per process: several run at the same time, and two threads on a busy machine are slower than one.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest
NO_GPU_TESTS := -m "not gpu and not browser"

.DEFAULT_GOAL := help
.PHONY: help setup lab run test lint types unit unit-without-triton nbval papermill browser check bench test-gpu notebooks release setup-browser clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install the course and its tools (again only when their lists change)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make setup: $(PYTHON) is older than 3.11; run: make setup PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

lab: setup ## open the course in JupyterLab (ARGS="--no-browser --port 8899")
	$(BIN)/cme295lab lab $(ARGS)

run: setup ## execute all notebooks; copies and an index page go to build/run (ARGS="07 --profile fast")
	$(BIN)/cme295lab run $(ARGS)

test: lint types check unit unit-without-triton nbval papermill browser ## everything below but benchmarks and GPU tests
	@echo "make test: all of it passed"

lint: setup ## ruff
	$(BIN)/ruff check .

types: setup ## mypy
	$(BIN)/mypy

check: setup ## notebooks match their text, links lead somewhere, exercises are fresh, nothing stored is too large
	$(COURSE) check

unit: setup ## unit tests, and the examples in docstrings
	$(PYTEST) -n $(WORKERS) --dist loadfile $(NO_GPU_TESTS) --doctest-modules --ignore=cme295lab/kernels tests cme295lab

# What runs kernels, as on macOS and Windows: tests/without_triton makes Python start as if Triton were not installed.
WITHOUT_TRITON := $(addprefix tests/,simulator attention kernels grading widgets)
# Exercises on memory and on many processes run no kernel: once is enough.
NO_KERNELS_IN := $(patsubst %,--ignore-glob='*/tests/grading/test_%.py',ring_* ddp_* distributed zero_* memory_* recompute decoding flops_accounting scaling_fit moe_routing kv_cache float_formats loss_scaling quantizers nf4 qlora prefix_tuning sft_loss_mask lora)

unit-without-triton: setup ## what runs kernels, again, as where Triton has no packages
	PYTHONPATH=tests/without_triton $(PYTEST) -n $(WORKERS) --dist loadfile $(NO_GPU_TESTS) $(NO_KERNELS_IN) $(WITHOUT_TRITON)

nbval: setup ## every cell of every notebook runs (fast profile), marked cells print what is stored
	$(ONE_THREAD) $(BIN)/cme295lab check --workers $(WORKERS)

papermill: setup ## every notebook and solution runs under papermill (fast profile)
	$(ONE_THREAD) $(BIN)/cme295lab run --profile fast --output build/run-fast $(wildcard notebooks/*.ipynb solutions/*/*.ipynb)

browser: setup ## drive JupyterLab in a real Chromium
	$(PYTEST) -m browser tests/browser

bench: setup ## measure what the README claims (ARGS=...)
	$(BIN)/cme295lab bench $(ARGS)

test-gpu: setup ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu tests

notebooks: setup ## build the notebooks whose text or library changed (ARGS="--force 07_flash_attention")
	$(COURSE) build $(ARGS)

release: setup ## generate exercises/ from solutions/ with nbgrader
	$(COURSE) release

setup-browser: setup ## find a Chromium for the browser tests, or install one
	$(COURSE) setup-browser

clean: ## remove build outputs and caches (not .venv, not a gradebook)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
