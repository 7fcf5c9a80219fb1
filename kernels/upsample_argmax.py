"""The label map of upsampled logits.

A program is one warp; a lane owns up to KY x KX outputs of one cell, with the best score and class of each in
registers. It loops over the classes twice. First over their four corners alone: interpolation is a convex combination,
so a class can only win where its largest corner reaches the largest of all classes' smallest corners. Then over those
that reach this in some lane, pixel by pixel in the arithmetic of bilinear_upsample. A cell with corners that are not
finite leaves every class in the race. Both loops have the corners of four classes on their way together, for a class
that does not reach the bar is less work than its load takes to come.

Reads the coarse map twice, neighbouring cells side by side and mostly from L2, and writes the labels once. A
channels_last map is made contiguous first, a copy of the coarse map: lanes a cell apart would otherwise read a sector
each. Bound by issue slots. Instructions a class and cell (sm_90, of its machine code): 28 to find the bar and 33 to see
that a class does not reach it, and 200 where one does, for 16 outputs; so 4 a class and output on smooth maps, 15 on
rough ones. At 19x128x256, x8, the smooth case is 5 us of an H100: as long as the launch.

Registers (ptxas for sm_80 to sm_120): 145 with 16 outputs a lane, up to 208 with 32.
"""

import torch
import triton
import triton.language as tl

from fcn_fast.kernels import grid as rule
from fcn_fast.kernels.cells import (
    ABREAST,
    LANES,
    cell_of_lane,
    corners_of,
    in_line,
    least_of,
    load_corners,
    most_of,
    outputs_of,
)
from fcn_fast.kernels.grid import blend, weights


def upsample_argmax(logits, grid, dtype):
    logits = logits.contiguous()
    n, classes, height, width = logits.shape
    y, x, constants = rule.axes((height, width), grid)
    labels = logits.new_empty((n, y[1], x[1]), dtype=dtype)
    if not labels.numel():
        return labels
    (rows, tall), (columns, wide) = (rule.cells(axis, constants["ZERO"]) for axis in (y, x))
    ky, kx = rule.power_of_two(tall, most=4), rule.power_of_two(wide, most=8)
    cells = n * rows * columns
    with torch.cuda.device_of(logits):
        _argmax[(triton.cdiv(cells, LANES), triton.cdiv(tall, ky), triton.cdiv(wide, kx))](
            logits, labels, *y, *x, classes, cells, KY=ky, KX=kx, LANES=LANES,
            WIDE=rule.index_type(max(logits.numel(), labels.numel())), **constants,
            ACC=rule.accumulate_type(logits.dtype), num_warps=1, maxnreg=208,
        )  # fmt: skip
    return labels


@triton.jit(do_not_specialize=[*rule.AXES, "classes", "cells"])
def _argmax(
    logits, labels,
    y_in, y_out, y_step, y_origin, y_unit, x_in, x_out, x_step, x_origin, x_unit,
    classes, cells, KY: tl.constexpr, KX: tl.constexpr, LANES: tl.constexpr,
    WIDE: tl.constexpr, ZERO: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    y, x = (y_in, y_out, y_step, y_origin, y_unit), (x_in, x_out, x_step, x_origin, x_unit)
    cell = cell_of_lane(y, x, cells, LANES, ZERO)
    n, i, j, used = cell
    dst_y, known_y = outputs_of(i, tl.program_id(1), y, 0, KY, ZERO, INDEX)
    dst_x, known_x = outputs_of(j, tl.program_id(2), x, 1, KX, ZERO, INDEX)
    known = known_y & known_x & used[None, None, :]
    if tl.max(tl.max(tl.max(known.to(tl.int32), 0), 0), 0) != 0:
        upper_weight, lower_weight = weights(dst_y, i[None, None, :], y, ZERO, INDEX, ACC)
        left_weight, right_weight = weights(dst_x, j[None, None, :], x, ZERO, INDEX, ACC)
        corners = corners_of(cell, y, x, classes, ZERO, WIDE)
        plane = tl.cast(y[0], WIDE) * x[0]

        bar = tl.full((LANES,), -float("inf"), ACC)
        size = tl.zeros((LANES,), ACC)
        finite = tl.zeros((LANES,), ACC)
        pointer = logits
        for _ in tl.range(classes, loop_unroll_factor=ABREAST):
            a, b, c, d = load_corners(pointer, corners, ACC)
            least, most = least_of(a, b, c, d), most_of(a, b, c, d)
            bar = tl.maximum(bar, least)
            size = tl.maximum(size, tl.maximum(tl.abs(least), tl.abs(most)))
            finite += (a + b + c + d) * 0
            pointer += plane
        # Rounding moves an upsampled value by less than 4 units in the last place of the largest corner.
        EPSILON: tl.constexpr = 2.0**-53 if ACC == tl.float64 else 2.0**-24
        bar = tl.where(finite == 0, bar - size * (16 * EPSILON), -float("inf"))
        bar = tl.where(used, bar, float("inf"))

        best = tl.full((KY, KX, LANES), -float("inf"), ACC)
        winner = tl.zeros((KY, KX, LANES), tl.int32)
        pointer = logits
        for first in range(0, classes, ABREAST):
            group = _group(pointer, plane, corners, classes - first, ACC)
            for k in tl.static_range(ABREAST):
                a, b, c, d = group[k]
                stays = (most_of(a, b, c, d) >= bar) | ((finite != 0) & used)
                if tl.max((stays & (first + k < classes)).to(tl.int32), 0) != 0:
                    upper = blend(a[None, None, :], b[None, None, :], left_weight, right_weight)
                    lower = blend(c[None, None, :], d[None, None, :], left_weight, right_weight)
                    value = blend(upper, lower, upper_weight, lower_weight)
                    wins = (value > best) | ((value != value) & (best == best))
                    best = tl.where(wins, value, best)
                    winner = tl.where(wins, first + k, winner)
            pointer += plane * ABREAST
        at = (n[None, None, :].to(WIDE) * y[1] + dst_y) * x[1] + dst_x
        tl.store(labels + in_line(at), in_line(winner).to(labels.dtype.element_ty), in_line(known))


@triton.jit
def _group(pointer, plane, corners, classes, ACC: tl.constexpr):
    """The corners of ABREAST classes, on their way together; of those past the last class, of the last one."""
    last = classes - 1
    return (
        load_corners(pointer, corners, ACC),
        load_corners(pointer + tl.minimum(last, 1) * plane, corners, ACC),
        load_corners(pointer + tl.minimum(last, 2) * plane, corners, ACC),
        load_corners(pointer + tl.minimum(last, 3) * plane, corners, ACC),
    )
