"""The label map of upsampled logits.

A program is one warp. The lanes of a cell, PY x PX of them, own KY x KX outputs each, with the best score and class of
each in registers. Interpolation is a convex combination, so a class can only win where its largest corner reaches the
bar, the largest of the smallest corners of all classes so far. The program takes a chunk of classes at a time, all
their corners on the way together: the lanes of a cell share its classes, raise the bar, and tell each other which
classes reach it in some lane. Those are compared pixel by pixel, in the arithmetic of bilinear_upsample; without its
care for weights of zero and for NaN where all corners so far are finite. A cell with others leaves every class in the
race.
"""

import torch
import triton
import triton.language as tl

from fcn_fast.kernels import grid as rule
from fcn_fast.kernels.cells import LANES, corners_of, in_line, least_of, load_corners, most_of
from fcn_fast.kernels.grid import blend, first_output, weights
from fcn_fast.kernels.cells import larger_or_nan


def upsample_argmax(logits, grid, dtype):
    logits = logits.contiguous()
    n, classes, height, width = logits.shape
    y, x, constants = rule.axes((height, width), grid)
    labels = logits.new_empty((n, y[1], x[1]), dtype=dtype)
    if not labels.numel():
        return labels
    (rows, tall), (columns, wide) = (rule.cells(axis, constants["ZERO"]) for axis in (y, x))
    ky, kx = rule.power_of_two(tall, most=8), rule.power_of_two(wide, most=4)
    py, px = rule.power_of_two(triton.cdiv(tall, ky), most=4), rule.power_of_two(triton.cdiv(wide, kx), most=8)
    parts = py * px
    slots = rule.power_of_two(triton.cdiv(classes, parts), most=min(8 * parts, 32 // parts))
    single = classes <= slots * parts
    cells = n * rows * columns
    with torch.cuda.device_of(logits):
        _argmax[(triton.cdiv(cells * parts, LANES), triton.cdiv(tall, ky * py), triton.cdiv(wide, kx * px))](
            logits, labels, *y, *x, classes, cells, KY=ky, KX=kx, PY=py, PX=px, SLOTS=slots, SINGLE=single, LANES=LANES,
            WIDE=rule.index_type(max(logits.numel(), labels.numel())), **constants,
            ACC=rule.accumulate_type(logits.dtype), num_warps=1, maxnreg=128 if single or ky * kx <= 16 else 168,
        )  # fmt: skip
    return labels


@triton.jit(do_not_specialize=[*rule.AXES, "classes", "cells"])
def _argmax(
    logits, labels,
    y_in, y_out, y_step, y_origin, y_unit, x_in, x_out, x_step, x_origin, x_unit,
    classes, cells, KY: tl.constexpr, KX: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, SLOTS: tl.constexpr, SINGLE: tl.constexpr, LANES: tl.constexpr,
    WIDE: tl.constexpr, ZERO: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    y, x = (y_in, y_out, y_step, y_origin, y_unit), (x_in, x_out, x_step, x_origin, x_unit)
    PARTS: tl.constexpr = PY * PX
    CELLS: tl.constexpr = LANES // PARTS
    lane = tl.arange(0, LANES)
    q = tl.program_id(0) * CELLS + lane % CELLS
    part = lane // CELLS
    used = q < cells
    q = tl.minimum(q, cells - 1)
    row = q // (x[0] + 1 + 2 * ZERO)
    j = q - row * (x[0] + 1 + 2 * ZERO) - 1 - ZERO
    n = row // (y[0] + 1 + 2 * ZERO)
    i = row - n * (y[0] + 1 + 2 * ZERO) - 1 - ZERO
    first_y = first_output(i, y, ZERO, INDEX) + (tl.program_id(1) * PY + part // PX) * KY
    first_x = first_output(j, x, ZERO, INDEX) + (tl.program_id(2) * PX + part % PX) * KX
    ky, kx = tl.arange(0, KY)[:, None, None], tl.arange(0, KX)[None, :, None]
    dst_y, dst_x = first_y[None, None, :] + ky, first_x[None, None, :] + kx
    upper_weight, lower_weight = weights(dst_y, i[None, None, :], y, ZERO, INDEX, ACC)
    left_weight, right_weight = weights(dst_x, j[None, None, :], x, ZERO, INDEX, ACC)
    corners = corners_of((n, i, j, lane >= 0), y, x, classes, ZERO, WIDE)
    plane = tl.cast(y[0], WIDE) * x[0]

    CHUNK: tl.constexpr = SLOTS * PARTS
    shared = tl.arange(0, SLOTS)[:, None] * PARTS + part[None, :]
    # Rounding moves an upsampled value by less than 4 units in the last place of the largest corner.
    SLACK: tl.constexpr = 16 * (2.0**-53 if ACC == tl.float64 else 2.0**-24)
    LARGE: tl.constexpr = 2.0**1000 if ACC == tl.float64 else 2.0**120
    bar = tl.full((LANES,), -float("inf"), ACC)
    size = tl.zeros((LANES,), ACC)
    best = tl.full((KY, KX, LANES), -float("inf"), ACC)
    winner = tl.zeros((KY, KX, LANES), tl.int32)
    for first in range(0, CHUNK if SINGLE else classes, CHUNK):
        pointers = logits + tl.cast(tl.minimum(first + shared, classes - 1), WIDE) * plane
        least, most = _range(pointers, corners, ACC)
        bar = tl.maximum(bar, tl.max(least, 0))
        largest = tl.max(tl.maximum(tl.abs(least), tl.abs(most)), 0)
        total = tl.sum(most, 0)
        size = tl.maximum(size, tl.where(total == total, largest, float("inf")))
        stays = most >= (_of_cell(bar, PARTS) - _of_cell(size, PARTS) * SLACK)[None, :]
        left = tl.reduce_or(tl.sum(tl.where(stays, 1 << shared, 0), 0), 0)
        left &= (2 << tl.minimum(classes - first - 1, 31)) - 1
        while left != 0:
            lowest = left & -left
            left ^= lowest
            k = first + (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23 & 255) - 127
            a, b, c, d = load_corners(logits + tl.cast(k, WIDE) * plane, corners, ACC)
            upper = _plain(a[None, None, :], b[None, None, :], left_weight, right_weight)
            lower = _plain(c[None, None, :], d[None, None, :], left_weight, right_weight)
            value = _plain(upper, lower, upper_weight, lower_weight)
            wins = value > best
            best = tl.where(wins, value, best)
            winner = tl.where(wins, k, winner)
    if tl.max((size >= LARGE).to(tl.int32), 0) != 0:
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
    known_y = ky < tl.where(used, first_output(i + 1, y, ZERO, INDEX) - first_y, 0)[None, None, :]
    known_x = kx < (first_output(j + 1, x, ZERO, INDEX) - first_x)[None, None, :]
    # Rows and columns by themselves, to be offsets that lanes have in common.
    at = labels + ((n.to(WIDE) * y[1] + first_y) * x[1] + first_x)[None, None, :] + ky.to(WIDE) * x[1] + kx
    tl.store(in_line(at), in_line(winner).to(labels.dtype.element_ty), in_line(known_y & known_x))


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
def _plain(low, high, low_weight, high_weight):
    return tl.fma(high, high_weight, low * low_weight)
