#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The native test programs, a decoder on one thread and on four, and the suite's part for the runtime, on a library built
# with sanitizers; any finding fails.
# Usage: tools/sanitize.sh address,undefined | undefined | thread [arguments for pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
sanitizers=$1
shift
build=${BCQ_BUILD:-build}/${sanitizers//,/-}
python=${PYTHON:-.venv/bin/python}

# -O1: instrumented kernels take minutes to compile at -O3, and as many reads and writes are checked.
cmake -S tests/native -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-O1 -g1 -DNDEBUG" \
  -DCMAKE_CXX_COMPILER=g++ -DBCQ_SANITIZE="$sanitizers" > /dev/null
cmake --build "$build"

case $sanitizers in
  address*) preload=libasan.so ;;
  *) preload=libubsan.so ;;
esac
# Python keeps much until it ends, so leaks are looked for in the native programs alone.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$build/planned_failures" "$folder"
"$build/threads" 20
"$python" -m bcq.cli export compiler/bcq/demo_model --output "$folder/demo" --bits 3 --quiet
for count in 1 4; do "$build/native" "$folder/demo" 40 5 6 7 8 9 --threads $count > "$folder/$count"; done
cmp "$folder/1" "$folder/4"
# ONNX Runtime's own pool is not built with ThreadSanitizer, which therefore cannot see how it synchronizes.
[ "$sanitizers" = thread ] && exit

# Programs that the tests compile themselves are linked without sanitizers: those tests stay out.
# AddressSanitizer keeps freed blocks for a while: what a closed session gives back is not measured under it.
# Exceptions are intercepted where the C++ library is there from the start, which in Python it is not.
export LD_PRELOAD="$(g++ -print-file-name=$preload) $(g++ -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=${TSAN_OPTIONS:-} UBSAN_OPTIONS=print_stacktrace=1
export BCQ_LIBRARY=$PWD/$build/runtime/libbcq_ops.so
case $build in /*) BCQ_LIBRARY=$build/runtime/libbcq_ops.so ;; esac
"$python" -m pytest -q -n 0 -p no:cacheprovider tests/test_core.py tests/test_kernels_avx2.py \
  tests/test_kernels_exact.py tests/test_kernels_gather.py tests/test_runtime.py tests/test_runtime_*.py \
  tests/test_guard_pages.py tests/test_hostile_models.py tests/test_hostile_faults.py \
  --deselect tests/test_hostile_faults.py::test_every_call_and_every_allocation_of_the_library_may_fail \
  --deselect tests/test_runtime_resident.py::test_sessions_of_one_model_share_a_copy_and_closing_them_gives_it_back "$@"
