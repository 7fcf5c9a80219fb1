"""Warps whose lanes own a cell each: the outputs between four coarse pixels. Shared by the loss and the argmax.

Partial maps, (2, splits, classes, programs, LANES + 1), hold what cells add to their upper and to their lower corners;
the outputs of a large cell are split among several lanes. The right corner of a lane's cell is the left one of the next
lane's, so a program has LANES + 1 corners in a line. (After the last cell of a row, that line goes on with one that no
pixel stands for.) _combine: a program owns C classes of BLOCK coarse pixels and adds two numbers for each, three where
two programs meet, and for each split. Bound by reading the maps: on an H200 0.15 ms at 16x150x128x128, x4, which is
3.2 TB/s.
"""

import triton
import triton.language as tl

from fcn_fast.kernels.grid import cdiv, clamped, first_output, inside
from fcn_fast.kernels.launch import Launch

LANES = 32


@triton.jit
def place_of_cell(cell, y, x, ZERO: tl.constexpr):
    """The image, row and column of a cell; those of all images are in one line."""
    columns, rows = x[0] + 1 + 2 * ZERO, y[0] + 1 + 2 * ZERO
    return cell // columns // rows, cell // columns % rows - 1 - ZERO, cell % columns - 1 - ZERO


@triton.jit
def outputs_of(
    cell, part, axis, AXIS: tl.constexpr, K: tl.constexpr, ZERO: tl.constexpr, INDEX: tl.constexpr,
    LAST_FIRST: tl.constexpr = False,
):  # fmt: skip
    """The part-th K outputs of each lane's cell, along axis AXIS of a (KY, KX, LANES) tile, and which of them exist."""
    k = part * K + (K - 1 - tl.arange(0, K) if LAST_FIRST else tl.arange(0, K))
    dst = first_output(cell, axis, ZERO, INDEX)[None, :] + k[:, None]
    known = dst < first_output(cell + 1, axis, ZERO, INDEX)[None, :]
    return tl.expand_dims(dst, 1 - AXIS), tl.expand_dims(known, 1 - AXIS)


@triton.jit
def corners_of(cell, y, x, classes, ZERO: tl.constexpr, WIDE: tl.constexpr):
    """The offset in class 0 of the four corners of each lane's cell, and whether they are more than a border's zero."""
    n, i, j, used = cell
    image = n.to(WIDE) * classes * y[0]
    upper, lower = (image + clamped(i, y)) * x[0], (image + clamped(i + 1, y)) * x[0]
    left, right = clamped(j, x), clamped(j + 1, x)
    a, b, c, d = used, used, used, used
    if ZERO:
        a &= inside(i, y) & inside(j, x)
        b &= inside(i, y) & inside(j + 1, x)
        c &= inside(i + 1, y) & inside(j, x)
        d &= inside(i + 1, y) & inside(j + 1, x)
    return (upper + left, a), (upper + right, b), (lower + left, c), (lower + right, d)


@triton.jit
def load_corners(logits, corners, ACC: tl.constexpr):
    a = tl.load(logits + corners[0][0], corners[0][1], other=0).to(ACC)
    b = tl.load(logits + corners[1][0], corners[1][1], other=0).to(ACC)
    c = tl.load(logits + corners[2][0], corners[2][1], other=0).to(ACC)
    d = tl.load(logits + corners[3][0], corners[3][1], other=0).to(ACC)
    return a, b, c, d


@triton.jit
def in_line(tile):
    """A tile as loads and stores need it: a line is dealt to lanes one by one, a tile Triton would deal by its rows."""
    return tl.reshape(tile, (tile.numel,))


@triton.jit
def most_of(a, b, c, d):
    return tl.maximum(tl.maximum(a, b), tl.maximum(c, d))


@triton.jit
def larger_or_nan(a, b):
    """Where tl.maximum takes a number rather than NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def least_of(a, b, c, d):
    return tl.minimum(tl.minimum(a, b), tl.minimum(c, d))


@triton.jit
def place_in_maps(maps, classes, LANES: tl.constexpr, WIDE: tl.constexpr):
    """Where a warp's upper map begins, how far it is to the next class, and to the lower map."""
    line = tl.num_programs(0) * (LANES + 1)
    split = tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)
    first = tl.cast(split, WIDE) * classes * line + tl.program_id(0) * (LANES + 1)
    to_lower = tl.cast(tl.num_programs(1) * tl.num_programs(2), WIDE) * classes * line
    return maps + first + tl.arange(0, LANES), line, to_lower


@triton.jit
def add_to_map(out, left, right, row, STEEP: tl.constexpr):
    """What a row of a partial map gets: a lane's right corner is the next lane's left one, and the last one's a place
    of its own."""
    lane = tl.arange(0, left.numel)
    last = lane == left.numel - 1
    left += tl.where(lane == 0, 0, tl.gather(right, tl.maximum(lane - 1, 0), 0))
    if STEEP:
        left += tl.load(out, (lane >= 0) & (row > 0), other=0)  # lane >= 0 makes a line of row > 0
        right += tl.load(out + 1, last & (row > 0), other=0)
    tl.store(out, left)
    tl.store(out + 1, right, last)


def combining(shape, channels_last, splits, programs, wide, zero):
    """(maps, output): partial maps added up over the coarse pixels of output, (N, C, h, w) of their dtype."""
    n, classes, height, width = shape
    pixels = height * width
    strides = (1, classes) if channels_last else (pixels, 1)
    # Many channels that are no whole sectors are written in longer lines.
    c, block = (32, 32) if channels_last and classes > 32 and classes % 8 else (8, 128)
    return Launch(
        _combine, (n * cdiv(pixels, block) * cdiv(classes, c),),
        classes, height, width, splits, programs, classes * pixels, *strides,
        C=c, BLOCK=block, LANES=LANES, WIDE=wide, ZERO=zero, num_warps=4,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["classes", "height", "width", "programs"],  # but a single split needs no loop
    do_not_specialize_on_alignment=["output", "splits", "image_stride", "class_stride", "pixel_stride"],
)
def _combine(
    maps, output, classes, height, width, splits, programs, image_stride, class_stride, pixel_stride,
    C: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr, ZERO: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(height * width, BLOCK)
    groups = tl.cdiv(classes, C)
    n = tl.program_id(0) // tiles // groups
    # Past the ends the last class and the last pixel again: loads that nothing is asked of before are on their way
    # together.
    k = tl.minimum(tl.program_id(0) // tiles % groups * C + tl.arange(0, C), classes - 1)[:, None]
    p = tl.minimum(tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK), height * width - 1)[None, :]
    columns = width + 1 + 2 * ZERO
    # The cell that the pixel is the upper left corner of, and the one above; each has the one to its left added in.
    cell = (p // width + 1 + ZERO) * columns + p % width + 1 + ZERO
    above = cell - columns
    line = programs * (LANES + 1)
    at = maps + tl.cast(k, WIDE) * line + n * (tl.cdiv((height + 1 + 2 * ZERO) * columns, LANES) * (LANES + 1))
    to_lower = tl.cast(splits, WIDE) * classes * line
    total = tl.zeros((C, BLOCK), maps.dtype.element_ty)
    for _ in range(splits):
        upper, upper_left = _of_cell(at, cell, LANES)
        lower, lower_left = _of_cell(at + to_lower, above, LANES)
        total = total + (upper + upper_left) + (lower + lower_left)
        at += tl.cast(classes, WIDE) * line
    output += tl.cast(n, tl.int64) * image_stride
    tl.store(output + tl.cast(k, WIDE) * class_stride + tl.cast(p, WIDE) * pixel_stride, total)


@triton.jit
def _of_cell(at, cell, LANES: tl.constexpr):
    """What a cell adds to its left corner, and the one before to its right corner if that is another program's."""
    at += cell + cell // LANES
    return tl.load(at), tl.load(at - 1, cell % LANES == 0, other=0)
