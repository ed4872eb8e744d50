#!/usr/bin/env bash
# Build llama.cpp and the extension so that they look at themselves, and run the tests on that build.
#
#   tests/sanitize.sh address       AddressSanitizer, LeakSanitizer and UBSan: 100,000 steps of the machine, then the tests
#                                   of the nouns without the real models
#   tests/sanitize.sh assertions    assert() on, in llama.cpp and in libstdc++: the whole suite
#
# More arguments go to pytest instead of these tests. Each build has a folder of its own, build/sanitize-KIND.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?address or assertions}
shift
home=$PWD/build/sanitize-$kind
case $kind in
    address) flags="-fsanitize=address,undefined -fno-omit-frame-pointer" optimize="-O1 -g1" openmp=OFF ;;
    assertions) flags="" optimize="-O2 -g1" openmp=ON ;;
    *) echo "$kind: address or assertions" >&2 && exit 2 ;;
esac

# Debug is the only build type without -DNDEBUG. The sanitizers do not know OpenMP's threads.
[ -d "$home/venv" ] || "${PYTHON:-python3}" -m venv "$home/venv"
"$home/venv/bin/pip" install -q 'scikit-build-core>=0.11' 'cffi>=1.17' pip cmake ninja
"$home/venv/bin/pip" install -q --no-build-isolation -e '.[test]' \
    --config-settings=build-dir="$home/cmake" \
    --config-settings=cmake.build-type=Debug \
    --config-settings=install.strip=false \
    --config-settings=cmake.define.CMAKE_C_FLAGS="$flags" \
    --config-settings=cmake.define.CMAKE_CXX_FLAGS="$flags" \
    --config-settings=cmake.define.CMAKE_C_FLAGS_DEBUG="$optimize" \
    --config-settings=cmake.define.CMAKE_CXX_FLAGS_DEBUG="$optimize" \
    --config-settings=cmake.define.GGML_OPENMP=$openmp

python=$home/venv/bin/python
nouns=(tests/{model,context,sampling,engine} tests/files/test_gguf.py tests/tasks/test_embedding.py tests/native/test_handle.py)
# With AddressSanitizer the frames of std::regex are several times as large, and the stack for a million letters too small.
deep=(--deselect=tests/model/test_tokenize_limits.py::test_{runs_at_the_limit,runs_at_the_limit_in_other_pre_tokenizers,a_million_letters})
deep+=(--deselect=tests/engine/test_schedules.py::test_memory_is_flat) # the sanitizer keeps what is freed
if [ "$kind" = address ]; then
    LD_PRELOAD=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)
    export LD_PRELOAD PYTHONMALLOC=malloc # so that ffi.new() and NumPy are looked at, too
    # pytest keeps what a test prints, and loses it where the process ends.
    rm -f "$home"/report.*
    trap 'cat "$home"/report.* 2>/dev/null || true' EXIT
    export ASAN_OPTIONS=allocator_may_return_null=1:exitcode=99:log_path=$home/report
    export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:suppressions=$PWD/tests/ubsan.supp:log_path=$home/report
    export LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp
    if [ $# -gt 0 ]; then
        "$python" -m pytest "$@"
    else
        "$python" -m pytest -q -p no:logging tests/whole/test_machine.py --machine-steps=100000
        # Children that die on purpose leave something behind.
        ASAN_OPTIONS+=:detect_leaks=0 "$python" -m pytest -q --tiny "${deep[@]}" "${nouns[@]}"
    fi
else
    "$python" -m pytest "${@:-tests}"
fi
