# Every target builds .venv when it is missing, and again when pyproject.toml or constraints.txt change.
#   PYTHON=python3.12   the interpreter (3.11 or newer)
#   TORCH="torch --index-url https://download.pytorch.org/whl/cpu"   the PyTorch build, as arguments of pip install;
#                       it is kept by later runs. See README.md, "Which PyTorch".

PYTHON ?= python3
TORCH ?=
BIN := .venv/bin
STAMP := .venv/installed
CHOSEN := .venv/torch-build.txt

.PHONY: help setup demo test notebooks lint bench gpu-check real force
.DEFAULT_GOAL := help

help:
	@echo 'make setup      build .venv; TORCH="..." chooses the PyTorch build, PYTHON=... the interpreter'
	@echo 'make demo       every science in minutes on a CPU: demo/index.html'
	@echo 'make test       the tests, without those marked slow'
	@echo 'make notebooks  runs every notebook, on data that is found (SEQSSM_DATA) or made'
	@echo 'make lint       ruff and mypy'
	@echo 'make bench      the scan on this CPU, beside peers and the arithmetic limit'
	@echo 'make gpu-check  the kernels on an NVIDIA GPU: tests, then the benchmark beside peers and limits'
	@echo 'make real       the figures of the README, on real data (needs SEQSSM_DATA)'

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

# The Triton kernels run in its interpreter, and are compiled ahead of time: each in a process of its own. pytest
# answers 5 where Triton is not installed and nothing is left to run.
TRITON_TESTS := tests/kernels

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow'
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(TRITON_TESTS)/triton_engine.py || test $$? -eq 5
	$(BIN)/python -m pytest $(TRITON_TESTS)/triton_compiled.py || test $$? -eq 5

notebooks: $(STAMP)
	$(BIN)/jupyter-execute notebooks/*.ipynb

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
