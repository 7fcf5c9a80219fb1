#!/usr/bin/env bash
# tools/gpu_check.sh OUT: build, test and measure fcn_fast on this machine, which has PyTorch and may have a GPU, but no
# network. Every part has its own log and time limit under OUT, and the next one runs whatever became of it. Ends in a
# table and takes less than 9 minutes; its exit status is the number of parts that failed.
set -uo pipefail

if (($# != 1)); then
  echo "usage: tools/gpu_check.sh OUT" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INDEX=1 PYTHONUNBUFFERED=1
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
      124 | 137) status="timed out" ;;
      *) status=failed ;;
    esac
    tail -n 3 "$out/$name.log"
  fi
  [[ $status == ok ]] || failures=$((failures + 1))
  rows+=("$(printf '%-12s %-14s %5d' "$name" "$status" $((SECONDS - begin)))")
}

machine() {
  uname -srm
  nproc
  nvidia-smi || echo "no nvidia-smi"
  nvcc --version || /usr/local/cuda/bin/nvcc --version || echo "no nvcc"
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

build() {
  FCN_FAST_CUDA=$1 "$python" -m pip install --no-build-isolation --no-deps --verbose .
}

# -P: the source tree, which has no compiled module, must not come before the installed package.
tests() {
  "$python" -P -m pytest -q -rfE -p no:cacheprovider --continue-on-collection-errors
}

benchmarks() {
  "$python" -P -m pytest benchmarks --benchmark-only --benchmark-json="$out/benchmarks.json" \
    --benchmark-columns=median,iqr,rounds -p no:cacheprovider
}

venv=$(mktemp -d)/venv
trap 'rm -rf "$(dirname "$venv")"' EXIT
python=$venv/bin/python
export venv python out
export -f machine environment build tests benchmarks

part environment 60 bash -c environment
part machine 30 bash -c machine
if compgen -G "csrc/cuda/*.cu" >/dev/null; then
  part build 200 bash -c "build 1" # where CUDA kernels are wanted, a build without them is a failure
  [[ $status == ok ]] || part build_cpu 100 bash -c "build 0"
else
  part build 200 bash -c "build ''"
fi
part env 60 "$venv/bin/fcn-fast" env
part tests 200 bash -c tests
part benchmarks 230 bash -c benchmarks

{
  printf '%-12s %-14s %5s\n' part status seconds
  printf '%s\n' "${rows[@]}"
  printf '%-12s %-14s %5d\n' all "$failures failed" "$SECONDS"
} | tee "$out/summary.txt"
exit "$failures"
