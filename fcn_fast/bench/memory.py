"""Peak memory of a call, above what is held before it."""

import atexit
import concurrent.futures.process
import functools
import multiprocessing
import os
from pathlib import Path

import torch

from fcn_fast.bench.timing import Call, input_sets

__all__ = ["growth", "peak_bytes", "peak_bytes_later"]


def peak_bytes(case, variant, call, device):
    """Bytes that a variant of a case holds at most beyond its inputs (and, of gradients alone, beyond their graph).

    On CUDA the allocator counts them. On the CPU it is the growth of the resident set of a process of its own, in
    which freed memory goes back at once; None where that cannot be read (it can on Linux).

    Args:
        case, variant: what to measure.
        call: the variant's :class:`fcn_fast.bench.timing.Call`, warm.
        device: a ``torch.device``.
    """
    return peak_bytes_later(case, variant, call, device)()


def peak_bytes_later(case, variant, call, device):
    """A function that returns :func:`peak_bytes`; until it does, the other process may be at work."""
    if device.type == "cuda":
        found = growth(functools.partial(call, *call.prepare()), device)
        return lambda: found
    if not Path("/proc/self/clear_refs").exists():
        return lambda: None
    pending = _process().submit(_resident_growth, case, variant, torch.get_num_threads())

    def peak():
        try:
            return pending.result()
        except concurrent.futures.process.BrokenProcessPool:  # killed, most likely for its memory
            _process.cache_clear()
            return None

    return peak


def growth(call, device):
    """Bytes that a call, warm, holds at most beyond what is held before.

    On the CPU it is the growth of this process's resident set: run it in one of its own, with large blocks mapped.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    call()
    return max(_status("VmHWM") - before, 0)


@functools.cache
def _process():
    """The process that measures, on whose first lines its C library reads that large blocks get pages of their own:
    a peak is then not hidden by memory that an earlier call left behind."""
    name = "MALLOC_MMAP_THRESHOLD_"
    before = os.environ.get(name)
    os.environ[name] = "65536"
    try:
        process = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        atexit.register(process.shutdown)
        process.submit(int).result()  # it has started
        return process
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _resident_growth(case, variant, threads):
    torch.set_num_threads(threads)
    torch.compiler.reset()
    device = torch.device("cpu")
    call = Call(case.function(variant, device), _inputs(case, device), case.direction)
    call(*call.prepare())  # what a first call allocates for good is no part of the peak
    return growth(functools.partial(call, *call.prepare()), device)


@functools.lru_cache(maxsize=1)
def _inputs(case, device):
    return input_sets(case, device)


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
