# Every target builds .venv if it is missing, and rebuilds it after changes of pyproject.toml or constraints.txt.
#   PYTHON=python3.12   the interpreter (3.11 or newer)
#   TORCH="torch --index-url https://download.pytorch.org/whl/cpu"   the PyTorch build, as arguments of pip install;
#                       it is kept by later runs. See README.md, "Which PyTorch".

PYTHON ?= python3
TORCH ?=
BIN := .venv/bin
STAMP := .venv/installed
CHOSEN := .venv/torch-build.txt

.PHONY: help setup demo test test-long notebooks docs fuzz lint bench gpu-check real force
.DEFAULT_GOAL := help

help:
	@echo 'make setup      build .venv; TORCH="..." chooses the PyTorch build, PYTHON=... the interpreter'
	@echo 'make demo       run every science in minutes on a CPU: demo/index.html'
	@echo 'make test       run the quick tests of everything, in WORKERS=2 processes'
	@echo 'make test-long  run the tests marked long: further cases of what make test covers'
	@echo 'make notebooks  run every notebook, on real data if found (SEQSSM_DATA), otherwise on simulated data'
	@echo 'make docs       build the documentation, warnings are errors: docs/_build/html; DOCS=--execute runs the notebooks'
	@echo 'make fuzz       read 10000 damaged files with every reader, a tenth as many checkpoints (CASES=...)'
	@echo 'make lint       run ruff and mypy'
	@echo 'make bench      benchmark the scan on this CPU against peers and the arithmetic limit'
	@echo 'make gpu-check  test the kernels on an NVIDIA GPU, then benchmark them against peers and limits'
	@echo 'make real       reproduce the figures of the README on real data (requires SEQSSM_DATA)'

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(if $(TORCH),force)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifneq ($(strip $(TORCH)),)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip freeze | grep -E '^(torch|triton)==' > $(CHOSEN)
endif
	pins=constraints.txt; test ! -f $(CHOSEN) || pins=$(CHOSEN); \
	  $(BIN)/python -m pip install -c $$pins -e '.[dev]'
	touch $@

force:

demo: $(STAMP)
	$(BIN)/seqssm demo --output demo

# The Triton kernels run in Triton's interpreter and are compiled ahead of time, each in a separate process. pytest
# returns 5 if Triton is not installed and no tests remain.
TRITON_TESTS := tests/kernels
# `long` marks further cases of kinds that a quick test covers; CI runs both targets.
# Processes that share the tests; the tests of one file stay together, because they share fitted models.
WORKERS ?= 2

define run_tests
	$(BIN)/python -m pytest -m '$(1) and not slow' -n $(WORKERS) --dist loadscope
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m '$(1)' $(TRITON_TESTS)/triton_engine.py -n $(WORKERS) || test $$? -eq 5
	$(BIN)/python -m pytest -m '$(1)' $(TRITON_TESTS)/triton_compiled.py -n $(WORKERS) || test $$? -eq 5
endef

test: $(STAMP)
	$(call run_tests,not long)

test-long: $(STAMP)
	$(call run_tests,long)

notebooks: $(STAMP)
	$(BIN)/jupyter-execute notebooks/*.ipynb

DOCS ?=
docs: $(STAMP)
	$(BIN)/python docs/assemble.py docs/_build/source $(DOCS)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs/_build/source docs/_build/html

CASES ?= 10000
fuzz: $(STAMP)
	SEQSSM_FUZZ=$(CASES) $(BIN)/python -m pytest tests/fuzz

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python kernels/benchmarks/bench_cpu.py

gpu-check: $(STAMP)
	$(BIN)/python kernels/benchmarks/gpu_check.py

real: $(STAMP)
	$(BIN)/python results/real.py
