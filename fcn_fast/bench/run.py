"""Measure a case: check every variant, time them in turn, and say how much of the machine they use."""

import functools
import math
import time

import torch

from fcn_fast.bench import machine, records
from fcn_fast.bench.memory import peak_bytes
from fcn_fast.bench.timing import Call, graph_times, input_sets, interleave, statistics_of

__all__ = [
    "Skipped",
    "WrongResult",
    "calls_of",
    "check_memory",
    "entry",
    "error_of",
    "first_line",
    "measure",
]

OURS = ("fcn_fast", "canvas")
LAUNCH_BOUND = 5.0  # ms; what takes less on a GPU is measured as a CUDA graph too


class Skipped(Exception):
    """A case that this machine cannot take; the message is one line with the figure."""


class WrongResult(AssertionError):
    """A variant that does not compute what it should."""


def measure(case, device, seconds=0.5, variants=None, check=True):
    """Measure a case.

    Args:
        case: a :class:`fcn_fast.bench.cases.Case` or :class:`fcn_fast.bench.nets.NetCase`.
        device: a ``torch.device``.
        seconds: of rounds of the slowest variant.
        variants: which of the case's; all unless given.
        check: whether to measure errors.

    Returns:
        (entries, notes): for each variant the facts of the case, milliseconds, use of the machine, error and peak
        memory; a line for each that PyTorch fails in, as torch.compile does where there is no compiler.

    Raises:
        Skipped: too little memory.
        WrongResult: fcn_fast's results are wrong.
    """
    variants = case.variants if variants is None else [v for v in case.variants if v in variants]
    check_memory(case, device, variants, check)
    try:
        calls, errors, notes = calls_of(case, device, variants, check)
        samples = interleave(calls, device, seconds)
        entries = [entry(case, device, v, calls[v], samples[v], errors.get(v)) for v in calls]
        for found in entries:
            found["peak_bytes"] = peak_bytes(case, found["variant"], calls[found["variant"]], device)
        return entries, notes
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise Skipped(f"{case.group}: {first_line(error)}") from error
    finally:
        torch.compiler.reset()


def entry(case, device, variant, call, samples, error):
    """What a record has of a variant: the facts of its case, and what is measured of it but for peak memory.

    Args:
        case, device, variant: what was measured.
        call: the variant's :class:`fcn_fast.bench.timing.Call`, warm.
        samples: {"": [ms, ...], and on CUDA "event_": [ms, ...]}.
        error: as :func:`calls_of` gives it; None where none was measured.
    """
    times = {f"{kind}milliseconds": statistics_of(values) for kind, values in samples.items()}
    if device.type == "cuda" and times["event_milliseconds"]["median"] < LAUNCH_BOUND:
        times |= _cuda_graph(call)
    return {
        "group": case.group,
        "variant": variant,
        **case.facts,
        "threads": torch.get_num_threads(),
        **times,
        **_use(case, device, times),
        **({} if error is None else {"error": error if math.isfinite(error) else None, "error_against": case.against}),
    }


def check_memory(case, device, variants, check=True):
    """Raise :class:`Skipped` where these variants of a case would not fit."""
    needed, available = case.needs(variants, check), machine.available_bytes(device)
    if needed > 0.9 * available:
        raise Skipped(f"{case.group}: needs about {needed / 1e9:,.1f} GB, {available / 1e9:,.1f} GB are free")


def calls_of(case, device, variants, check=True):
    """The variants, each run once.

    Returns:
        ({variant: :class:`Call`}, {variant: error}, notes): ``first`` of a call are the seconds that it took; errors
        only if they are to be checked; a line for each variant that PyTorch fails in.

    Raises:
        WrongResult: fcn_fast is further off than the case tolerates.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # as who is after speed has it where sizes stay: the best by trying
    sets = _inputs(case, device)
    calls, errors, notes = {}, {}, []
    for variant in variants:
        try:
            call = Call(case.function(variant, device), sets, case.direction)
            prepared, start = call.prepare(), time.perf_counter()
            results = call(*prepared)
            call.first = time.perf_counter() - start
        except Exception as error:
            if variant in OURS or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            notes.append(f"{variant} {case.group}: {first_line(error)}")
            continue
        calls[variant] = call
        if check:
            error, tolerance = error_of(results, _expected(case, device)), case.tolerance(device)
            if variant in OURS and error > tolerance:
                raise WrongResult(f"{case.group}: expected an error of at most {tolerance:g}, got {error:.2g}")
            errors[variant] = error
    return calls, errors, notes


def first_line(error):
    """What an exception says, as far as a line holds it."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


@functools.lru_cache(maxsize=1)
def _inputs(case, device):
    return input_sets(case, device)


@functools.lru_cache(maxsize=1)
def _expected(case, device):
    return case.expected(device, *_inputs(case, device)[0])


def error_of(results, expected):
    """The largest difference relative to the largest number, or the share of labels that differ."""
    error = 0.0
    for result, wanted in zip(results, expected, strict=True):
        if result is None or wanted is None:
            found = 0.0 if result is wanted else math.inf
        elif wanted.is_floating_point():
            found = ((result.double() - wanted).abs().max() / wanted.abs().max()).item()
        else:
            found = (result != wanted).double().mean().item()
        error = max(error, math.inf if math.isnan(found) else found)
    return float(f"{error:.3g}")


def _use(case, device, times):
    """Bytes a second, and how near to the machine's limit the median comes, as far as the case says."""
    rates = machine.rates(device, (case.dtype,))
    milliseconds = records.times_of(times)["median"]
    found = {}
    if "bytes" in case.facts:
        rate = 1e3 * case.facts["bytes"] / milliseconds
        found |= {"gb_per_s": _round(rate / 1e9), "percent_of_copy": _round(100 * rate / rates["copy"])}
    limit = case.limit(rates)
    if limit:
        found["limit"] = {
            "milliseconds": _round(1e3 * limit.seconds),
            "memory": _round(1e3 * limit.memory),
            "arithmetic": _round(1e3 * limit.arithmetic),
            "by": limit.by,
            "percent": _round(1e5 * limit.seconds / milliseconds),
        }
    return found


def _cuda_graph(call):
    """{"graph_milliseconds": statistics of the call as a CUDA graph}, or the error in their place."""
    try:
        return {"graph_milliseconds": statistics_of(graph_times(call))}
    except RuntimeError as error:
        torch.cuda.synchronize()
        return {"graph_milliseconds": {"error": first_line(error)}}


def _round(value):
    return float(f"{value:.4g}")
