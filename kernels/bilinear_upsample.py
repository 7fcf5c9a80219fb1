"""Upsampling of a coarse map, and its transpose. Also skip_fuse's forward, which adds a map on the way out.

An NCHW plane is a map of w numbers a row, a channels_last image one of w * c: ``inner`` numbers a pixel.

_sample: a program owns the outputs of a few rows of cells over BLOCK numbers of a row. It expands every coarse row to
the output's width once, in registers, and keeps it for the next row of cells; then an output row costs two
multiply-adds a number and one store of 16 bytes a thread. Reads the coarse map about once, writes the output once:
bound by writing. Instructions a number at 4 and 8 times the size (sm_90, of its machine code): 35 and 28, in half
precision 17, which is 70 to 80 % of an H100's issue slots at its full bandwidth. More rows a program would be fewer of
them, and took longer in float32. Where a program owns one row of cells, of up to ROWS output rows, it is bound by the
latency of memory: all that it reads is then on its way at once.

_gather: a program owns a few coarse columns of a few coarse rows. It walks the output rows of its cells, LINES of them
on their way at once, and loads every output once, in windows of the K columns of a cell: what an output adds to the
four coarse pixels around its cell is its share of two rows, summed up as the rows come, and of two columns, summed up
last. What a cell adds to the next column comes from the lane that owns it, so the first column's cell is another
program's too, as is the first row's. Reads the outputs, of which on large maps one in sixteen to three is read twice;
on small ones, where programs are few, each owns a row, and all are. Bound by that, and by waiting for it.
Instructions an output at 8 times the size: 16, in half precision 13, which is 40 and 60 % of an H100's issue slots at
its full bandwidth. An H100 took 75 us for 19x1024x2048, in bfloat16 43 us; a copy of as much 55 and 27 us.

Registers (ptxas for sm_80 to sm_120): _sample up to 90 in float32, 146 in half precision, where a thread owns twice as
many numbers; _gather up to 184.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from fcn_fast.kernels import grid as rule
from fcn_fast.kernels.grid import blend, cell_of, clamped, first_output, inside, weights
from fcn_fast.kernels.launch import Launch
from fcn_fast.reference import memory_format

PROGRAMS = 2048  # enough to fill a GPU; each does more only where there are more
WINDOWS = 1024  # outputs of a row in all the windows of a program of _gather
VARIES = [
    *rule.AXES,
    *("cells", "tiles", "groups", "rows", "row", "pieces", "group", "columns", "skip_height", "skip_groups"),
]


def bilinear_upsample(input, grid):
    return sample(input, grid)


def sample(input, grid, skip=None, crop=(0, 0)):
    """input at the grid's pixels, plus skip's from crop on where there is one."""
    layout = memory_format(input)
    input = input.contiguous(memory_format=layout)
    output = torch.empty(
        (*input.shape[:2], grid[0], grid[1]), dtype=input.dtype, device=input.device, memory_format=layout
    )
    if not output.numel():
        return output
    skip_size = (0, 0)
    if skip is not None:
        skip = skip.contiguous(memory_format=layout)
        skip_size = skip.shape[2:]
        skip = skip[:, :, crop[0] :, crop[1] :]
    with torch.cuda.device_of(input):
        _sampling(input.shape, tuple(grid), skip_size, layout, input.dtype)(input, skip, output)
    return output


@functools.lru_cache
def _sampling(shape, grid, skip_size, layout, dtype):
    n, channels, height, width = shape
    planes, inner = (n, channels) if layout == torch.channels_last else (n * channels, 1)
    y, x, constants = rule.axes((height, width), grid)
    row, skip_row = x[1] * inner, skip_size[1] * inner
    vector = 16 // dtype.itemsize
    block = rule.power_of_two(row, 32, 128 * vector)
    tiles = rule.cdiv(row, block)
    count, longest = rule.cells(y, constants["ZERO"])
    warps = max(block // (32 * vector), 1)
    # Enough rows that finding the columns' taps does not count, but first of all enough programs, of four warps.
    most = 32 if dtype.itemsize == 2 else 8
    cells = min(max(planes * tiles * count * warps // (4 * PROGRAMS), 1), max(most // longest, 1))
    if skip_size[0] and 8 <= longest * dtype.itemsize and longest <= 8:
        cells = 1  # to read a skip takes longer than to find taps: all rows of it on their way at once
    align, skip_align = _row_alignment(row), _row_alignment(skip_row)
    constants.update(
        BLOCK=block,
        ALIGN=align,
        SKIP_ALIGN=skip_align,
        ROWS=rule.power_of_two(longest) if cells == 1 and longest <= 8 else 0,
        ACC=rule.accumulate_type(dtype),
        num_warps=warps,
    )
    numbers = *y, *x, inner, cells, tiles, row // align, skip_size[0], skip_row // skip_align
    return Launch(_sample, (planes * rule.cdiv(count, cells) * tiles,), *numbers, **constants)


def bilinear_upsample_backward(grad_output, in_size, grid):
    layout = memory_format(grad_output)
    grad_output = grad_output.contiguous(memory_format=layout)
    shape = (*grad_output.shape[:2], *in_size)
    output = torch.empty(shape, dtype=grad_output.dtype, device=grad_output.device, memory_format=layout)
    if not output.numel():
        return output
    with torch.cuda.device_of(grad_output):
        _gathering(shape, tuple(grid), layout, output.dtype)(grad_output, output)
    return output


@functools.lru_cache
def _gathering(shape, grid, layout, dtype):
    n, channels, height, width = shape
    planes, inner = (n, channels) if layout == torch.channels_last else (n * channels, 1)
    last = inner > 1
    y, x, constants = rule.axes((height, width), grid)
    k, lines = (rule.power_of_two(rule.cells(axis, constants["ZERO"])[1]) for axis in (x, y))
    # What lies side by side and aligned, of the channels or a window, is read up to 16 bytes at a time.
    pack = math.gcd(inner if last else rule.alignment(x), 16 // dtype.itemsize)
    # Outputs of a thread in a row, and of a program: as an H100 was fastest with.
    own = {8: 2, 4: 8 if last else 4, 2: 8}[dtype.itemsize]
    outputs = WINDOWS if dtype.itemsize == 4 or last and dtype.itemsize == 2 else WINDOWS // 2
    most = max(outputs // k, 4 * pack if last else 4)
    # Channels come in pieces of pack, and these in groups, of which a block holds those of four columns at least.
    pieces = inner // pack if last else 1
    groups = rule.cdiv(pieces, max(most // (4 * pack), 1))
    group = rule.cdiv(pieces, groups)
    piece = pack if last else 1
    block = rule.power_of_two((width + 1) * group * piece, most=most)
    tiles = rule.cdiv(width, block // (group * piece) - 1)
    # Enough rows that the cell above them, which the program above reads too, does not count, but first of all enough
    # programs.
    rows = min(max(2 * planes * groups * tiles * height // PROGRAMS, 1), 16)
    constants.update(
        BLOCK=block,
        K=k,
        PACK=pack,
        LAST=last,
        LINES=min(lines, 4, max(8192 // (block * k), 1)),
        ACC=rule.accumulate_type(dtype),
        num_warps=min(max(block * k // (32 * own), 1), 8),
    )
    numbers = *y, *x, pieces, group, groups, rule.cdiv(width, tiles), tiles, rows, x[1] * inner // pack
    return Launch(_gather, (planes * groups * tiles * rule.cdiv(height, rows),), *numbers, **constants)


def _row_alignment(row):
    """What a row's length is a multiple of, as far as that helps; 1 for none at all."""
    return math.gcd(row, 16) if row else 1


@triton.jit(do_not_specialize=VARIES)
def _sample(
    input, skip, output,
    y_in, y_out, y_step, y_origin, y_unit, x_in, x_out, x_step, x_origin, x_unit,
    inner, cells, tiles, groups, skip_height, skip_groups,
    BLOCK: tl.constexpr, ALIGN: tl.constexpr, SKIP_ALIGN: tl.constexpr, ROWS: tl.constexpr,
    ZERO: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    y, x = (y_in, y_out, y_step, y_origin, y_unit), (x_in, x_out, x_step, x_origin, x_unit)
    bands = (y[0] + 1 + 2 * ZERO + cells - 1) // cells
    plane = (tl.program_id(0) // tiles // bands).to(tl.int64)
    first = tl.program_id(0) // tiles % bands * cells - 1 - ZERO
    row = groups * ALIGN
    at = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = at < row
    column = at // inner
    channel = at - column * inner
    cell = cell_of(column, x, ZERO, INDEX)
    low, high = clamped(cell, x) * inner + channel, clamped(cell + 1, x) * inner + channel
    low_mask, high_mask = mask, mask
    if ZERO:
        low_mask, high_mask = mask & inside(cell, x), mask & inside(cell + 1, x)
    taps = (low, low_mask), (high, high_mask)

    input += plane * y[0] * (x[0] * inner)
    skip_row = skip_groups * SKIP_ALIGN
    if ROWS:
        # Everything on its way before any of it is needed.
        upper_taps = _load(input, first, y, x, inner, taps, ZERO, ACC)
        lower_taps = _load(input, first + 1, y, x, inner, taps, ZERO, ACC)
        begin, end = first_output(first, y, ZERO, INDEX), first_output(first + 1, y, ZERO, INDEX)
        added = ()
        if skip is not None:
            for k in tl.static_range(ROWS):
                at_skip = (plane * skip_height + begin + k) * skip_row + at
                added += (tl.load(skip + at_skip, mask & (begin + k < end)),)
        low_weight, high_weight = weights(column, cell, x, ZERO, INDEX, ACC)
        upper = blend(upper_taps[0], upper_taps[1], low_weight, high_weight)
        lower = blend(lower_taps[0], lower_taps[1], low_weight, high_weight)
        for k in tl.static_range(ROWS):
            upper_weight, lower_weight = weights(begin + k, first, y, ZERO, INDEX, ACC)
            value = blend(upper, lower, upper_weight, lower_weight)
            if skip is not None:
                value += added[k].to(ACC)
            at_output = (plane * y[1] + begin + k) * row + at
            tl.store(output + at_output, value.to(output.dtype.element_ty), mask & (begin + k < end))
    else:
        low_weight, high_weight = weights(column, cell, x, ZERO, INDEX, ACC)
        left, right = _load(input, first, y, x, inner, taps, ZERO, ACC)
        upper = blend(left, right, low_weight, high_weight)
        for i in range(first, min(first + cells, y[0] + ZERO)):
            left, right = _load(input, i + 1, y, x, inner, taps, ZERO, ACC)
            lower = blend(left, right, low_weight, high_weight)
            # Both ends anew: Triton 3.6 forgets that the next start would be this end, and begins with the first one
            # always.
            for dst in range(first_output(i, y, ZERO, INDEX), first_output(i + 1, y, ZERO, INDEX)):
                upper_weight, lower_weight = weights(dst, i, y, ZERO, INDEX, ACC)
                value = blend(upper, lower, upper_weight, lower_weight)
                if skip is not None:
                    value += tl.load(skip + (plane * skip_height + dst) * skip_row + at, mask).to(ACC)
                tl.store(output + (plane * y[1] + dst) * row + at, value.to(output.dtype.element_ty), mask)
            upper = lower


@triton.jit
def _load(input, i, y, x, inner, taps, ZERO: tl.constexpr, ACC: tl.constexpr):
    """Both taps of coarse row i; outside, the edge row's or zeros."""
    low_mask, high_mask = taps[0][1], taps[1][1]
    if ZERO:
        low_mask, high_mask = low_mask & inside(i, y), high_mask & inside(i, y)
    line = input + clamped(i, y).to(tl.int64) * (x[0] * inner)
    low = tl.load(line + taps[0][0], low_mask, other=0).to(ACC)
    return low, tl.load(line + taps[1][0], high_mask, other=0).to(ACC)


@triton.jit(do_not_specialize=VARIES)
def _gather(
    grad, output,
    y_in, y_out, y_step, y_origin, y_unit, x_in, x_out, x_step, x_origin, x_unit,
    pieces, group, groups, columns, tiles, rows, row,
    BLOCK: tl.constexpr, K: tl.constexpr, PACK: tl.constexpr, LAST: tl.constexpr, LINES: tl.constexpr,
    ZERO: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    y, x = (y_in, y_out, y_step, y_origin, y_unit), (x_in, x_out, x_step, x_origin, x_unit)
    bands = (y[0] + rows - 1) // rows
    program = tl.program_id(0)
    tile, program = program % tiles, program // tiles
    band, program = program % bands, program // bands
    plane = (program // groups).to(tl.int64)
    # The first column is another program's: of its cell counts what the outputs add to the next column.
    PIECE: tl.constexpr = PACK if LAST else 1
    lane = tl.arange(0, BLOCK)
    column = tile * columns - 1 + lane // PIECE // group
    piece = program % groups * group + lane // PIECE % group
    channel = piece * PIECE + lane % PIECE
    inner = pieces * PIECE if LAST else 1
    mine = (lane // PIECE < (columns + 1) * group) & (piece < pieces) & (column < x[0])

    # A window of outputs for each number, its cell's.
    begin = tl.where(mine, first_output(column, x, ZERO, INDEX), 0)  # an operation for multiple_of to hold on to
    end = tl.where(mine, first_output(column + 1, x, ZERO, INDEX), 0)
    if not LAST:
        begin, end = tl.multiple_of(begin, PACK), tl.multiple_of(end, PACK)
    dst = begin[:, None] + tl.arange(0, K)[None, :]
    mask = dst < end[:, None]
    left, right = weights(dst, column[:, None], x, ZERO, INDEX, ACC)
    offset = dst
    if LAST:
        offset = dst * inner + channel[:, None]

    first = band * rows
    upper = tl.zeros_like(left)
    for i in range(first - 1, min(first + rows, y[0])):
        lower = tl.zeros_like(left)
        stop = first_output(i + 1, y, ZERO, INDEX)
        for line in range(first_output(i, y, ZERO, INDEX), stop, LINES):  # as in _sample
            # All of them on their way before any is needed.
            g = ()
            for k in tl.static_range(LINES):
                at = (plane * y[1] + line + k) * row * PACK
                g += (tl.load(grad + at + offset, mask & (line + k < stop), other=0).to(ACC),)
            for k in tl.static_range(LINES):
                upper_weight, lower_weight = weights(line + k, i, y, ZERO, INDEX, ACC)
                upper += tl.where(upper_weight == 0, 0, g[k]) * upper_weight
                lower += tl.where(lower_weight == 0, 0, g[k]) * lower_weight
        if i >= first:
            to_next = tl.sum(tl.where(right == 0, 0, upper * right), 1)
            total = tl.sum(tl.where(left == 0, 0, upper * left), 1)
            total += tl.gather(to_next, tl.maximum(lane - group * PIECE, 0), 0)
            at = ((plane * y[0] + i) * x[0] + column) * inner + channel
            tl.store(output + at, total.to(output.dtype.element_ty), mine & (lane >= group * PIECE))
        upper = lower
