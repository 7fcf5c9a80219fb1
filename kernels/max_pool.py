"""A 2x2 max-pool of stride 2 that reads and writes each number once; PyTorch's also writes where each maximum lay.

Straight into the frame that the next layers read, or the pooled map would be copied there.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from fcn_fast.kernels import grid as rule
from fcn_fast.kernels.cells import larger_or_nan
from fcn_fast.kernels.launch import Launch


def max_pool(x, frame=None, corner=(0, 0)):
    """(N, C, h, w), dense channels_last, to (N, C, ceil(h / 2), ceil(w / 2)), or to the frame's size around it."""
    n, channels, height, width = x.shape
    size = frame.shape[2:] if frame is not None else ((height + 1) // 2, (width + 1) // 2)
    out = torch.empty((n, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if not out.numel():
        return out
    with torch.cuda.device_of(x):
        _plan(x.shape, out.shape, tuple(corner), x.dtype)(x, frame, out)
    return out


@functools.lru_cache
def _plan(shape, out_shape, corner, dtype):
    n, channels, height, width = shape
    block = rule.power_of_two(channels, most=64)
    across = 1024 // block
    programs = n * out_shape[2], rule.cdiv(out_shape[3], across), rule.cdiv(channels, block)
    sizes = height, width, (height + 1) // 2, (width + 1) // 2, *out_shape[2:]
    wide = rule.index_type(max(math.prod(shape), math.prod(out_shape)))
    constants = {"WIDE": wide, "COLUMNS": across, "CHANNELS": block, "ACC": rule.accumulate_type(dtype), "num_warps": 4}
    return Launch(_pool, programs, *sizes, *corner, channels, **constants)


# One kernel for all sizes, or each would wait seconds for a compiler.
@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "tall", "wide", "top", "left"])
def _pool(
    x, frame, out, height, width, rows, columns, tall, wide, top, left, channels,
    WIDE: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A row of the result, and of that COLUMNS pixels and CHANNELS of their channels."""
    image, at_row = tl.program_id(0) // tall, tl.program_id(0) % tall
    at_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    row, column = at_row - top, at_column - left
    mine = (at_column < wide) & (channel < channels)
    inside = mine & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    below, right = 2 * row + 1 < height, 2 * column + 1 < width

    line = (tl.cast(image, WIDE) * height + 2 * row) * width
    first = x + (line + 2 * column) * channels + channel
    second = first + tl.cast(width, WIDE) * channels
    smallest = float("-inf")
    a, b = tl.load(first, inside, smallest), tl.load(first + channels, inside & right, smallest)
    c, d = tl.load(second, inside & below, smallest), tl.load(second + channels, inside & below & right, smallest)
    # Not as they are stored: Triton's interpreter compares the bits of bfloat16.
    value = larger_or_nan(larger_or_nan(a.to(ACC), b.to(ACC)), larger_or_nan(c.to(ACC), d.to(ACC)))
    if frame is not None:
        around = tl.load(frame + (tl.cast(at_row, WIDE) * wide + at_column) * channels + channel, mine & ~inside, 0)
        value = tl.where(inside, value, around.to(value.dtype))
    line = (tl.cast(image, WIDE) * tall + at_row) * wide
    tl.store(out + (line + at_column) * channels + channel, value.to(a.dtype), mine)
