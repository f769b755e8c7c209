# make install | demo | test | test-slow | check | k8s-check | dashboards
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export DS_ACCELERATOR ?= $(shell test -e /dev/nvidia0 || echo cpu)

.PHONY: install demo test test-slow check k8s-check dashboards clean

install: $(VENV)/.installed

demo: install
	$(BIN)/python trainer/main.py

# A file at a time on each of two workers: most of them wait for processes of their own.
test: $(VENV)/.installed-dev check
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Chart, dashboards, alerts and image: rendered, validated, tried against a real Prometheus and a local Ray.
k8s-check: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/k8s

dashboards: $(VENV)/.installed-dev
	$(BIN)/python -m k8s.generate

# torch comes first and in its exact version, so that nothing later replaces it. On Linux pip's build of it brings CUDA along; for the small
# CPU build point PIP_EXTRA_INDEX_URL at PyTorch's CPU wheels. DeepSpeed's set-up imports torch, so it builds outside isolation.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch setuptools wheel ninja packaging numpy
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation deepspeed
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e .[dev]
	touch $@

clean:
	rm -rf $(VENV) runs
