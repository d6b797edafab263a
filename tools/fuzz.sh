#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fuzzes with libFuzzer: the library in C++ under AddressSanitizer and UndefinedBehaviorSanitizer (needs clang), then the
# readers in Python (needs the package atheris). Any finding fails and leaves its input in build/fuzz.
# Usage: tools/fuzz.sh [seconds for each fuzzer]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}
python=${BCQ_PYTHON:-.venv/bin/python}
build=${BCQ_BUILD:-build}/fuzz
data=$build/data
export OMP_NUM_THREADS=1 PYTHONPATH=tests

# -O1: instrumented kernels take minutes to compile at -O3, and as many reads and writes are checked.
cmake -S tests/native -B "$build" -G Ninja -DCMAKE_CXX_COMPILER="${CLANGXX:-clang++}" -DCMAKE_BUILD_TYPE=None \
  -DCMAKE_CXX_FLAGS="-O1 -g1 -DNDEBUG" -DBCQ_FUZZ=ON -DBCQ_SANITIZE=fuzzer-no-link,address,undefined > /dev/null
cmake --build "$build" --target fuzz_node fuzz_kernels fuzz_model fuzz_decoder
"$python" -m fuzz.seeds "$data"
mkdir -p "$build/corpus_node" "$build/corpus_kernels"
options=(-max_total_time="$seconds" -len_control=0 -timeout=60 -print_final_stats=1 -artifact_prefix="$build/")

"$build/fuzz_node" "${options[@]}" -max_len=256 "$build/corpus_node"
"$build/fuzz_kernels" "${options[@]}" -max_len=256 "$build/corpus_kernels"
BCQ_FUZZ_EXPORT=$data/export "$build/fuzz_model" "${options[@]}" -max_len=16384 -rss_limit_mb=1024 "$data/corpus_model"
BCQ_FUZZ_EXPORT=$data/decoder "$build/fuzz_decoder" "${options[@]}" -max_len=16384 -rss_limit_mb=1024 "$data/corpus_decoder"
"$python" -m fuzz.fuzz_readers "$data" "${options[@]}" -max_len=16384
