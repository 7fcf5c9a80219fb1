"""The softmax loss of upsampled logits, and its gradient in the coarse logits, with nothing of the output's size.

_cells: a program is one warp; a lane owns up to KY x KX outputs of one cell, with what it knows of each in registers.
It loops over the classes three times, each time reading a class's four corners once for all of them: the corners'
range, the sum of the exponentials, and the gradient. The largest corner of all classes bounds every logit of the cell,
so it is the shift and no sum is ever rescaled; where the corners lie so far apart that the sum could underflow, or are
not finite, or a label is bad, the warp takes the slower way with the largest logit of every pixel. The gradient's sums
for the four corners go to four partial maps, which cells.combine adds up: no atomics.

Two exponentials and 21 other instructions a class and output (sm_90, of its machine code): a third of them each find
the logit, look for the label and add up corners. Moves the labels once, the coarse logits from L2, and with the
gradient 32 bytes of partial maps a class and KY x KX outputs, half of them in _cells and half in _combine. Bound by
issue slots: on an H100 at 16x150x128x128, x4, those are 0.5 ms in _cells and the special-function unit 0.35, beside 0.2
of writing; then 0.25 ms of _combine. With a third of the slots unused, as 14 warps a multiprocessor may leave them, 1.0
ms. A channels_last map is made contiguous chunk by chunk: lanes a cell apart would otherwise read a sector each.

The first loop has four classes' corners on their way together, or it would wait for each: 0.1 ms more. Registers (ptxas
for sm_80 to sm_120): 140, 144, 133 and 148, which leaves a multiprocessor 14, 14, 15 and 13 warps; 176 with weights.
"""

import torch
import triton
import triton.language as tl

from fcn_fast.kernels import grid as rule
from fcn_fast.kernels.cells import (
    ABREAST,
    LANES,
    cell_of_lane,
    combine,
    corners_of,
    in_line,
    least_of,
    load_corners,
    most_of,
    outputs_of,
)
from fcn_fast.kernels.grid import blend, weights
from fcn_fast.kernels.labels import (
    BAD,
    WEIGHERS,
    check,
    class_sum,
    divisor,
    finish,
    mean_scale,
    read_label,
    read_weights,
    readable,
    weigh,
)
from fcn_fast.reference import MEAN, NONE, SUM, accumulate_dtype, memory_format

MAPS = 64 << 20  # bytes of partial maps that are worth no thought
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# A sum of exponentials this far below the largest corner is still nowhere near underflow, and as precise.
REACH = tl.constexpr(40.0)


def upsample_softmax_loss(
    logits, target, weight, pixel_weight, grid, ignore_index, reduction, label_smoothing, check_labels, with_grad
):
    _, target, weight, pixel_weight = readable(logits[:0], target, weight, pixel_weight)
    n, classes, height, width = logits.shape
    if check_labels:
        check(target, classes, ignore_index)
    y, x, constants = rule.axes((height, width), grid)
    gradient = with_grad and reduction != NONE
    dtype = accumulate_dtype(logits.dtype)
    loss = logits.new_empty(target.shape if reduction == NONE else (), dtype=dtype)
    saved = logits.new_empty(0, dtype=dtype)
    if gradient:
        saved = torch.empty_like(logits, dtype=dtype, memory_format=memory_format(logits))

    (rows, tall), (columns, wide) = (rule.cells(axis, constants["ZERO"]) for axis in (y, x))
    side = 2 if dtype == torch.float64 else 4  # as many outputs as registers hold
    ky, kx = rule.power_of_two(tall, most=side), rule.power_of_two(wide, most=side)
    parts = triton.cdiv(tall, ky), triton.cdiv(wide, kx)
    splits = parts[0] * parts[1]
    map_size = 4 * splits * rows * columns * classes  # of an image's partial maps
    images = _images(logits, map_size * dtype.itemsize if gradient else 0)
    programs = [triton.cdiv(min(images, n - first) * rows * columns, LANES) for first in range(0, n, images)]
    found = logits.new_empty(sum(programs) * splits, dtype=dtype)
    maps = logits.new_empty(map_size * min(images, n) if gradient else 0, dtype=dtype)
    largest = max(map_size * images if gradient else 0, logits[:images].numel(), target.numel())
    constants.update(ACC=rule.accumulate_type(logits.dtype), WIDE=rule.index_type(largest))

    with torch.cuda.device_of(logits):
        total = None
        if reduction == MEAN:
            total = weigh(target, weight, pixel_weight, classes, ignore_index, constants["ACC"])
        done = 0
        for k, first in enumerate(range(0, n, images)):
            chunk = logits[first : first + images].contiguous()
            cells = chunk.shape[0] * rows * columns
            _cells[(programs[k], *parts)](
                chunk, target[first:], weight, None if pixel_weight is None else pixel_weight[first:],
                class_sum(weight, label_smoothing), total,
                loss[first:] if reduction == NONE else None, found[done:], maps if gradient else None,
                *y, *x, classes, cells, ignore_index, divisor(reduction, target),
                SMOOTHING=label_smoothing, KY=ky, KX=kx, LANES=LANES, WEIGHERS=WEIGHERS, **constants, num_warps=1,
                maxnreg=148 if weight is None and not label_smoothing else 176,
            )  # fmt: skip
            done += programs[k] * splits
            if gradient:
                combine(maps, saved[first : first + images], splits, cells, constants)
        if reduction != NONE:
            finish(found, None, loss, None, SUM, target)
    return loss, saved


def _images(logits, size):
    """How many images to do at once: their partial maps, of ``size`` bytes each, take at most 5 bytes a logit, or MAPS.

    With the gradient that is 9, less than a tenth of eager PyTorch's three maps at 4 times the size in half precision.
    """
    n = max(logits.shape[0], 1)
    return max(min(max(MAPS, 5 * logits.numel()) // max(size, 1), n), 1)


@triton.jit(do_not_specialize=[*rule.AXES, "classes", "cells", "ignore_index", "divisor"])
def _cells(
    logits, target, class_weight, pixel_weight, weight_sum, total, loss, found, maps,
    y_in, y_out, y_step, y_origin, y_unit, x_in, x_out, x_step, x_origin, x_unit,
    classes, cells, ignore_index, divisor,
    SMOOTHING: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, LANES: tl.constexpr, WEIGHERS: tl.constexpr,
    WIDE: tl.constexpr, ZERO: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    y, x = (y_in, y_out, y_step, y_origin, y_unit), (x_in, x_out, x_step, x_origin, x_unit)
    cell = cell_of_lane(y, x, cells, LANES, ZERO)
    corners = corners_of(cell, y, x, classes, ZERO, WIDE)
    plane = tl.cast(y[0], WIDE) * x[0]
    bound = tl.full((LANES,), -float("inf"), ACC)
    least = tl.full((LANES,), -float("inf"), ACC)
    finite = tl.zeros((LANES,), ACC)
    pointer = logits
    for _ in tl.range(classes, loop_unroll_factor=ABREAST):
        a, b, c, d = load_corners(pointer, corners, ACC)
        bound = tl.maximum(bound, most_of(a, b, c, d))
        least = tl.maximum(least, least_of(a, b, c, d))
        finite += (a + b + c + d) * 0
        pointer += plane

    if total is not None:
        scale = mean_scale(tl.sum(tl.load(total + tl.arange(0, WEIGHERS)), 0).to(ACC))
    else:
        scale = 1 / tl.cast(divisor, ACC)
    outputs = _outputs(
        target, class_weight, pixel_weight, scale, y, x, cell, tl.program_id(1), classes, ignore_index,
        SMOOTHING, KY, KX, WIDE, ZERO, INDEX, ACC,
    )  # fmt: skip
    wild = (finite != 0) | (bound - least > REACH) | (tl.min(tl.min(outputs[0][0], 0), 0) == BAD)
    if tl.max(wild.to(tl.int32), 0) == 0:
        value = _loss_and_gradient(
            logits, class_weight, weight_sum, loss, maps, bound, corners, plane, outputs, 0, scale, classes, cells,
            SMOOTHING, False, WIDE, ACC,
        )  # fmt: skip
    else:
        # A row at a time, so as not to take registers from the others.
        value = tl.zeros((), ACC)
        for row in range(KY):
            line = _outputs(
                target, class_weight, pixel_weight, scale, y, x, cell, tl.program_id(1) * KY + row, classes,
                ignore_index, SMOOTHING, 1, KX, WIDE, ZERO, INDEX, ACC,
            )  # fmt: skip
            value += _loss_and_gradient(
                logits, class_weight, weight_sum, loss, maps, bound, corners, plane, line, row, scale, classes, cells,
                SMOOTHING, True, WIDE, ACC,
            )  # fmt: skip
    if loss is None:
        program = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)
        tl.store(found + program, value)


@triton.jit
def _outputs(
    target, class_weight, pixel_weight, scale, y, x, cell, part, classes, ignore_index,
    SMOOTHING: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, WIDE: tl.constexpr, ZERO: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of KY x KX outputs of each lane's cell: labels and how much they count, the taps' weights, and where they lie."""
    n, i, j, used = cell
    dst_y, known_y = outputs_of(i, part, y, 0, KY, ZERO, INDEX)
    dst_x, known_x = outputs_of(j, tl.program_id(2), x, 1, KX, ZERO, INDEX)
    known = in_line(known_y & known_x & used[None, None, :])
    at = (n[None, None, :].to(WIDE) * y[1] + dst_y) * x[1] + dst_x
    shape: tl.constexpr = at.shape
    at = in_line(at)
    label = read_label(target, at, known, classes, ignore_index)
    hard, pixel = read_weights(label, at, class_weight, pixel_weight, ACC)
    pixel = tl.where(label >= 0, pixel * scale, 0)
    own = tl.reshape(pixel * hard * (1 - SMOOTHING), shape)
    even = tl.reshape(pixel * (SMOOTHING / tl.cast(classes, ACC)), shape)
    upper, lower = weights(dst_y, i[None, None, :], y, ZERO, INDEX, ACC)
    left, right = weights(dst_x, j[None, None, :], x, ZERO, INDEX, ACC)
    return (tl.reshape(label, shape), own, even), (upper, lower, left, right), (at, known)


@triton.jit
def _logits(corners, tap_weights, bound, WILD: tl.constexpr):
    """The logits of a lane's outputs, (KY, KX, LANES), from its corners; below bound and times log2(e) if not WILD."""
    a, b, c, d = corners
    if WILD:
        left = blend(a, c, tap_weights[0], tap_weights[1])
        right = blend(b, d, tap_weights[0], tap_weights[1])
        return blend(left, right, tap_weights[2], tap_weights[3])
    else:
        a, b, c, d = (a - bound) * LOG2_E, (b - bound) * LOG2_E, (c - bound) * LOG2_E, (d - bound) * LOG2_E
        left = tl.fma(c - a, tap_weights[1], a)
        right = tl.fma(d - b, tap_weights[1], b)
        return tl.fma(right - left, tap_weights[3], left)


@triton.jit
def _corners(pointer, corners, ACC: tl.constexpr):
    a, b, c, d = load_corners(pointer, corners, ACC)
    return a[None, None, :], b[None, None, :], c[None, None, :], d[None, None, :]


@triton.jit
def _weighted(g, weight, WILD: tl.constexpr):
    if WILD:
        return tl.where(weight == 0, 0, g * weight)
    else:
        return g * weight


@triton.jit
def _loss_and_gradient(
    logits, class_weight, weight_sum, loss, maps, bound, corners, plane, outputs, row, scale, classes, cells,
    SMOOTHING: tl.constexpr, WILD: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Some outputs' gradient to the partial maps, added to what is there if row > 0. Returns the sum of the losses."""
    pixels, tap_weights, place = outputs
    label, own, even = pixels
    lane_bound = bound[None, None, :]
    zeros = tl.zeros(label.shape, ACC)
    shift = zeros
    if WILD:
        shift -= float("inf")
        pointer = logits
        for _ in range(classes):
            shift = tl.maximum(shift, _logits(_corners(pointer, corners, ACC), tap_weights, lane_bound, WILD))
            pointer += plane

    sums, smooth, at_label = zeros, zeros, zeros
    pointer = logits
    for k in range(classes):
        x = _logits(_corners(pointer, corners, ACC), tap_weights, lane_bound, WILD)
        if WILD:
            x = (x - shift) * LOG2_E
        at_label = tl.where(label == k, x, at_label)
        sums += tl.exp2(x)
        if SMOOTHING > 0:
            smooth += x if class_weight is None else x * tl.load(class_weight + k)
        pointer += plane

    log_sum = tl.log(sums)
    value = own * (log_sum - at_label * LN_2)
    if SMOOTHING > 0:
        value += even * ((classes if weight_sum is None else tl.load(weight_sum)) * log_sum - smooth * LN_2)
    # Nothing but weightless pixels: 0, whatever 0 * inf would have been.
    value = tl.where(label >= 0, tl.where(scale == 0, 0, value), 0)
    if WILD:
        value = tl.where(label == BAD, tl.where(scale == 0, 0, float("nan")), value)
    if loss is not None:
        tl.store(loss + place[0], in_line(value), place[1])

    if maps is not None:
        whole = own
        if SMOOTHING > 0:
            whole += even * (classes if weight_sum is None else tl.load(weight_sum))
        share = tl.where(whole == 0, 0, whole / sums)
        if WILD:
            share = tl.where(label == BAD, float("nan"), share)
        q = tl.program_id(0) * bound.numel + tl.arange(0, bound.numel)
        split = tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)
        to_map = tl.cast(tl.num_programs(1) * tl.num_programs(2), WIDE) * classes * cells
        out = maps + tl.cast(split, WIDE) * classes * cells + q
        pointer = logits
        for k in range(classes):
            x = _logits(_corners(pointer, corners, ACC), tap_weights, lane_bound, WILD)
            if WILD:
                x = (x - shift) * LOG2_E
            g = tl.exp2(x) * share - tl.where(label == k, own, 0)
            if SMOOTHING > 0:
                g -= even if class_weight is None else even * tl.load(class_weight + k)
            if WILD:
                g = tl.where(share == 0, 0, g)  # an ignored pixel has none, whatever its logits
            left = tl.sum(_weighted(g, tap_weights[2], WILD), 1)[:, None, :]
            right = tl.sum(_weighted(g, tap_weights[3], WILD), 1)[:, None, :]
            _add(out, left, tap_weights[0], q < cells, row, WILD)
            _add(out + to_map, right, tap_weights[0], q < cells, row, WILD)
            _add(out + 2 * to_map, left, tap_weights[1], q < cells, row, WILD)
            _add(out + 3 * to_map, right, tap_weights[1], q < cells, row, WILD)
            pointer += plane
            out += cells
    return tl.sum(in_line(value), 0)


@triton.jit
def _add(out, g, weight, mask, row, WILD: tl.constexpr):
    g = tl.sum(tl.sum(_weighted(g, weight, WILD), 1), 0)
    if WILD:
        g += tl.load(out, mask & (row > 0), other=0)
    tl.store(out, g, mask)
