"""The per-pixel softmax loss, for CUDA torch without the compiled CUDA kernels.

_forward: a program owns BLOCK pixels and loops over the classes CHUNK at a time, with an online softmax: one
exponential an element and one a chunk. Reads the logits once, and the label's logit again from the cache. _backward:
the same pixels, every gradient by itself. Reads the logits, writes the gradient. Both are bound by memory: three
transfers an element in all. Contiguous logits are tiles (CHUNK, BLOCK) with 16 bytes of neighbouring pixels a thread;
channels_last ones are (BLOCK, CHUNK), neighbouring classes side by side.

Sums run over a program's pixels, then in double precision over the programs, always in the same order.

Instructions an element (sm_90, of its machine code): 13 forward and 13 backward, in half precision 13 and 16, one of
them an exponential. At an H100's full bandwidth that is a third of its issue slots, in half precision two thirds and
two fifths. Registers (ptxas for sm_80 to sm_120): 48 to 124 forward, 64 to 123 backward.
"""

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fcn_fast.kernels import grid as rule
from fcn_fast.kernels.labels import (
    BAD,
    IGNORED,
    check,
    class_sum,
    divisor,
    finishing,
    mean_scale,
    read_label,
    read_weights,
    readable,
)
from fcn_fast.kernels.launch import Launch
from fcn_fast.reference import MEAN, NONE, accumulate_dtype, memory_format

VARIES = ["groups", "others", "tiles", "count", "ignore_index", "divisor"]


def softmax_loss(
    logits, target, weight, pixel_weight, ignore_index, reduction, label_smoothing, check_labels, with_grad
):
    logits, target, weight, pixel_weight = readable(logits, target, weight, pixel_weight)
    if check_labels:
        check(target, logits.shape[1], ignore_index)
    plan = _plan(*_kind(logits), ignore_index, reduction, label_smoothing)
    dtype = accumulate_dtype(logits.dtype)
    loss = logits.new_empty(target.shape if reduction == NONE else (), dtype=dtype)
    saved = logits.new_empty((2, *target.shape) if with_grad else (0,), dtype=dtype)
    total_weight = logits.new_empty((), dtype=dtype)
    losses, weights = logits.new_empty((2, plan.programs), dtype=dtype)
    with torch.cuda.device_of(logits):
        each, whole = (loss, None) if reduction == NONE else (None, loss)
        if plan.programs:
            plan.forward(logits, target, weight, pixel_weight, each, saved if with_grad else None, losses, weights)
        plan.finish(losses, weights, whole, total_weight)
    return loss, saved, total_weight


def softmax_loss_backward(
    grad_output, logits, target, weight, pixel_weight, saved, total_weight, ignore_index, reduction, label_smoothing
):
    logits, target, weight, pixel_weight = readable(logits, target, weight, pixel_weight)
    grad = torch.empty_like(logits)
    plan = _plan(*_kind(logits), ignore_index, reduction, label_smoothing)
    if plan.programs:
        with torch.cuda.device_of(logits):
            plan.backward(
                grad_output.contiguous(), logits, target, weight, pixel_weight, class_sum(weight, label_smoothing),
                saved, total_weight, grad,
            )  # fmt: skip
    return grad


class _Plan(NamedTuple):
    programs: int
    forward: Launch
    finish: Launch
    backward: Launch


def _kind(logits):
    return logits.shape, memory_format(logits) == torch.channels_last, logits.dtype


@functools.lru_cache
def _plan(shape, last, dtype, ignore_index, reduction, label_smoothing):
    """How the pixels of some logits are shared out."""
    images, classes, pixels = shape[0], shape[1], math.prod(shape[2:])
    count = images * pixels
    by = divisor(reduction, images, count)
    last = last or pixels == 1  # classes side by side: all images are one
    if last:
        images, pixels = min(count, 1), count
        chunk = rule.power_of_two(classes, 1, 512)
        block = max(4096 // max(dtype.itemsize, 4) // chunk, 1)
    else:
        chunk = rule.power_of_two(classes, 1, 4)
        block = rule.power_of_two(pixels, 32, 128 * 16 // dtype.itemsize)
    align = math.gcd(classes if last else pixels, 16) or 1
    tiles = rule.cdiv(pixels, block)
    programs = images * tiles
    numbers = (classes if last else pixels) // align, pixels if last else classes, tiles, count, ignore_index
    constants = {
        "SMOOTHING": label_smoothing,
        "CHUNK": chunk,
        "BLOCK": block,
        "AXIS": 1 if last else 0,
        "ALIGN": align,
        "INDEX": rule.index_type(classes * pixels),
        "ACC": rule.accumulate_type(dtype),
        "maxnreg": 128,
        "num_warps": 4 if last else max(block * dtype.itemsize // 512, 1),
    }
    mean = reduction == MEAN
    return _Plan(
        programs,
        Launch(_forward, (programs,), *numbers, **constants),
        finishing(programs, by, mean),
        Launch(_backward, (programs,), *numbers, by, PER_PIXEL=reduction == NONE, MEAN=mean, **constants),
    )


@triton.jit
def _place(groups, others, tiles, BLOCK: tl.constexpr, AXIS: tl.constexpr, ALIGN: tl.constexpr):
    """Classes and pixels of an image, the image of this program, and its pixels."""
    aligned = groups * ALIGN
    if AXIS == 1:
        classes, pixels = aligned, others
    else:
        classes, pixels = others, aligned
    image = (tl.program_id(0) // tiles).to(tl.int64)
    return classes, pixels, image, tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _offset(c, p, classes, pixels, AXIS: tl.constexpr, INDEX: tl.constexpr):
    """Where class c of pixel p lies in its image."""
    if AXIS == 1:
        return tl.cast(p, INDEX) * classes + c
    else:
        return tl.cast(c, INDEX) * pixels + p


@triton.jit(do_not_specialize=VARIES)
def _forward(
    logits, target, class_weight, pixel_weight, loss, saved, losses, weights,
    groups, others, tiles, count, ignore_index,
    SMOOTHING: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, AXIS: tl.constexpr, ALIGN: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    classes, pixels, image, p = _place(groups, others, tiles, BLOCK, AXIS, ALIGN)
    inside = p < pixels
    at = image * pixels + p
    logits += image * classes * pixels
    columns, mask = tl.expand_dims(p, AXIS), tl.expand_dims(inside, AXIS)

    largest = tl.full((BLOCK,), -float("inf"), ACC)
    sums = tl.zeros((BLOCK,), ACC)
    smooth = tl.zeros((BLOCK,), ACC)  # of class weight * (logit - shift), so far
    shift = tl.zeros((BLOCK,), ACC)
    weight_so_far = tl.zeros((), ACC)
    for first in range(0, classes, CHUNK):
        c = first + tl.arange(0, CHUNK)
        rows = tl.expand_dims(c, 1 - AXIS)
        known = mask & (rows < classes)
        x = tl.load(logits + _offset(rows, columns, classes, pixels, AXIS, INDEX), known, other=-float("inf")).to(ACC)
        before, largest = largest, tl.maximum(largest, tl.max(x, AXIS))
        # A pixel whose logits so far are all -inf keeps its sum of 0.
        new_shift = tl.where(largest == -float("inf"), 0, largest)
        x -= tl.expand_dims(new_shift, AXIS)
        sums = sums * tl.exp(before - new_shift) + tl.sum(tl.exp(x), AXIS)
        if SMOOTHING > 0:
            class_weights = _class_weights(class_weight, c, classes, ACC)
            weighted = tl.where(known, x * tl.expand_dims(class_weights, 1 - AXIS), 0)
            smooth += (shift - new_shift) * weight_so_far + tl.sum(weighted, AXIS)
            weight_so_far += tl.sum(class_weights, 0)
        shift = new_shift
    log_sum = tl.log(sums)
    if saved is not None:
        tl.store(saved + at, largest, inside)
        tl.store(saved + count + at, log_sum, inside)

    label = read_label(target, at, inside, classes, ignore_index)
    hard, pixel = read_weights(label, at, class_weight, pixel_weight, ACC)
    own = tl.load(logits + _offset(label, p, classes, pixels, AXIS, INDEX), label >= 0, other=0).to(ACC)
    value = hard * (log_sum - (own - largest))
    if SMOOTHING > 0:
        value = (1 - SMOOTHING) * value + SMOOTHING / tl.cast(classes, ACC) * (weight_so_far * log_sum - smooth)
    value = tl.where(label >= 0, value * pixel, tl.where(label == BAD, float("nan"), 0))
    if loss is not None:
        tl.store(loss + at, value, inside)
    tl.store(losses + tl.program_id(0), tl.sum(value, 0))
    tl.store(weights + tl.program_id(0), tl.sum(hard * pixel, 0))


@triton.jit
def _class_weights(class_weight, c, classes, ACC: tl.constexpr):
    if class_weight is not None:
        return tl.load(class_weight + c, c < classes, other=0)
    else:
        return tl.where(c < classes, 1, 0).to(ACC)


@triton.jit(do_not_specialize=VARIES)
def _backward(
    grad_output, logits, target, class_weight, pixel_weight, weight_sum, saved, total_weight, grad,
    groups, others, tiles, count, ignore_index, divisor, PER_PIXEL: tl.constexpr, MEAN: tl.constexpr,
    SMOOTHING: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, AXIS: tl.constexpr, ALIGN: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    classes, pixels, image, p = _place(groups, others, tiles, BLOCK, AXIS, ALIGN)
    inside = p < pixels
    at = image * pixels + p
    logits += image * classes * pixels
    grad += image * classes * pixels
    columns, mask = tl.expand_dims(p, AXIS), tl.expand_dims(inside, AXIS)

    label = read_label(target, at, inside, classes, ignore_index)
    hard, pixel = read_weights(label, at, class_weight, pixel_weight, ACC)
    if PER_PIXEL:
        pixel *= tl.load(grad_output + at, inside, other=0)
    else:
        scale = mean_scale(tl.load(total_weight)) if MEAN else 1 / tl.cast(divisor, ACC)
        # The scale by itself first: half of a product of all may be too small a number.
        pixel *= tl.load(grad_output) * scale
        if MEAN:
            label = tl.where(scale == 0, tl.minimum(label, IGNORED), label)
    own = hard * pixel * (1 - SMOOTHING)
    whole = own
    if SMOOTHING > 0:
        even = pixel * (SMOOTHING / tl.cast(classes, ACC))
        whole += even * (classes if weight_sum is None else tl.load(weight_sum))
    whole = tl.where(label >= 0, whole, tl.where(label == BAD, float("nan"), 0))
    largest = tl.expand_dims(tl.load(saved + at, inside, other=0), AXIS)
    log_sum = tl.expand_dims(tl.load(saved + count + at, inside, other=0), AXIS)
    label, whole, own = tl.expand_dims(label, AXIS), tl.expand_dims(whole, AXIS), tl.expand_dims(own, AXIS)

    for first in range(0, classes, CHUNK):
        c = first + tl.arange(0, CHUNK)
        rows = tl.expand_dims(c, 1 - AXIS)
        known = mask & (rows < classes)
        offset = _offset(rows, columns, classes, pixels, AXIS, INDEX)
        x = tl.load(logits + offset, known, other=0).to(ACC)
        value = whole * tl.exp(x - largest - log_sum) - tl.where(rows == label, own, 0)
        if SMOOTHING > 0:
            class_weights = tl.expand_dims(_class_weights(class_weight, c, classes, ACC), 1 - AXIS)
            value -= tl.expand_dims(even, AXIS) * class_weights
        value = tl.where(label == IGNORED, 0, value)  # whatever its logits
        tl.store(grad + offset, value.to(grad.dtype.element_ty), known)
