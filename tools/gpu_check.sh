#!/usr/bin/env bash
# tools/gpu_check.sh OUT [PART...]: build, test and measure fcn_fast on this machine, which has PyTorch and may have a
# GPU, but no network. Every part has its own time limit, the most telling come first, and the next one runs whatever
# became of it. Named parts run alone, on what environment and build make first.
# OUT gets few files, each as soon as there is something for it: summary.txt, a line a part; log.txt, what all of them
# said; operations.json, stages.json, train_step.json and quick.json, what was measured; ncu.ncu-rep. Takes less than 9
# minutes, or GPU_CHECK_SECONDS; its exit status is the number of parts that failed. What this machine has no tool or GPU
# for is "not here" and no failure.
set -uo pipefail

if (($# == 0)); then
  echo "usage: tools/gpu_check.sh OUT [PART...]" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
wanted=" ${*:2} "
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/local/cuda/bin PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INDEX=1 PYTHONUNBUFFERED=1
unset FCN_FAST_ALLOW_REFERENCE

deadline=${GPU_CHECK_SECONDS:-525} # seconds from the start; no part begins or lasts past it
rows=("$(printf '%-12s %-14s %5s' part status seconds)")
failures=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$out/log.txt"

# part NAME LIMIT COMMAND...: run it for LIMIT seconds at most. The logs of what it starts by itself are in $logs.
part() {
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  [[ $wanted == "  " || " environment build build_cpu $wanted" == *" $name "* ]] || return
  local left=$((deadline - SECONDS))
  ((limit < left)) || limit=$left
  rm -rf "$logs"
  mkdir "$logs"
  if ((limit < 5)); then
    status="no time left"
  else
    echo "--- $name (at most $limit s)"
    # An interrupted pytest still reports, and writes the measurements that it has.
    timeout --signal=INT --kill-after=20 "$limit" "$@" >"$work/log" 2>&1 </dev/null
    case $? in
      0) status=ok ;;
      3) status="not here" ;;
      124 | 137) status="timed out" ;;
      *) status=failed ;;
    esac
    tail -n 3 "$work/log"
    tail -n +1 "$work/log" "$logs"/* 2>/dev/null | sed "1s/.*/===== $name: $status/" >>"$out/log.txt"
  fi
  [[ $status == ok || $status == "not here" ]] || failures=$((failures + 1))
  rows+=("$(printf '%-12s %-14s %5d' "$name" "$status" $((SECONDS - begin)))")
  printf '%s\n' "${rows[@]}" >"$out/summary.txt"
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

# A process a dtype, here and below one a file: what takes the time is compiling Triton's kernels, on one core each.
# -P: the source tree, which has no compiled module, must not come before the installed package.
calls() {
  needs
  printf '%s\n' float32 bfloat16 float16 float64 | xargs -P 4 -I{} "$python" -P tools/gpu_calls.py {}
}

# The sanitizers beside them, which take as long. A process a core: most of the time is theirs. -v: what has run is known
# too where time runs out and pytest, which then waits 10 seconds for its processes, is killed before it reports.
tests() {
  needs
  printf 'sanitizer %s\n' memcheck racecheck initcheck | xargs -P 3 -I{} bash -c {} &
  "$python" -P -m pytest tests -m cuda -n "$(nproc)" --dist worksteal -v -rfE -p no:cacheprovider
  local code=$?
  wait $! && return $code
}

# Every allocation by itself, so that what lies past its end is nobody's. In _gather all lanes that have a sum write it to
# shared memory, as Triton does it, which is no race: they write the same.
sanitizer() {
  command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer"; return 0; }
  local but=()
  [[ $1 == racecheck ]] && but=(--kernel-name-exclude kernel_substring=_gather)
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" "${but[@]}" --error-exitcode 1 \
    "$python" -P tools/gpu_calls.py float32 bfloat16 >"$logs/$1.log" 2>&1
  local code=$?
  echo "$1: $(tail -n 1 "$logs/$1.log")"
  return $code
}

aims() {
  needs
  "$python" -P tools/gpu_aims.py "$1" "$out/$1.json"
}

train_step() {
  needs
  cp docs/experiments.md "$work/page.md"
  "$python" -P benchmarks/train_step.py gpu --results "$work" --page "$work/page.md"
  cp "$work/gpu/train_step.json" "$out"
}

profile() {
  needs ncu
  local kernels='regex:^_?(tile|scale|forward|backward|add_blocks|sample|gather|argmax|cells|combine|weigh|finish)'
  ncu --force-overwrite --export "$out/ncu" --kernel-name "$kernels" --launch-count 80 --clock-control none \
    --section SpeedOfLight --section MemoryWorkloadAnalysis --section LaunchStats --section Occupancy \
    "$python" -P tools/gpu_calls.py --large || return 1
  ncu --import "$out/ncu.ncu-rep" --page details
}

benchmarks() {
  needs
  "$venv/bin/fcn-fast" bench --quick --device cuda --json "$out/quick.json"
}

venv=$work/venv logs=$work/logs
python=$venv/bin/python
export venv python out logs work
export -f needs machine environment build calls tests sanitizer aims train_step profile benchmarks

part environment 60 bash -c environment
gpu=$("$python" -c 'import torch; print(torch.cuda.is_available())' 2>/dev/null)
export gpu
part machine 30 bash -c machine
part build 150 bash -c "build 1" # where CUDA kernels are wanted, a build without them is a failure
[[ $status == ok ]] || part build_cpu 100 bash -c "build 0"
part env 60 "$venv/bin/fcn-fast" env
part calls 90 bash -c calls
part aims 120 bash -c "aims operations"
part stages 60 bash -c "aims stages"
part train_step 70 bash -c train_step
part ncu 70 bash -c profile
part benchmarks 90 bash -c benchmarks
part tests "$deadline" bash -c tests # 264 s on 16 cores, most kernels compiled beforehand

rows+=("$(printf '%-12s %-14s %5d' all "$failures failed" "$SECONDS")")
printf '%s\n' "${rows[@]}" | tee "$out/summary.txt"
exit "$failures"
