#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fuzzes the library with clang's libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer; any finding fails and
# leaves its input in build/fuzz. Usage: tools/fuzz.sh [seconds for each target]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}
build=${BCQ_BUILD:-build}/fuzz

# -O1: instrumented kernels take minutes to compile at -O3, and as many reads and writes are checked.
cmake -S tests/native -B "$build" -G Ninja -DCMAKE_CXX_COMPILER="${CLANGXX:-clang++}" -DCMAKE_BUILD_TYPE=None \
  -DCMAKE_CXX_FLAGS="-O1 -g1 -DNDEBUG" -DBCQ_FUZZ=ON -DBCQ_SANITIZE=fuzzer-no-link,address,undefined > /dev/null
cmake --build "$build" --target fuzz_node fuzz_kernels
for target in node kernels; do
  mkdir -p "$build/corpus_$target"
  "$build/fuzz_$target" -max_total_time="$seconds" -max_len=256 -len_control=0 -print_final_stats=1 \
    -artifact_prefix="$build/" "$build/corpus_$target"
done
