"""The softmax loss of upsampled logits, and its gradient in the coarse logits, with nothing of the output's size.

_cells: a program is one warp; a lane owns up to KY x KX outputs of one cell, with what it knows of each in registers.
A warp's cells are of one image, which so has the same bits alone and in a batch.
It loops over the classes twice, each time reading a class's four corners once for all of them: for the sum of the
exponentials, and for the gradient. They are shifted by a number near the cell's largest logit, which a class raises
whose corners lie HEADROOM above it: then the sums are rescaled, for most cells a few times or never. Along either axis
of a cell logits are an arithmetic progression, so their exponentials are a geometric one: four of them a class. Their
sums need a product an output; what they give the corners are polynomials of a row's ratio, highest output first. The
logits of the labels are looked up in the second loop: only in classes that some output of the warp has, as a hash of
six bits tells, is each output's label compared, and its part of the gradient weighs the corners' logits too. Where a
class's corners lie so far apart that a progression could leave the range of numbers, or are not finite, or a label is
bad, the warp takes the slower way, once the first loop has found that out: an exponential an output, with the largest
logit of every pixel. Where all labels are ignored it only writes zeros. The gradient's sums for the corners go to
partial maps, which cells.combine adds up: no atomics.

Instructions a class and 16 outputs (sm_90, of its machine code): 97 for the sum, 117 for the gradient, and where labels
are compared 95 more; eight of them exponentials. Moves the labels once, the coarse logits twice from L2 or from memory,
and with the gradient 16 bytes of partial maps a class and KY x KX outputs, half of them in _cells and half in _combine.
A channels_last map is made contiguous chunk by chunk: lanes a cell apart would otherwise read a sector each.

At 16x150x128x128, x4, with labels in blocks of 16 pixels, the issue slots of _cells are 0.3 ms of an H100 or an H200. A
profiler gave _cells alone 0.48 ms on an H200, in bfloat16 0.46 ms; 0.04 ms more with random labels, and 3.8 ms the
slower way.

Both loops have the corners of the next two classes on their way (SUMS_AHEAD, GRADIENT_AHEAD), or a warp would wait for
each longer than it computes. Registers (ptxas for sm_80 to sm_120): 128, which leaves a multiprocessor 16 warps; up to
168 with a zero border, in double precision and with a loss of each pixel; up to 208 with weights.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fcn_fast.kernels import grid as rule
from fcn_fast.kernels.cells import (
    LANES,
    add_to_map,
    combining,
    corners_of,
    in_line,
    larger_or_nan,
    least_of,
    most_of,
    outputs_of,
    place_in_maps,
    place_of_cell,
)
from fcn_fast.kernels.grid import blend, first_output, weights
from fcn_fast.kernels.labels import (
    BAD,
    IGNORED,
    WEIGHERS,
    check,
    class_sum,
    divisor,
    finishing,
    mean_scale,
    read_label,
    read_weights,
    readable,
    weighing,
)
from fcn_fast.kernels.launch import Launch
from fcn_fast.reference import MEAN, NONE, accumulate_dtype, memory_format

MAPS = 64 << 20  # bytes of partial maps that are worth no thought
LOG2_E = tl.constexpr(1.4426950408889634)
# How far apart a class's corners may lie. The class with the largest one then has no logit further below it, so that no
# sum is too small, and no progression leaves the range of float32 (_steps), up to HEADROOM above the shift.
REACH = tl.constexpr(20.0)
HEADROOM = tl.constexpr(4.0)
# Classes whose corners are on their way: in _sums and _gentle ahead, in _steep's first loop together.
SUMS_AHEAD, GRADIENT_AHEAD, ABREAST = tl.constexpr(2), tl.constexpr(2), tl.constexpr(4)


def upsample_softmax_loss(
    logits, target, weight, pixel_weight, grid, ignore_index, reduction, label_smoothing, check_labels, with_grad
):
    _, target, weight, pixel_weight = readable(logits[:0], target, weight, pixel_weight)
    if check_labels:
        check(target, logits.shape[1], ignore_index)
    gradient = with_grad and reduction != NONE
    dtype, layout = accumulate_dtype(logits.dtype), memory_format(logits)
    loss = logits.new_empty(target.shape if reduction == NONE else (), dtype=dtype)
    saved = logits.new_empty(0, dtype=dtype)
    if gradient:
        saved = torch.empty_like(logits, dtype=dtype, memory_format=layout)

    weighted = weight is not None or pixel_weight is not None
    plan = _plan(logits.shape, tuple(grid), dtype, layout, gradient, reduction, ignore_index, label_smoothing, weighted)
    found = logits.new_empty(plan.found, dtype=dtype)
    maps = logits.new_empty(plan.maps, dtype=dtype) if gradient else None
    with torch.cuda.device_of(logits):
        total = None
        if reduction == MEAN:
            total = logits.new_empty(WEIGHERS, dtype=torch.float64)
            plan.weigh(target, weight, pixel_weight, total)
        for first, end, of_chunk, add_cells, combine in plan.chunks:
            add_cells(
                logits[first:end].contiguous(), target[first:], weight,
                None if pixel_weight is None else pixel_weight[first:], class_sum(weight, label_smoothing), total,
                loss[first:] if reduction == NONE else None, found[of_chunk:], maps,
            )  # fmt: skip
            if gradient:
                combine(maps, saved[first:end])
        if reduction != NONE:
            plan.finish(found, None, loss, None)
    return loss, saved


class _Plan(NamedTuple):
    chunks: list  # of the batch: the first image, the end, where its sums begin, launches of _cells and _combine
    found: int  # how many sums there are
    maps: int  # how many numbers partial maps have
    weigh: Launch
    finish: Launch


@functools.lru_cache
def _plan(shape, grid, dtype, layout, gradient, reduction, ignore_index, label_smoothing, weighted):
    """How a call on tensors of these sizes and kinds is launched, chunk by chunk of its batch.

    A chunk's partial maps take at most 5 bytes a logit, or MAPS: with the gradient's 4 bytes 9, less than a tenth of
    eager PyTorch's three maps at 4 times the size in half precision. All chunks get as many images, or a small last one
    would leave most of the GPU idle.
    """
    n, classes, height, width = shape
    y, x, constants = rule.axes((height, width), grid)
    (rows, tall), (columns, wide) = (rule.cells(axis, constants["ZERO"]) for axis in (y, x))
    side = 2 if dtype == torch.float64 else 4  # as many outputs as registers hold
    ky, kx = rule.power_of_two(tall, most=side), rule.power_of_two(wide, most=side)
    parts = rule.cdiv(tall, ky), rule.cdiv(wide, kx)
    splits = parts[0] * parts[1]
    map_size = 0  # of an image's partial maps
    if gradient:
        map_size = 2 * splits * rule.cdiv(rows * columns, LANES) * (LANES + 1) * classes
    most = max(MAPS, 5 * n * classes * height * width) // max(map_size * dtype.itemsize, 1)
    images = rule.cdiv(n, rule.cdiv(n, max(most, 1))) if n else 0
    count = n * y[1] * x[1]
    largest = max(images * map_size, images * classes * height * width, count)
    plain = not weighted and not label_smoothing
    lean = plain and reduction != NONE and not constants["ZERO"] and dtype != torch.float64
    constants.update(
        SMOOTHING=label_smoothing,
        KY=ky,
        KX=kx,
        LANES=LANES,
        WEIGHERS=WEIGHERS,
        ACC=rule.accumulate_type(dtype),
        WIDE=rule.index_type(largest),
        num_warps=1,
        maxnreg=128 if lean else 168 if plain else 208,  # as few as nothing has to be spilled with
    )

    @functools.cache
    def launches(images):
        programs = images * rule.cdiv(rows * columns, LANES)
        numbers = *y, *x, classes, rows * columns, ignore_index, divisor(reduction, n, count)
        sizes = (images, *shape[1:]), layout == torch.channels_last, splits, programs
        combine = combining(*sizes, constants["WIDE"], constants["ZERO"])
        return programs, Launch(_cells, (programs, *parts), *numbers, **constants), combine

    chunks, found = [], 0
    for first in range(0, n, max(images, 1)):
        end = min(first + images, n)
        programs, add_cells, combine = launches(end - first)
        chunks.append((first, end, found, add_cells, combine))
        found += programs * splits
    weigh = weighing(count, classes, ignore_index, constants["ACC"])
    return _Plan(chunks, found, images * map_size, weigh, finishing(found, 1))


@triton.jit(
    do_not_specialize=[*rule.AXES, "classes", "cells", "ignore_index", "divisor"],
    do_not_specialize_on_alignment=["logits", "target", "pixel_weight", "loss", "found"],  # each chunk's is its own
)
def _cells(
    logits, target, class_weight, pixel_weight, weight_sum, total, loss, found, maps,
    y_in, y_out, y_step, y_origin, y_unit, x_in, x_out, x_step, x_origin, x_unit,
    classes, cells, ignore_index, divisor,
    SMOOTHING: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, LANES: tl.constexpr, WEIGHERS: tl.constexpr,
    WIDE: tl.constexpr, ZERO: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    y, x = (y_in, y_out, y_step, y_origin, y_unit), (x_in, x_out, x_step, x_origin, x_unit)
    warps = tl.cdiv(cells, LANES)  # of an image
    lane = tl.program_id(0) % warps * LANES + tl.arange(0, LANES)
    _, i, j = place_of_cell(tl.minimum(lane, cells - 1), y, x, ZERO)  # the last one again, in lanes that have none
    cell = tl.program_id(0) // warps, i, j, lane < cells
    corners = _corners(cell, y, x, classes, ZERO, WIDE)
    plane = tl.cast(y[0], WIDE) * x[0]
    if total is not None:
        # As a rectangle: a line Triton deals by twos, and then a warp's outputs too, where they are as many.
        at = tl.arange(0, 8)[:, None] * (WEIGHERS // 8) + tl.arange(0, WEIGHERS // 8)[None, :]
        scale = mean_scale(tl.sum(tl.sum(tl.load(total + at), 1), 0).to(ACC))
    else:
        scale = 1 / tl.cast(divisor, ACC)
    outputs = _outputs(
        target, class_weight, pixel_weight, scale, y, x, cell, tl.program_id(1), classes, ignore_index,
        SMOOTHING, KY, KX, WIDE, ZERO, INDEX, ACC,
    )  # fmt: skip
    label, own, even = outputs[0]
    # Weights that are not finite, and bad labels, need each output by itself too.
    sound = tl.min((in_line((own + even) * 0 == 0) & in_line(label != BAD)).to(tl.int32), 0)
    if tl.max(in_line(label != IGNORED).to(tl.int32), 0) == 0:
        value = _nothing(loss, maps, outputs[1], classes, LANES, WIDE, ACC)
    else:
        down = _steps(cell[1], tl.program_id(1), y, KY, ZERO, INDEX, ACC)
        along = _steps(cell[2], tl.program_id(2), x, KX, ZERO, INDEX, ACC)
        taps = None
        if loss is not None:  # or else only afterwards, rather than in registers all the while
            taps = _taps(y, x, cell, tl.program_id(1), KY, KX, ZERO, INDEX, ACC)
        sums = _sums(logits, class_weight, corners, plane, label, taps, down, along, classes, SMOOTHING, ACC)
        if (tl.min(sums[4].to(tl.int32), 0) & sound) != 0:
            taps = _taps(y, x, cell, tl.program_id(1), KY, KX, ZERO, INDEX, ACC)
            value = _gentle(
                logits, class_weight, pixel_weight, weight_sum, loss, maps, sums, corners, plane, outputs, taps, down,
                along, scale, classes, SMOOTHING, WIDE, ACC,
            )  # fmt: skip
        else:
            # A row at a time, so as not to take registers from the others.
            value = tl.zeros((), ACC)
            for row in range(KY):
                of_row = _outputs(
                    target, class_weight, pixel_weight, scale, y, x, cell, tl.program_id(1) * KY + row, classes,
                    ignore_index, SMOOTHING, 1, KX, WIDE, ZERO, INDEX, ACC,
                )  # fmt: skip
                row_taps = _taps(y, x, cell, tl.program_id(1) * KY + row, 1, KX, ZERO, INDEX, ACC)
                losses = _steep(
                    logits, class_weight, weight_sum, loss, maps, corners, plane, of_row, row_taps, row, scale, classes,
                    SMOOTHING, WIDE, ACC,
                )  # fmt: skip
                if loss is None:
                    value += losses
    if loss is None:
        program = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)
        tl.store(found + program, value)


@triton.jit
def _corners(cell, y, x, classes, ZERO: tl.constexpr, WIDE: tl.constexpr):
    """As corners_of, but without a zero border nothing is masked."""
    a, b, c, d = corners_of(cell, y, x, classes, ZERO, WIDE)
    at = a[0], tl.where(b[0] != a[0], 1, 0), tl.where(c[0] != a[0], x[0], 0)
    return at + (a[1], b[1], c[1], d[1]) if ZERO else at


@triton.jit
def _first(logits, plane, corners, classes, AHEAD: tl.constexpr):
    """The corners of the first AHEAD classes, on their way, and where those of the next one are. Past the last class
    comes that class again. (Here and below ``classes`` stands on the left: of a constant that is compared with a tensor
    the interpreter of Triton 3.8 makes a constant.)"""
    ahead = (_read(logits, corners),)
    for k in tl.static_range(1, AHEAD):
        logits += tl.where(classes > k, plane, 0)
        ahead = ahead + (_read(logits, corners),)
    return ahead, logits + tl.where(classes > AHEAD, plane, 0)


@triton.jit
def _read(logits, corners):
    """A class's corners as they are stored: to convert them is to wait for them."""
    a = logits + corners[0]
    c = a + corners[2]
    b, d = a + corners[1], c + corners[1]
    if len(corners) == 3:
        return tl.load(a), tl.load(b), tl.load(c), tl.load(d)
    else:
        return (
            tl.load(a, corners[3], other=0),
            tl.load(b, corners[4], other=0),
            tl.load(c, corners[5], other=0),
            tl.load(d, corners[6], other=0),
        )


@triton.jit
def _as(corners, ACC: tl.constexpr):
    return corners[0].to(ACC), corners[1].to(ACC), corners[2].to(ACC), corners[3].to(ACC)


@triton.jit
def _outputs(
    target, class_weight, pixel_weight, scale, y, x, cell, part, classes, ignore_index,
    SMOOTHING: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, WIDE: tl.constexpr, ZERO: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of KY x KX outputs of each lane's cell: labels and how much they count, and where they lie."""
    n, i, j, used = cell
    dst_y, known_y = outputs_of(i, part, y, 0, KY, ZERO, INDEX)
    dst_x, known_x = outputs_of(j, tl.program_id(2), x, 1, KX, ZERO, INDEX, True)
    known = in_line(known_y & known_x & used[None, None, :])
    at = (n.to(WIDE) * y[1] + dst_y) * x[1] + dst_x
    shape: tl.constexpr = at.shape
    at = in_line(at)
    label = read_label(target, at, known, classes, ignore_index)
    hard, pixel = read_weights(label, at, class_weight, pixel_weight, ACC)
    pixel = tl.where(label >= 0, pixel * scale, 0)
    own = tl.reshape(pixel * hard * (1 - SMOOTHING), shape)
    even = tl.reshape(pixel * (SMOOTHING / tl.cast(classes, ACC)), shape)
    return (tl.reshape(label, shape), own, even), (at, known)


@triton.jit
def _taps(
    y, x, cell, part, KY: tl.constexpr, KX: tl.constexpr, ZERO: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr
):
    """What the taps of those outputs weigh: upper and lower (KY, 1, LANES), left and right (1, KX, LANES)."""
    _, i, j, _ = cell
    dst_y, _ = outputs_of(i, part, y, 0, KY, ZERO, INDEX)
    dst_x, _ = outputs_of(j, tl.program_id(2), x, 1, KX, ZERO, INDEX, True)
    upper, lower = weights(dst_y, i[None, None, :], y, ZERO, INDEX, ACC)
    left, right = weights(dst_x, j[None, None, :], x, ZERO, INDEX, ACC)
    return upper, lower, left, right


@triton.jit
def _steps(cell, part, axis, K: tl.constexpr, ZERO: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr):
    """Where each lane's outputs begin between two coarse pixels, from 0 to 1, the step from one to the next, and
    whether a progression of K of them stays in range: a cell at a border may have fewer than K, far apart.

    With corners at most REACH apart and both axes' K-th output at most at 2, no logit is more than 4 REACH above the
    largest corner; with a step of at most 1, no ratio or power of one is more than exp(4 REACH).
    """
    first = first_output(cell, axis, ZERO, INDEX) + part * K
    _, start = weights(first, cell, axis, ZERO, INDEX, ACC)
    step = tl.cast(axis[2], ACC) / tl.cast(axis[4], ACC)
    still = first >= first_output(cell + 1, axis, ZERO, INDEX)  # no output at all
    if not ZERO:
        still |= (cell < 0) | (cell >= axis[0] - 1)
    step = tl.where(still, 0, step)
    return start, step, ((K - 1) * step <= K - 1) & (start + (K - 1) * step <= 2)


@triton.jit
def _terms(corners, shift, down, along, KY: tl.constexpr, KX: tl.constexpr):
    """exp(logit - shift) of a lane's outputs, (KY, KX, LANES): along both axes a geometric progression."""
    first, ratio = _rows(corners, shift, down, along, KY)
    return _powers(first, ratio, 1, KX)


@triton.jit
def _to_sides(corners, shift, down, along, left_columns, right_columns):
    """What a row's exp(logit - shift) give its two sides, (KY, LANES): polynomials of the row's ratio, whose
    coefficients are the shares' columns, highest first."""
    first, ratio = _rows(corners, shift, down, along, left_columns[0].shape[0])
    first, ratio = tl.sum(first, 1), tl.sum(ratio, 1)
    to_left, to_right = left_columns[0], right_columns[0]
    for k in tl.static_range(1, len(left_columns)):
        to_left, to_right = tl.fma(to_left, ratio, left_columns[k]), tl.fma(to_right, ratio, right_columns[k])
    return first * to_left, first * to_right


@triton.jit
def _columns(tile):
    """Those of a (KY, KX, LANES) tile, each (KY, LANES). Not left to tl.reduce, which may take them in any order."""
    column = tl.arange(0, tile.shape[1])[None, :, None]
    columns = ()
    for k in tl.static_range(tile.shape[1]):
        columns += (tl.sum(tl.where(column == k, tile, 0), 1),)
    return columns


@triton.jit
def _rows(corners, shift, down, along, KY: tl.constexpr):
    """Of each row's geometric progression the first term, the leftmost output's, and the ratio, (KY, 1, LANES)."""
    a, b, c, d = corners
    rise = b - a
    twist = d - c - rise
    fall = tl.fma(along[0], twist, c - a)
    first = tl.fma(along[0] * LOG2_E, rise, (a - shift) * LOG2_E)
    terms = tl.exp2(tl.fma(down[0] * LOG2_E, fall, first))[None, None, :]
    ratio = tl.exp2(along[1] * LOG2_E * tl.fma(down[0], twist, rise))[None, None, :]
    terms = _powers(terms, tl.exp2(down[1] * LOG2_E * fall)[None, None, :], 0, KY)
    return terms, _powers(ratio, tl.exp2(down[1] * along[1] * LOG2_E * twist)[None, None, :], 0, KY)


@triton.jit
def _powers(first, ratio, AXIS: tl.constexpr, K: tl.constexpr):
    """first * ratio**k along an axis, for k up to K - 1, at most 3; along a row the last one first."""
    k = tl.arange(0, K) if AXIS == 0 else K - 1 - tl.arange(0, K)
    k = tl.expand_dims(tl.expand_dims(k, 1 - AXIS), 2)  # lanes lie along axis 2: a constant a register
    if K > 1:
        first *= tl.where(k % 2 == 1, ratio, 1)
    if K > 2:
        first *= tl.where(k >= 2, ratio * ratio, 1)
    return first


@triton.jit
def _nothing(loss, maps, place, classes, LANES: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr):
    """Where all labels are ignored: neither loss nor gradient, whatever the logits."""
    if loss is not None:
        tl.store(loss + place[0], 0.0, place[1])
    if maps is not None:
        out, line, to_lower = place_in_maps(maps, classes, LANES, WIDE)
        zeros = tl.zeros((LANES,), ACC)
        for _ in range(classes):
            add_to_map(out, zeros, zeros, 0, False)
            add_to_map(out + to_lower, zeros, zeros, 0, False)
            out += line
    return tl.zeros((), ACC)


@triton.jit
def _sums(
    logits, class_weight, corners, plane, label, taps, down, along, classes, SMOOTHING: tl.constexpr, ACC: tl.constexpr
):
    """Of a lane's cell a number near its largest logit, the shift; of each output the sum of exp(logit - shift) and,
    given taps, the logit of its label; the sum of the classes' corners less the shift, where labels are smoothed; and
    whether all this holds: the cell is gentle.
    """
    KY: tl.constexpr = label.shape[0]
    KX: tl.constexpr = label.shape[1]
    present = _present(label)
    ahead, pointer = _first(logits, plane, corners, classes, SUMS_AHEAD)
    a, b, c, d = _as(ahead[0], ACC)
    shift = most_of(a, b, c, d)
    lowest = shift
    spread = tl.where(down[2] & along[2], 0, tl.full(shift.shape, float("inf"), ACC))
    sums, at_label = tl.zeros(label.shape, ACC), tl.zeros(label.shape, ACC)
    smooth = shift * 0, shift * 0, shift * 0, shift * 0
    so_far = tl.zeros((), ACC)
    for k in tl.range(classes, loop_unroll_factor=SUMS_AHEAD):
        a, b, c, d = _as(ahead[0], ACC)
        ahead = ahead[1:] + (_read(pointer, corners),)
        pointer += tl.where(classes > k + (SUMS_AHEAD + 1), plane, 0)
        most, least = larger_or_nan(larger_or_nan(a, b), larger_or_nan(c, d)), least_of(a, b, c, d)
        spread = larger_or_nan(spread, most - least)
        if tl.max((most > shift + HEADROOM).to(tl.int32), 0) != 0:
            higher = tl.maximum(shift, most)
            sums *= tl.exp2((shift - higher) * LOG2_E)[None, None, :]
            if SMOOTHING > 0:
                raised = (shift - higher) * so_far
                smooth = smooth[0] + raised, smooth[1] + raised, smooth[2] + raised, smooth[3] + raised
            shift = higher
        sums += _terms((a, b, c, d), shift, down, along, KY, KX)
        if taps is not None:
            if (present >> (k & 63)) & 1 != 0:
                at_label = tl.where(label == k, _between((a, b, c, d), taps), at_label)
        if SMOOTHING > 0:
            lowest = tl.minimum(lowest, least)
            weight = 1.0 if class_weight is None else tl.load(class_weight + k)
            smooth = _add4(smooth, (a - shift, b - shift, c - shift, d - shift), weight)
            so_far += weight
    gentle = spread <= REACH
    if SMOOTHING > 0:
        gentle &= shift - lowest <= 1e30  # or their weighted sum could be infinite
    return shift, sums, at_label, smooth, gentle


@triton.jit
def _gentle(
    logits, class_weight, pixel_weight, weight_sum, loss, maps, sums, corners, plane, outputs, taps, down, along,
    scale, classes, SMOOTHING: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The outputs' gradient to the partial maps, where exponentials are a geometric progression inside each cell.

    Returns the sum of the losses.
    """
    pixels, place = outputs
    label, own, even = pixels
    shift, sums, at_label, smooth, _ = sums
    present = _present(label)
    if class_weight is None and pixel_weight is None:  # again, rather than in registers all the while
        own = tl.where(label >= 0, scale * (1 - SMOOTHING), 0)
    log_sum = tl.log(sums)
    value = own * log_sum
    if loss is not None:
        value = own * (log_sum + (shift[None, None, :] - at_label))
    whole = own
    if SMOOTHING > 0:
        all_weights = tl.cast(classes, ACC) if weight_sum is None else tl.load(weight_sum)
        value += even * (all_weights * log_sum - _between(smooth, taps))
        whole += even * all_weights
    # Nothing but weightless pixels: 0, whatever 0 * inf would have been. In one comparison, for the sake of registers.
    value = tl.where(tl.where(label >= 0, scale, 0) != 0, value, 0)
    if loss is not None:
        tl.store(loss + place[0], in_line(value), place[1])
        return tl.zeros((), ACC)
    else:
        value = tl.sum(tl.sum(value, 0), 0)
        upper, lower, left, right = taps
        if maps is None:
            for k in range(classes):
                if (present >> (k & 63)) & 1 != 0:
                    now = _as(_read(logits + k * plane, corners), ACC)
                    to_left, to_right = _of_label(label, k, own, scale, class_weight, pixel_weight, taps, SMOOTHING)
                    value -= _logits_of(now, shift, to_left, to_right, taps)
        else:
            share = whole / sums
            share_left, share_right = _columns(share * left), _columns(share * right)
            evenly = _to_corners(even, taps, False)
            out, line, to_lower = place_in_maps(maps, classes, shift.numel, WIDE)
            ahead, pointer = _first(logits, plane, corners, classes, GRADIENT_AHEAD)
            for k in tl.range(classes, loop_unroll_factor=GRADIENT_AHEAD):
                now = _as(ahead[0], ACC)
                ahead = ahead[1:] + (_read(pointer, corners),)
                pointer += tl.where(classes > k + (GRADIENT_AHEAD + 1), plane, 0)
                to_left, to_right = _to_sides(now, shift, down, along, share_left, share_right)
                if (present >> (k & 63)) & 1 != 0:
                    minus_left, minus_right = _of_label(
                        label, k, own, scale, class_weight, pixel_weight, taps, SMOOTHING
                    )
                    to_left -= minus_left
                    to_right -= minus_right
                    value -= _logits_of(now, shift, minus_left, minus_right, taps)
                gradient = _to_rows(to_left, to_right, upper, lower, False)
                if SMOOTHING > 0:
                    gradient = _add4(gradient, evenly, -1.0 if class_weight is None else -tl.load(class_weight + k))
                add_to_map(out, gradient[0], gradient[1], 0, False)
                add_to_map(out + to_lower, gradient[2], gradient[3], 0, False)
                out += line
        return tl.sum(value, 0)


@triton.jit
def _of_label(label, k, own, scale, class_weight, pixel_weight, taps, SMOOTHING: tl.constexpr):
    """What the outputs of label k weigh at their rows' two sides, (KY, LANES)."""
    g = own
    if pixel_weight is None:  # the same for all that have this label, and no register each
        g = scale * (1 - SMOOTHING)
        g *= 1.0 if class_weight is None else tl.load(class_weight + k)
    g = tl.where(label == k, g, 0)
    return tl.sum(g * taps[2], 1), tl.sum(g * taps[3], 1)


@triton.jit
def _logits_of(corners, shift, to_left, to_right, taps):
    """The sum of a lane's logits less the shift, weighed at their rows' two sides."""
    a, b, c, d = corners
    lower = tl.sum(taps[1], 1)
    left = tl.fma((c - a)[None, :], lower, (a - shift)[None, :])
    right = tl.fma((d - b)[None, :], lower, (b - shift)[None, :])
    return tl.sum(tl.fma(left, to_left, right * to_right), 0)


@triton.jit
def _steep(
    logits, class_weight, weight_sum, loss, maps, corners, plane, outputs, taps, row, scale, classes,
    SMOOTHING: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """As _gentle, for any corners and labels; the gradient is added to what is there if row > 0."""
    pixels, place = outputs
    label, own, even = pixels
    zeros = tl.zeros(label.shape, ACC)
    shift = zeros - float("inf")
    pointer = logits
    for _ in tl.range(classes, loop_unroll_factor=ABREAST):
        shift = tl.maximum(shift, _logit(_as(_read(pointer, corners), ACC), taps))
        pointer += plane

    sums, smooth, at_label = zeros, zeros, zeros
    ahead, pointer = _first(logits, plane, corners, classes, 1)
    for k in range(classes):
        x = _logit(_as(ahead[0], ACC), taps) - shift
        ahead = (_read(pointer, corners),)
        pointer += tl.where(classes > k + 2, plane, 0)
        at_label = tl.where(label == k, x, at_label)
        sums += tl.exp2(x * LOG2_E)
        if SMOOTHING > 0:
            smooth += x if class_weight is None else x * tl.load(class_weight + k)

    log_sum = tl.log(sums)
    value = own * (log_sum - at_label)
    whole = own
    if SMOOTHING > 0:
        all_weights = tl.cast(classes, ACC) if weight_sum is None else tl.load(weight_sum)
        value += even * (all_weights * log_sum - smooth)
        whole += even * all_weights
    value = tl.where(label >= 0, value, tl.where(label == BAD, float("nan"), 0))
    value = tl.where(scale == 0, 0, value)
    if loss is not None:
        tl.store(loss + place[0], in_line(value), place[1])

    if maps is not None:
        share = tl.where(label == BAD, float("nan"), tl.where(whole == 0, 0, whole / sums))
        out, line, to_lower = place_in_maps(maps, classes, label.shape[2], WIDE)
        ahead, pointer = _first(logits, plane, corners, classes, 1)
        for k in range(classes):
            x = _logit(_as(ahead[0], ACC), taps) - shift
            ahead = (_read(pointer, corners),)
            pointer += tl.where(classes > k + 2, plane, 0)
            g = tl.exp2(x * LOG2_E) * share - tl.where(label == k, own, 0)
            if SMOOTHING > 0:
                g -= even if class_weight is None else even * tl.load(class_weight + k)
            g = tl.where(share == 0, 0, g)  # an ignored pixel has none, whatever its logits
            gradient = _to_corners(g, taps, True)
            add_to_map(out, gradient[0], gradient[1], row, True)
            add_to_map(out + to_lower, gradient[2], gradient[3], row, True)
            out += line
    return tl.sum(in_line(value), 0)


@triton.jit
def _logit(corners, taps):
    """The logits of a lane's outputs, (KY, KX, LANES), in the arithmetic of all upsampled values."""
    a, b, c, d = corners
    left = blend(a[None, None, :], c[None, None, :], taps[0], taps[1])
    right = blend(b[None, None, :], d[None, None, :], taps[0], taps[1])
    return blend(left, right, taps[2], taps[3])


@triton.jit
def _between(corners, taps):
    """What lies at a lane's outputs, (KY, KX, LANES), between finite corners."""
    a, b, c, d = corners
    left = tl.fma((c - a)[None, None, :], taps[1], a[None, None, :])
    right = tl.fma((d - b)[None, None, :], taps[1], b[None, None, :])
    return tl.fma(right - left, taps[3], left)


@triton.jit
def _to_corners(g, taps, STEEP: tl.constexpr):
    """What the four corners get of something that each output has."""
    upper, lower, left, right = taps
    to_left, to_right = tl.sum(_weighted(g, left, STEEP), 1), tl.sum(_weighted(g, right, STEEP), 1)
    return _to_rows(to_left, to_right, upper, lower, STEEP)


@triton.jit
def _to_rows(to_left, to_right, upper, lower, STEEP: tl.constexpr):
    upper, lower = tl.sum(upper, 1), tl.sum(lower, 1)
    return (
        tl.sum(_weighted(to_left, upper, STEEP), 0),
        tl.sum(_weighted(to_right, upper, STEEP), 0),
        tl.sum(_weighted(to_left, lower, STEEP), 0),
        tl.sum(_weighted(to_right, lower, STEEP), 0),
    )


@triton.jit
def _weighted(g, weight, STEEP: tl.constexpr):
    if STEEP:
        return tl.where(weight == 0, 0, g * weight)
    else:
        return g * weight


@triton.jit
def _add4(a, b, factor):
    return (
        tl.fma(b[0], factor, a[0]),
        tl.fma(b[1], factor, a[1]),
        tl.fma(b[2], factor, a[2]),
        tl.fma(b[3], factor, a[3]),
    )


@triton.jit
def _present(label):
    """A bit for each label of the warp, by its last six bits: most classes of many are nobody's label here."""
    bits = tl.where(label >= 0, tl.cast(1, tl.int64) << (label & 63).to(tl.int64), 0)
    return tl.reduce_or(in_line(bits), 0)
