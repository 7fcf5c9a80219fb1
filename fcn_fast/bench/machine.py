"""The machine: what a number means nothing without, and how fast the machine is at the simplest things."""

import functools
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import fcn_fast
from fcn_fast import env
from fcn_fast.bench.timing import Call, times

__all__ = ["available_bytes", "facts", "rates"]

SECONDS = 1.0  # of each rate


def facts(device):
    """Versions, processor and threads; of CUDA the GPU too."""
    found = {
        "device": env.cpu_name(),
        "threads": torch.get_num_threads(),
        "isa": fcn_fast._C.build_facts()["isa"] if fcn_fast._C else "none: the reference",
        "last_level_cache": _last_level_cache(),
        "fcn_fast": fcn_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type != "cuda":
        return {**found, "device_type": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {
        **found,
        "device_type": "cuda",
        "device": properties.name,
        "cpu": found["device"],
        "last_level_cache": properties.L2_cache_size,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": _version("triton"),
        "float32_convolutions": "TF32" if torch.backends.cudnn.allow_tf32 else "float32",
        "kernels": {name: env.kernel_of(name, "cuda") for name in env.operators()},
    }


def rates(device, dtypes=("float32",)):
    """What this machine reaches, with the threads that PyTorch has now.

    Args:
        device: a ``torch.device``.
        dtypes: of the matrix products.

    Returns:
        {"copy": bytes/s, read and written, of a copy far larger than the caches; dtype: FLOP/s of a matrix product,
        on the CPU of a 3x3 convolution, which reaches more there than the BLAS of some builds; on the CPU
        "multiply_add": float32 multiply-adds/s, by that convolution too}.
    """
    dtypes = ("float32", *(dtype for dtype in dtypes if dtype != "float32"))
    found = {"copy": _copy_rate(device, torch.get_num_threads())}
    found |= {dtype: _matrix_rate(device, dtype, torch.get_num_threads()) for dtype in dtypes}
    if device.type == "cpu":
        found["multiply_add"] = found["float32"] / 2
    return found


def available_bytes(device):
    """Memory that can still be taken, at most what a container may use."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch, for the next
        return torch.cuda.mem_get_info(device)[0] + kept
    limits = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(1024 * int(line.split()[1]))
    limit, used, parts = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current", "stat"))
    if limit.isdigit() and used.isdigit():
        # Files that were read count as used until somebody needs their memory.
        files = sum(int(line.split()[1]) for line in parts.splitlines() if line.startswith("inactive_file "))
        limits.append(int(limit) - int(used) + files)
    if not limits and hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return min(limits, default=sys.maxsize)


# Threads are among the arguments so that a rate is kept for each number of them.
@functools.cache
def _copy_rate(device, _threads):
    size = max(4 * _last_level_cache(), 1 << 28) if device.type == "cpu" else 1 << 30
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


@functools.cache
def _matrix_rate(device, dtype, _threads):
    if device.type == "cpu":
        channels, side = 256, 64
        x = torch.randn(1, channels, side, side, dtype=getattr(torch, dtype))
        weight = torch.randn(channels, channels, 3, 3, dtype=x.dtype)
        return 18 * (channels * side) ** 2 / _seconds(lambda: F.conv2d(x, weight, padding=1), device)
    n = 8192
    a, b = (torch.randn(n, n, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    out, precision = torch.empty_like(a), torch.get_float32_matmul_precision()
    if torch.backends.cudnn.allow_tf32:  # the units that convolutions use
        torch.set_float32_matmul_precision("high")
    try:
        return 2 * n**3 / _seconds(lambda: torch.mm(a, b, out=out), device)
    finally:
        torch.set_float32_matmul_precision(precision)


def _seconds(function, device):
    """Seconds of the fastest call: a limit is what a machine can do when nothing is in the way."""
    call, kind = Call(function, [((), None)], "forward"), "event_" if device.type == "cuda" else ""
    samples = times(call, device, 2)[kind]
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        samples += times(call, device, 1)[kind]
    return min(samples) / 1e3


def _last_level_cache():
    """Bytes of the CPU's largest cache; 32 MiB where nothing says."""
    sizes = [_read(path).strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((1024 * int(size[:-1]) for size in sizes if size.endswith("K")), default=32 << 20)


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _driver():
    for line in _read("/proc/driver/nvidia/version").splitlines():
        if line.startswith("NVRM version:"):
            return next((word for word in line.split() if word[0].isdigit() and "." in word), line)
    return "unknown"


def _read(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ""
