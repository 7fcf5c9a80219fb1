"""What the targets say of pixels: which logit each looks up, and how much it counts. Shared by both losses."""

import triton
import triton.language as tl

from fcn_fast.kernels.launch import Launch
from fcn_fast.reference import FULL, NONE, SUM, memory_format, raise_for_label

IGNORED = tl.constexpr(-1)
BAD = tl.constexpr(-2)
WEIGHERS = 256  # programs that add up the weights of the labels


def readable(logits, target, weight, pixel_weight):
    """What kernels read, without a copy where the strides allow it."""
    rest = (t if t is None else t.contiguous() for t in (target, weight, pixel_weight))
    return logits.contiguous(memory_format=memory_format(logits)), *rest


def class_sum(weight, label_smoothing):
    """The sum of the class weights, where it is needed and not just their number."""
    return weight.sum() if label_smoothing and weight is not None else None


def divisor(reduction, images, count):
    """What the sum over count pixels is divided by, but for a mean."""
    return max({FULL: count, SUM: 1, NONE: 1}.get(reduction, images), 1)


def check(target, classes, ignore_index):
    """Raise for the first label out of range. Waits for the GPU."""
    labels = target.long()
    bad = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    if bad.any():
        raise_for_label(target, int(bad.flatten().int().argmax()), classes, ignore_index)


def weighing(count, classes, ignore_index, acc):
    """(target, class weight, pixel weight, total): the total weight of count labels, as WEIGHERS partial sums."""
    return Launch(_weigh, (WEIGHERS,), count, classes, ignore_index, BLOCK=1024, ACC=acc, num_warps=4)


def finishing(programs, divisor, mean=False):
    """(losses, weights, loss, total weight): the sums of what programs found, the loss divided by divisor or weight."""
    return Launch(_finish, (1,), programs, divisor, MEAN=mean, BLOCK=1024, num_warps=4)


@triton.jit
def read_label(target, at, mask, classes, ignore_index):
    """A pixel's class, IGNORED or BAD; IGNORED where masked."""
    label = tl.load(target + at, mask, other=0).to(tl.int64)
    bad = (label < 0) | (label >= classes)
    return tl.where(mask & (label != ignore_index), tl.where(bad, BAD, label), IGNORED).to(tl.int32)


@triton.jit
def read_weights(label, at, class_weight, pixel_weight, ACC: tl.constexpr):
    """The class weight of each pixel's own label, and the pixel's weight; 0 where it has none."""
    hard = tl.where(label >= 0, 1, 0).to(ACC)
    pixel = hard
    if class_weight is not None:
        hard = tl.load(class_weight + label, label >= 0, other=0)
    if pixel_weight is not None:
        pixel = tl.load(pixel_weight + at, label >= 0, other=0)
    return hard, pixel


@triton.jit
def mean_scale(total):
    """A mean over nothing is 0."""
    return tl.where(total == 0, 0, 1 / tl.where(total == 0, 1, total))


@triton.jit(do_not_specialize=["count", "classes", "ignore_index"])
def _weigh(
    target, class_weight, pixel_weight, total, count, classes, ignore_index, BLOCK: tl.constexpr, ACC: tl.constexpr
):
    weight = tl.zeros((BLOCK,), tl.float64)
    for first in range(tl.program_id(0).to(tl.int64) * BLOCK, count, tl.num_programs(0) * BLOCK):
        at = first + tl.arange(0, BLOCK)
        label = read_label(target, at, at < count, classes, ignore_index)
        hard, pixel = read_weights(label, at, class_weight, pixel_weight, ACC)
        weight += (hard * pixel).to(tl.float64)
    tl.store(total + tl.program_id(0), tl.sum(weight, 0))


@triton.jit(do_not_specialize=["programs", "divisor"])
def _finish(losses, weights, loss, total_weight, programs, divisor, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    if loss is not None:
        value = _sum(losses, programs, BLOCK)
        if not MEAN:
            value /= divisor
    if total_weight is not None:
        total = _sum(weights, programs, BLOCK)
        tl.store(total_weight, total)
        if MEAN:
            # Nothing but weightless pixels: 0, whatever 0 * inf would have been.
            value = tl.where(total == 0, 0, value * mean_scale(total))
    if loss is not None:
        tl.store(loss, value)


@triton.jit
def _sum(values, count, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(values + at, at < count, other=0).to(tl.float64)
    return tl.sum(total, 0)
