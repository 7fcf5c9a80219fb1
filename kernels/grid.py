"""The sampling rule of fcn_fast/grid.py on the device.

Cell i of an axis holds the outputs whose src has the floor i: they lie between the coarse pixels i and i + 1. Cells run
from -1 to in - 1; with a zero border also -2 and in, which hold whatever lies further out. A tap outside reads the edge
pixel, or zero. An axis is the tuple (in, out, step, origin, unit). Kernels take AXES, both axes' numbers one by one:
Triton compiles anew for a number in a tuple that is 1 or a multiple of 16, whatever it is told not to specialize.
"""

import math

import torch
import triton
import triton.language as tl

AXES = [f"{axis}_{name}" for axis in "yx" for name in ("in", "out", "step", "origin", "unit")]


def axes(in_size, numbers):
    """Both axes as kernels take them, and their constants: ZERO, the border; INDEX, what the rule is computed in."""
    zero = bool(numbers[8])
    result, reach = [], 0
    for i in (0, 1):
        size, step, origin, unit = numbers[i], numbers[2 + i], numbers[4 + i], numbers[6 + i]
        divisor = math.gcd(step, origin, unit)
        axis = (in_size[i], size, step // divisor, origin // divisor, unit // divisor)
        reach = max(reach, axis[2] * size + abs(axis[3]) + axis[4] * (in_size[i] + 2))
        result.append(axis)
    return *result, {"ZERO": zero, "INDEX": index_type(reach)}


def index_type(largest):
    """What to count in to reach a number; whole-number division is several times dearer in 64 bits."""
    return tl.int32 if largest < 2**31 else tl.int64


def cells(axis, zero):
    """How many cells an axis has, and the outputs of its longest one."""
    first, last = -1 - zero, axis[0] - 1 + zero
    step, unit = axis[2], axis[4]
    inner = min(-(-unit // step), axis[1]) if step else axis[1]
    ends = start(first + 1, axis), axis[1] - start(last, axis)
    return last - first + 1, max(*ends, inner if last - first > 1 else 1)


def start(cell, axis):
    """The first output of a cell, but for the cells at the ends."""
    _, size, step, origin, unit = axis
    at = cell * unit - origin
    return min(max(-(-at // step), 0), size) if step else (0 if at <= 0 else size)


def alignment(axis):
    """Of 8, 4, 2 and 1 the largest that the first output of every cell, and the end, is a multiple of."""
    common = math.gcd(axis[1], 8)
    for cell in range(-1, axis[0] + 1):
        if common == 1:
            break
        common = math.gcd(common, start(cell, axis))
    return common


def accumulate_type(dtype):
    return tl.float64 if dtype == torch.float64 else tl.float32


def cdiv(a, b):
    """a / b, rounded up; Triton's own, made for kernels too, takes microseconds on the host."""
    return -(-a // b)


def power_of_two(n, least=1, most=1 << 30):
    """The next power of two, within bounds that are."""
    return min(max(1 << (n - 1).bit_length(), least), most)


@triton.jit
def first_output(cell, axis, ZERO: tl.constexpr, INDEX: tl.constexpr):
    """The first output of a cell, or of those after it; of the cell after the last, the end."""
    step = tl.cast(axis[2], INDEX)
    at = tl.cast(cell, INDEX) * tl.cast(axis[4], INDEX) - tl.cast(axis[3], INDEX)
    # Rounded up; below zero it need only stay there.
    start = (at + step - 1) // tl.maximum(step, 1)
    size = tl.cast(axis[1], INDEX)
    start = tl.where(step == 0, tl.where(at <= 0, 0, size), start)
    start = tl.minimum(tl.maximum(start, 0), size)
    start = tl.where(cell < -ZERO, 0, start)
    return tl.where(cell >= axis[0] + ZERO, size, start).to(tl.int32)


@triton.jit
def cell_of(dst, axis, ZERO: tl.constexpr, INDEX: tl.constexpr):
    """The cell of an output."""
    src = tl.cast(dst, INDEX) * tl.cast(axis[2], INDEX) + tl.cast(axis[3], INDEX)
    unit = tl.cast(axis[4], INDEX)
    quotient = src // unit
    floor = tl.where(quotient * unit > src, quotient - 1, quotient)  # division rounds towards zero
    return tl.minimum(tl.maximum(floor, -1 - ZERO), axis[0] - 1 + ZERO).to(tl.int32)


@triton.jit
def weights(dst, cell, axis, ZERO: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr):
    """What an output's taps weigh, the pixels cell and cell + 1; each is one rounding away from exact.

    In a clamped cell at the edge the inner pixel counts whole. A zero of the border is a pixel like others here.
    Outputs of other cells get some weights from 0 to 1.
    """
    unit = tl.cast(axis[4], INDEX)
    src = tl.cast(dst, INDEX) * tl.cast(axis[2], INDEX) + tl.cast(axis[3], INDEX)
    high = tl.minimum(tl.maximum(src - tl.cast(cell, INDEX) * unit, 0), unit)
    if not ZERO:
        high = tl.where(cell < 0, unit, tl.where(cell >= axis[0] - 1, 0, high))
    divisor = unit.to(ACC)
    inverse = 1 / divisor if ACC == tl.float64 else tl.div_rn(1.0, divisor)
    return _quotient((unit - high).to(ACC), divisor, inverse), _quotient(high.to(ACC), divisor, inverse)


@triton.jit
def _quotient(a, b, inverse):
    """a / b, correctly rounded, without a division's detours for numbers at the ends of the range."""
    quotient = a * inverse
    return tl.fma(tl.fma(-quotient, b, a), inverse, quotient)


@triton.jit
def inside(pixel, axis):
    return (pixel >= 0) & (pixel < axis[0])


@triton.jit
def clamped(pixel, axis):
    return tl.minimum(tl.maximum(pixel, 0), axis[0] - 1)


@triton.jit
def blend(low, high, low_weight, high_weight):
    """Two taps. One of weight zero is skipped: 0 * inf would be NaN. The one arithmetic of all upsampled values."""
    low = tl.where(low_weight == 0, 0, low * low_weight)
    return tl.where(high_weight == 0, low, tl.fma(high, high_weight, low))
