"""How much work a case is, whoever does it, and how fast a machine could be done with it."""

import math
from typing import NamedTuple

__all__ = ["Limit", "flop", "formula", "limit", "transferred"]

# Maps that a direction must read or write once: scores at low and at full resolution, and labels. Forward and backward
# together take the sum of both.
TRANSFERS = {
    "bilinear_upsample": {"forward": {"low": 1, "high": 1}, "backward": {"low": 1, "high": 1}},
    "skip_fuse": {"forward": {"low": 1, "high": 2}, "backward": {"low": 1, "high": 1}},
    "softmax_loss": {"forward": {"high": 1, "labels": 1}, "backward": {"high": 2, "labels": 1}},
    "upsample_softmax_loss": {"forward": {"low": 1, "labels": 1}, "backward": {"low": 2, "labels": 1}},
    "upsample_argmax": {"forward": {"low": 1, "labels": 1}},
}
# (multiply-adds, exponentials) of the CPU kernels for a logit at full resolution; see csrc/cpu. The fused loss takes
# four exponentials for a block of up to 4x4 outputs, and has its gradient from the same ones.
ARITHMETIC = {
    "bilinear_upsample": {"forward": (2, 0), "backward": (2, 0)},
    "skip_fuse": {"forward": (3, 0), "backward": (2, 0)},
    "softmax_loss": {"forward": (2, 1), "backward": (2, 1)},
    "upsample_softmax_loss": {"forward": (2, 4), "backward": (3, 0)},
    "upsample_argmax": {"forward": (2, 0)},
}
# Vector instructions of an exponential (csrc/cpu/simd.h); each counts as a multiply-add.
EXPONENTIAL = 16


class Limit(NamedTuple):
    """Seconds that a machine takes at least: in all, for memory alone and for arithmetic alone."""

    seconds: float
    memory: float
    arithmetic: float

    @property
    def by(self):
        return "arithmetic" if self.arithmetic >= self.memory else "memory"


def transferred(case):
    """Bytes that the case must move: those of :data:`TRANSFERS`."""
    item = case.torch_dtype.itemsize
    labels = case.size.batch * math.prod(case.pixels) * case.label_dtype.itemsize
    each = {"low": math.prod(case.low) * item, "high": math.prod(case.high) * item, "labels": labels}
    return sum(count * each[name] for name, count in _maps(case).items())


def formula(case):
    """:func:`transferred` in words, such as ``2 low + 2 high``."""
    return " + ".join(f"{count} {name}" if count > 1 else name for name, count in _maps(case).items())


def flop(case):
    """Twice the multiply-adds that the CPU kernel takes, the instructions of exponentials among them.

    Of smooth scores upsample_argmax looks at a class or two of a pixel, however many there are.
    """
    each = [ARITHMETIC[case.operation][direction] for direction in _directions(case)]
    multiply_adds, exponentials = (sum(counts) for counts in zip(*each, strict=True))
    if case.operation == "upsample_softmax_loss":
        exponentials /= min(case.size.stride, 4) ** 2
    logits = math.prod(case.high) / (case.size.classes if case.kind == "smooth" else 1)
    return round(2 * (multiply_adds + EXPONENTIAL * exponentials) * logits)


def limit(case, rates):
    """What this machine takes at least to move the bytes and to compute.

    Args:
        case: a :class:`fcn_fast.bench.cases.Case`.
        rates: as :func:`fcn_fast.bench.machine.rates` gives them. Without one of multiply-adds (on a GPU, whose kernels
            count otherwise) only memory counts.
    """
    memory, computing = transferred(case) / rates["copy"], 0.0
    if "multiply_add" in rates:
        computing = flop(case) / 2 / rates["multiply_add"]
    return Limit(max(memory, computing), memory, computing)


def _maps(case):
    counts = {}
    for direction in _directions(case):
        for name, count in TRANSFERS[case.operation][direction].items():
            counts[name] = counts.get(name, 0) + count
    return counts


def _directions(case):
    return ("forward", "backward") if case.direction == "both" else (case.direction,)
