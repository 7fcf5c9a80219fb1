"""``fcn-fast profile``: a short steady run under a profiler, its parts named; and inputs captured from real models.

On a GPU every part and every operator is an NVTX range, and cudaProfilerStart and Stop enclose the run, for Nsight to
find. On a CPU torch.profiler writes a trace. docs/profiling.md says how to read them.
"""

import contextlib
import shlex
import statistics
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fcn_fast
from fcn_fast.bench import nets
from fcn_fast.bench.cases import SIZES, Case
from fcn_fast.bench.run import Skipped, check_memory
from fcn_fast.bench.timing import Call, input_sets, times
from fcn_fast.command import InputError, pick_device, writable_folder

__all__ = ["capture", "load", "run_operation", "run_stages"]

WARM_UP = 3
KINDS = {"bilinear_upsample": "resize", "skip_fuse": "deconvolution", "upsample_argmax": "smooth"}


def run_stages(device=None, out=".", rounds=5, padding="caffe", command=()):
    """Profile the three stages of FCN-8s at 500x500.

    Args:
        device: ``"cpu"`` or ``"cuda"``; cuda where there is a GPU unless given.
        out: folder of what the profilers write.
        rounds: how often each part runs.
        padding: as in :class:`fcn_fast.models.FCN`.
        command: the words of this command, to show how Nsight starts it.

    Returns:
        0.

    Raises:
        InputError: no GPU, no folder that can be written, too little memory.
    """
    device, out = pick_device(device), writable_folder(out)
    cases = [nets.NetCase(stage, padding) for stage in nets.STAGES]
    parts = {case.part: _call(case, device) for case in cases}
    return _run("stages", parts, device, out, rounds, command)


def run_operation(name=None, size="VOC", replay=None, device=None, out=".", rounds=20, command=()):
    """Profile an operation, forward and backward, at the size of a data set or with captured inputs.

    Args:
        name: of the operation or, with ``replay``, of the operators to take; all of them unless given.
        size: name of one of :data:`fcn_fast.bench.cases.SIZES`.
        replay: path of a file that :func:`capture` wrote.
        device, out, rounds, command: as in :func:`run_stages`.

    Returns:
        0.

    Raises:
        InputError: as :func:`run_stages`; no name and no replay, a file that is none, nothing of that name in it.
    """
    device, out = pick_device(device), writable_folder(out)
    if replay is not None:
        calls = [call for call in load(replay, device) if name in (None, call[0].removesuffix("_backward"))]
        if not calls:
            raise InputError(f"replay: expected a file with calls of {name or 'fcn_fast operators'}, got {replay}")
        parts = {f"{operator} {i}": _Replay(operator, arguments) for i, (operator, arguments) in enumerate(calls)}
    elif name is None:
        raise InputError("op: expected the name of an operation, or --replay FILE, got neither")
    else:
        chosen = next(known for known in SIZES if known.name == size)
        directions = ("forward", "both") if name != "upsample_argmax" else ("forward",)
        cases = [Case(name, chosen, direction, KINDS.get(name, "")) for direction in directions]
        parts = {f"{name} {case.direction}": _call(case, device) for case in cases}
    return _run(name or "replay", parts, device, out, rounds, command)


@contextlib.contextmanager
def capture(path, calls=1):
    """Keep the inputs of fcn_fast's operators while a model runs, its backward included, for ``profile op --replay``.

        with fcn_fast.profile.capture("inputs.pt"):
            model.loss(images, target).backward()

    Args:
        path: of the file to write when the block ends.
        calls: how many of each operator to keep, the first ones.

    Raises:
        OSError: the file cannot be written.
    """
    mode = _Capture(calls)
    with mode:
        yield
    torch.save({"fcn_fast": fcn_fast.__version__, "calls": mode.kept}, path)


def load(path, device="cpu"):
    """[(operator, its arguments on a device), ...] of a file that :func:`capture` wrote.

    Raises:
        InputError: it cannot be read, or is no such file.
    """
    try:
        calls = torch.load(path, map_location=device, weights_only=True)["calls"]
        calls = [(operator, arguments) for operator, arguments in calls]
    except OSError as error:
        raise InputError(f"replay: expected a file that can be read, got {path} ({error.strerror})") from error
    except Exception as error:  # whatever the unpickler says of a file that is something else
        raise InputError(f"replay: expected what fcn_fast.profile.capture writes, got {path}") from error
    unknown = [operator for operator, _ in calls if not hasattr(torch.ops.fcn_fast, operator)]
    if unknown:
        raise InputError(f"replay: expected operators of fcn_fast {fcn_fast.__version__}, got {unknown[0]}")
    return calls


class _Capture(TorchDispatchMode):
    def __init__(self, calls):
        super().__init__()
        self.calls, self.kept = calls, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fcn_fast":
            name = function._schema.name.partition("::")[2]
            if sum(operator == name for operator, _ in self.kept) < self.calls:
                arguments = [x.detach().to("cpu", copy=True) if isinstance(x, torch.Tensor) else x for x in args]
                self.kept.append((name, arguments))
        return function(*args, **(kwargs or {}))


class _Replay(Call):
    """Captured inputs, ready to be timed."""

    def __init__(self, operator, arguments):
        function = getattr(torch.ops.fcn_fast, operator).default
        super().__init__(lambda: function(*arguments), [((), None)], "forward")


def _call(case, device):
    try:
        check_memory(case, device, ["fcn_fast"], check=False)
    except Skipped as reason:
        raise InputError(f"memory: {reason}") from reason
    return Call(case.function("fcn_fast", device), input_sets(case, device), case.direction)


def _run(name, parts, device, out, rounds, command):
    for call in parts.values():
        times(call, device, WARM_UP)
    cuda = device.type == "cuda"
    samples = {part: [] for part in parts}
    with _nsight() if cuda else _trace(out / f"fcn_fast_{name}.json"):
        for _ in range(rounds):
            for part, call in parts.items():
                with torch.cuda.nvtx.range(part) if cuda else torch.profiler.record_function(part):
                    samples[part] += times(call, device, 1)["event_" if cuda else ""]
    width = max(map(len, parts))
    print(f"{'':<{width}}  {'ms':>9}  median of {rounds} rounds, {'CUDA events' if cuda else 'under the profiler'}")
    for part, values in samples.items():
        print(f"{part:<{width}}  {statistics.median(values):>9,.3f}")
    if cuda:
        print("\n".join(["", *_nsight_commands(name, list(parts), out, command)]))
    return 0


@contextlib.contextmanager
def _nsight():
    """What Nsight captures: PyTorch's operators as NVTX ranges, between cudaProfilerStart and Stop."""
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    try:
        with torch.autograd.profiler.emit_nvtx():
            yield
        torch.cuda.synchronize()
    finally:
        torch.cuda.profiler.stop()


@contextlib.contextmanager
def _trace(path):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        yield
    profiler.export_chrome_trace(str(path))
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))
    print(f"trace: {path} (open it at ui.perfetto.dev or chrome://tracing)\n")


def _nsight_commands(name, parts, out, command):
    """The command lines that run this very command under Nsight Systems and Nsight Compute."""
    words, report = shlex.join(command), shlex.quote(str(Path(out, f"fcn_fast_{name}")))
    lines = [
        "timeline (Nsight Systems), and the time of each range:",
        "  nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi --capture-range-end=stop "
        f"--force-overwrite=true --output={report} {words}",
        f"  nsys stats --report nvtx_gpu_proj_sum {report}.nsys-rep",
        "kernels of one range (Nsight Compute):",
    ]
    for i, part in enumerate(parts):
        # The slash says that the range is one of push and pop.
        options = f"--nvtx-include {shlex.quote(part + '/')} --set full --force-overwrite --export {report}_{i}"
        lines.append(f"  ncu --profile-from-start off --nvtx {options} {words} --rounds 1")
    return lines
