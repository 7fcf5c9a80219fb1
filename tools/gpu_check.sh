#!/usr/bin/env bash
# tools/gpu_check.sh OUT: build, test and measure fcn_fast on this machine, which has PyTorch and may have a GPU, but no
# network. Every part has its own log and time limit under OUT, the most telling first, and the next one runs whatever
# became of it. Ends in a table and takes less than 9 minutes; its exit status is the number of parts that failed. What
# this machine has no tool or GPU for is "not here" and no failure.
set -uo pipefail

if (($# != 1)); then
  echo "usage: tools/gpu_check.sh OUT" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/local/cuda/bin PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INDEX=1 PYTHONUNBUFFERED=1
unset FCN_FAST_ALLOW_REFERENCE

deadline=525 # seconds from the start; no part begins or lasts past it
rows=()
failures=0

# part NAME LIMIT COMMAND...: run it with its output in OUT/NAME.log, for LIMIT seconds at most.
part() {
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  local left=$((deadline - SECONDS))
  ((limit < left)) || limit=$left
  if ((limit < 5)); then
    status="no time left"
  else
    echo "--- $name (at most $limit s)"
    # An interrupted pytest still reports, and writes the measurements that it has.
    timeout --signal=INT --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1 </dev/null
    case $? in
      0) status=ok ;;
      3) status="not here" ;;
      124 | 137) status="timed out" ;;
      *) status=failed ;;
    esac
    tail -n 3 "$out/$name.log"
  fi
  [[ $status == ok || $status == "not here" ]] || failures=$((failures + 1))
  rows+=("$(printf '%-12s %-14s %5d' "$name" "$status" $((SECONDS - begin)))")
}

# needs TOOL...: beside a GPU.
needs() {
  [[ $gpu == True ]] || { echo "no GPU"; exit 3; }
  for tool in "$@"; do
    command -v "$tool" >/dev/null || { echo "no $tool"; exit 3; }
  done
}

machine() {
  uname -srm
  nproc
  nvidia-smi || echo "no nvidia-smi"
  nvcc --version || echo "no nvcc"
  "$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())'
  "$python" -m pip list
}

# An environment of its own, over the packages that are here: nothing of this machine's is changed. Where the Python here
# is a virtual environment itself, its packages are not the system's, so they are named by path.
environment() {
  "${PYTHON:-python3}" -m venv --without-pip "$venv" || return
  "${PYTHON:-python3}" - "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'PYTHON'
import site
import sys
from pathlib import Path

lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
Path(sys.argv[1], "packages_of_this_machine.pth").write_text("".join(lines))
PYTHON
}

# For the GPU that is here, which takes a seventh of the time.
build() {
  local arch='import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))'
  TORCH_CUDA_ARCH_LIST=$("$python" -c "$arch" 2>/dev/null) FCN_FAST_CUDA=$1 \
    "$python" -m pip install --no-build-isolation --no-deps --force-reinstall --verbose .
}

# -P, here and below: the source tree, which has no compiled module, must not come before the installed package.
calls() {
  needs
  "$python" -P tools/gpu_calls.py
}

# A process a file: what takes the time is compiling Triton's kernels, on one core each.
tests() {
  needs
  mkdir -p "$out/tests"
  printf '%s\n' tests/{cuda,kernels,ops}/test_*.py | xargs -P "$(nproc)" -I{} bash -c '
    log=$out/tests/$(tr / - <<<"${1#tests/}").log
    "$python" -P -m pytest "$1" -m cuda -q -rfE -p no:cacheprovider >"$log" 2>&1
    code=$?
    echo "$1: $(tail -n 1 "$log")"
    ((code == 0 || code == 5))' _ {}
}

aims() {
  needs
  "$python" -P tools/gpu_aims.py "$out/aims.json"
}

# Every allocation by itself, so that what lies past its end is nobody's.
sanitizer() {
  needs compute-sanitizer
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 "$python" -P tools/gpu_calls.py
}

profile() {
  needs ncu
  local kernels='regex:^_?(forward|backward|add_blocks|sample|gather|argmax|cells|combine|weigh|finish)'
  ncu --force-overwrite --export "$out/ncu" --kernel-name "$kernels" --launch-count 80 --clock-control none \
    --section SpeedOfLight --section MemoryWorkloadAnalysis --section LaunchStats --section Occupancy \
    "$python" -P tools/gpu_calls.py --large || return 1
  ncu --import "$out/ncu.ncu-rep" --page details
}

benchmarks() {
  needs
  "$venv/bin/fcn-fast" bench --quick --device cuda --json "$out/benchmarks.json"
}

venv=$(mktemp -d)/venv
trap 'rm -rf "$(dirname "$venv")"' EXIT
python=$venv/bin/python
export venv python out
export -f needs machine environment build calls tests aims sanitizer profile benchmarks

part environment 60 bash -c environment
gpu=$("$python" -c 'import torch; print(torch.cuda.is_available())' 2>/dev/null)
export gpu
part machine 30 bash -c machine
part build 150 bash -c "build 1" # where CUDA kernels are wanted, a build without them is a failure
[[ $status == ok ]] || part build_cpu 100 bash -c "build 0"
part env 60 "$venv/bin/fcn-fast" env
part calls 60 bash -c calls
part tests 150 bash -c tests
part aims 120 bash -c aims
part memcheck 60 bash -c "sanitizer memcheck"
part racecheck 40 bash -c "sanitizer racecheck"
part initcheck 40 bash -c "sanitizer initcheck"
part ncu 70 bash -c profile
part benchmarks 90 bash -c benchmarks

{
  printf '%-12s %-14s %5s\n' part status seconds
  printf '%s\n' "${rows[@]}"
  printf '%-12s %-14s %5d\n' all "$failures failed" "$SECONDS"
} | tee "$out/summary.txt"
exit "$failures"
