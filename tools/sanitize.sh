#!/usr/bin/env bash
# The compiled kernels of one instruction set under AddressSanitizer and UndefinedBehaviorSanitizer: random calls, held
# against the reference, and with `tests` the tests of the operations too. Builds in a copy, with g++.
#
#   tools/sanitize.sh [baseline|avx2|avx512] [seconds of random calls] [tests]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

isa=${1:-avx2} seconds=${2:-60} tests=${3:-}
declare -A flags=([baseline]='"", 16' [avx2]='AVX2, 32' [avx512]='AVX512, 64')
[[ -n "${flags[$isa]:-}" ]] || { echo "sanitize.sh: expected baseline, avx2 or avx512, got $isa" >&2; exit 2; }
python=$(command -v "${PYTHON:-python3}")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -a csrc fcn_fast kernels tests tools _build.py setup.py pyproject.toml README.md LICENSE "$work"
cd "$work"
rm -f fcn_fast/_C.*
# One instruction set, in the place of the baseline: the others would take as long to compile again.
sed -i "s/^X86 = .*/X86 = False/; s/^ISAS = .*/ISAS = {'baseline': (${flags[$isa]})}/" setup.py
sanitizers=-fsanitize=address,undefined
CXX=g++ CXXFLAGS="-O1 -g1 $sanitizers -fno-sanitize=vptr -fno-sanitize-recover=undefined" LDFLAGS=$sanitizers \
  FCN_FAST_CUDA=0 "$python" setup.py -q build_ext --inplace

export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$work OMP_WAIT_POLICY=passive
"$python" -P -c "import fcn_fast; print(fcn_fast._C.__file__)"
"$python" -P tools/fuzz.py --seconds "$seconds"
if [[ -n "$tests" ]]; then
  # The installed module is another one than this.
  FCN_FAST_ALLOW_REFERENCE=1 "$python" -P -m pytest -q -p no:cacheprovider -m "isa and not cuda" -k "not reference" tests/ops
fi
