"""The label map of upsampled logits.

A program is one warp. PY x PX lanes share a cell; each owns up to KY x KX of its outputs, with the best score and class
of each in registers. Classes come in chunks of up to 32. First their four corners alone, on the way together, each lane
loading a part of the classes: interpolation is a convex combination, so a class can only win where its largest corner
reaches the bar, the largest of all smallest corners so far. Then those that reach it in some lane, pixel by pixel in
the arithmetic of bilinear_upsample, but for the taps of weight zero, which change nothing where corners are finite. A
warp that has met others starts afresh, with every class and the whole arithmetic.

Reads the coarse map once, neighbouring cells side by side, and what reaches the bar again from L1; writes the labels
once. A channels_last map is made contiguous first, a copy of the coarse map: lanes a cell apart would otherwise read a
sector each. Bound by issue slots, and on rough maps as much by comparing and selecting, which a GPU does at half its
rate: 3 of 6 instructions a class and output. Instructions of a warp at 19 classes and x8, which is 1,024 outputs
(sm_90, of its machine code): 1,200, and 200 for each class that reaches the bar. An H100 took 8 us at 19x128x256, x8,
on smooth maps and 18 us on random ones, as did an H200, which took 0.11 ms and 0.28 ms at 16x150x128x128, x4.

Registers (ptxas): 128 for sm_80 and sm_90 with up to 32 classes or 16 outputs a lane, 168 otherwise; up to 213 for
Blackwell, and 174 in float64.
"""

import functools

import torch
import triton
import triton.language as tl

from fcn_fast.kernels import grid as rule
from fcn_fast.kernels.cells import LANES, corners_of, in_line, larger_or_nan, least_of, load_corners, place_of_cell
from fcn_fast.kernels.grid import blend, first_output, weights
from fcn_fast.kernels.launch import Launch


def upsample_argmax(logits, grid, dtype):
    logits = logits.contiguous()
    labels = torch.empty((logits.shape[0], grid[0], grid[1]), dtype=dtype, device=logits.device)
    if not labels.numel():
        return labels
    with torch.cuda.device_of(logits):
        device = triton.runtime.driver.active.get_current_device()
        _plan(logits.shape, tuple(grid), logits.dtype, _pairs_registers(device))(logits, labels)
    return labels


@functools.lru_cache
def _plan(shape, grid, dtype, pairs_registers):
    n, classes, height, width = shape
    y, x, constants = rule.axes((height, width), grid)
    (rows, tall), (columns, wide) = (rule.cells(axis, constants["ZERO"]) for axis in (y, x))
    double = dtype == torch.float64
    ky = rule.power_of_two(tall, most=4 if double else 8)
    kx = rule.power_of_two(wide, most=4)
    py, px = rule.power_of_two(rule.cdiv(tall, ky), most=4), rule.power_of_two(rule.cdiv(wide, kx), most=8)
    parts = py * px
    slots = rule.power_of_two(rule.cdiv(classes, parts), most=min(8 * parts, 32 // parts))
    single = classes <= slots * parts
    cells = n * rows * columns
    constants.update(
        KY=ky,
        KX=kx,
        PY=py,
        PX=px,
        SLOTS=slots,
        SINGLE=single,
        LANES=LANES,
        WIDE=rule.index_type(n * max(classes * height * width, y[1] * x[1])),
        ACC=rule.accumulate_type(dtype),
        num_warps=1,
        maxnreg=None if double or pairs_registers else 128 if single or ky * kx <= 16 else 168,
    )
    programs = rule.cdiv(cells * parts, LANES), rule.cdiv(tall, ky * py), rule.cdiv(wide, kx * px)
    return Launch(_argmax, programs, *y, *x, classes, cells, **constants)


@functools.cache
def _pairs_registers(device):
    """Whether a GPU computes with pairs of registers, as from Blackwell on: to align them takes more of them."""
    return triton.runtime.driver.active.get_current_target().arch >= 100


@triton.jit(do_not_specialize=[*rule.AXES, "classes", "cells"])
def _argmax(
    logits, labels,
    y_in, y_out, y_step, y_origin, y_unit, x_in, x_out, x_step, x_origin, x_unit,
    classes, cells,
    KY: tl.constexpr, KX: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, SLOTS: tl.constexpr, SINGLE: tl.constexpr,
    LANES: tl.constexpr, WIDE: tl.constexpr, ZERO: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    y, x = (y_in, y_out, y_step, y_origin, y_unit), (x_in, x_out, x_step, x_origin, x_unit)
    PARTS: tl.constexpr = PY * PX
    CELLS: tl.constexpr = LANES // PARTS
    lane = tl.arange(0, LANES)
    part = lane // CELLS
    # Cells of all images are in one line; lanes beyond its end have the last cell, and store nothing.
    at = tl.program_id(0) * CELLS + lane % CELLS
    q = tl.minimum(at, cells - 1)
    n, i, j = place_of_cell(q, y, x, ZERO)
    first_y = first_output(i, y, ZERO, INDEX) + (tl.program_id(1) * PY + part // PX) * KY
    first_x = first_output(j, x, ZERO, INDEX) + (tl.program_id(2) * PX + part % PX) * KX
    ky, kx = tl.arange(0, KY)[:, None, None], tl.arange(0, KX)[None, :, None]
    dst_y, dst_x = first_y[None, None, :] + ky, first_x[None, None, :] + kx
    upper_weight, lower_weight = weights(dst_y, i[None, None, :], y, ZERO, INDEX, ACC)
    left_weight, right_weight = weights(dst_x, j[None, None, :], x, ZERO, INDEX, ACC)
    corners = corners_of((n, i, j, lane >= 0), y, x, classes, ZERO, WIDE)
    plane = tl.cast(y[0], WIDE) * x[0]

    CHUNK: tl.constexpr = SLOTS * PARTS
    mine = tl.arange(0, SLOTS)[:, None] * PARTS + part[None, :]
    # Rounding moves an upsampled value by less than 4 units in the last place of the largest corner.
    SLACK: tl.constexpr = 16 * (2.0**-53 if ACC == tl.float64 else 2.0**-24)
    HUGE: tl.constexpr = 2.0**1000 if ACC == tl.float64 else 2.0**120
    bar = tl.full((LANES,), -float("inf"), ACC)
    size = tl.zeros((LANES,), ACC)
    best = tl.full((KY, KX, LANES), -float("inf"), ACC)
    winner = tl.zeros((KY, KX, LANES), tl.int32)
    # With bounds that are known a single chunk is no loop, and best and winner take no registers while it loads.
    for first in range(0, CHUNK if SINGLE else classes, CHUNK):
        pointers = logits + tl.minimum(first + mine, classes - 1).to(WIDE) * plane
        least, most = _range(pointers, corners, ACC)
        bar = tl.maximum(bar, tl.max(least, 0))
        largest, total = tl.max(tl.maximum(tl.abs(least), tl.abs(most)), 0), tl.sum(most, 0)
        size = tl.maximum(size, tl.where(total == total, largest, float("inf")))
        stays = most >= (_of_cell(bar, PARTS) - _of_cell(size, PARTS) * SLACK)[None, :]
        left = tl.reduce_or(tl.sum(tl.where(stays, 1 << mine, 0), 0), 0)
        left &= (2 << tl.minimum(classes - first - 1, 31)) - 1
        while left != 0:
            lowest = left & -left
            left ^= lowest
            # Of a power of two, a float's exponent is the logarithm.
            k = first + (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23 & 255) - 127
            a, b, c, d = load_corners(logits + tl.cast(k, WIDE) * plane, corners, ACC)
            upper = _finite_blend(a[None, None, :], b[None, None, :], left_weight, right_weight)
            lower = _finite_blend(c[None, None, :], d[None, None, :], left_weight, right_weight)
            value = _finite_blend(upper, lower, upper_weight, lower_weight)
            wins = value > best
            best = tl.where(wins, value, best)
            winner = tl.where(wins, k, winner)
    if tl.max((size >= HUGE).to(tl.int32), 0) != 0:
        best = tl.full((KY, KX, LANES), -float("inf"), ACC)
        winner = tl.zeros((KY, KX, LANES), tl.int32)
        for k in range(classes):
            a, b, c, d = load_corners(logits + tl.cast(k, WIDE) * plane, corners, ACC)
            upper = blend(a[None, None, :], b[None, None, :], left_weight, right_weight)
            lower = blend(c[None, None, :], d[None, None, :], left_weight, right_weight)
            value = blend(upper, lower, upper_weight, lower_weight)
            wins = (value > best) | ((value != value) & (best == best))
            best = tl.where(wins, value, best)
            winner = tl.where(wins, k, winner)
    known_y = ky < tl.where(at < cells, first_output(i + 1, y, ZERO, INDEX) - first_y, 0)[None, None, :]
    known_x = kx < (first_output(j + 1, x, ZERO, INDEX) - first_x)[None, None, :]
    # Rows and columns by themselves, to be offsets that lanes have in common.
    pointers = labels + ((n.to(WIDE) * y[1] + first_y) * x[1] + first_x)[None, None, :] + ky.to(WIDE) * x[1] + kx
    tl.store(in_line(pointers), in_line(winner).to(labels.dtype.element_ty), in_line(known_y & known_x))


@triton.jit
def _of_cell(x, PARTS: tl.constexpr):
    """The largest among the lanes of a cell."""
    tile = tl.reshape(x, (PARTS, x.numel // PARTS))
    return tl.reshape(tl.broadcast_to(tl.max(tile, 0, keep_dims=True), tile.shape), (x.numel,))


@triton.jit
def _range(pointers, corners, ACC: tl.constexpr):
    """The least and the largest corner of a tile of classes and lanes, NaN where one is."""
    a = _tile(pointers, corners[0], ACC)
    b = _tile(pointers, corners[1], ACC)
    c = _tile(pointers, corners[2], ACC)
    d = _tile(pointers, corners[3], ACC)
    return least_of(a, b, c, d), larger_or_nan(larger_or_nan(a, b), larger_or_nan(c, d))


@triton.jit
def _tile(pointers, corner, ACC: tl.constexpr):
    at = pointers + corner[0][None, :]
    mask = tl.broadcast_to(corner[1][None, :], at.shape)
    return tl.reshape(tl.load(in_line(at), in_line(mask), other=0), at.shape).to(ACC)


@triton.jit
def _finite_blend(low, high, low_weight, high_weight):
    """blend, but for the sign of a zero."""
    return tl.fma(high, high_weight, low * low_weight)
