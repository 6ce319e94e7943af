# Two commands: `make demo` runs the main job, `make test` passes the tests. Both set up first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
TORCH := torch==2.13.0+cpu
# Used only where the configured package index has no CPU build of torch.
TORCH_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo test unit lint format setup soak bench clean

demo: .venv/.ready
	$(BIN)/rlsys run configs/demo.yaml

# Small tensors and waits for processes to start: two tests at a time, with one thread per process,
# take little more than half the time of one after the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --durations=12

test: lint .venv/.ready
	$(PYTEST) tests/unit
	$(PYTEST) --no-loadscope-reorder tests/integration

unit: .venv/.ready
	$(PYTEST) tests/unit

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.ready
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

setup: .venv/.ready

.venv/.ready: requirements/cpu.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" || \
	  { echo "rlsys is tested on Python 3.11; run: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(TORCH) || $(BIN)/pip install -q --index-url $(TORCH_INDEX) $(TORCH)
	$(BIN)/pip install -q -r requirements/cpu.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	$(BIN)/python -m rlsys.torchvision_shim
	@touch $@

clean:
	rm -rf .venv

# What takes longer than the tests: the recipes from nothing with several seeds, held against what
# they promise. What each run showed is kept in benchmarks/soak.json and shown in benchmarks/soak.md.
# All take about five hours; `make soak` continues where it was stopped, `make soak SOAK="demo-0"`
# runs some of them; remove runs/soak to start again.
SOAK := demo-0 demo-1 demo-2 demo-3 demo-4 grpo-0 grpo-1 grpo-2 tradeoff-0 tradeoff-1 tradeoff-2 \
  blank-0 dream-0 dream-1 dream-2 tiny_safe_rlhf_v-0
soak: .venv/.ready
	for run in $(SOAK); do \
	  [ -f runs/soak/$$run/commit ] || { \
	    $(BIN)/rlsys run configs/$${run%-*}.yaml runs_dir=runs/soak name=$$run seed=$${run#*-} && \
	    { git rev-parse --short HEAD; git diff --quiet HEAD -- rlsys actors configs || echo dirty; } \
	      | paste -sd- > runs/soak/$$run/commit && \
	    { $(BIN)/python benchmarks/soak.py runs/soak/$$run || true; }; } || exit 1; \
	done
	$(BIN)/python benchmarks/soak.py $(addprefix runs/soak/,$(SOAK))

# Speed beside TRL, on an idle machine: benchmarks/bench.md.
bench: .venv/.ready
	$(BIN)/python -m benchmarks.bench
