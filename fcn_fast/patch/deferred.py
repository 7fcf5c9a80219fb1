"""What the rewritten methods of a patched model call: an upsampling that waits until it is known what becomes of it."""

import functools
import types

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from fcn_fast import ops
from fcn_fast.criteria import mmseg_reduction
from fcn_fast.grid import BilinearGrid
from fcn_fast.ops._common import FLOATS, LABELS

__all__ = ["DEVICES", "CrossEntropy", "Deferred", "add", "argmax", "call", "full", "fuses", "resize"]

# Where the operations have kernels of their own; elsewhere the code runs as it is.
DEVICES = tuple(
    device
    for device in ("cpu", "cuda")
    if torch._C._dispatch_has_kernel_for_dispatch_key("fcn_fast::upsample_softmax_loss", device.upper())
)


class Deferred:
    """``F.interpolate(input, mode="bilinear")`` that has not run: a loss or an argmax may make do without its map.

    It lives in the local variables of one rewritten method and never leaves it: whatever is not known to do without
    the map is given the map, :func:`full`.
    """

    def __init__(self, input, grid):
        self.differentiated = torch.is_grad_enabled()
        self.input = input if self.differentiated else input.detach()
        self.grid = grid
        self.map = None
        # Compiled code has no versions to read, and keeps the order of what it traced.
        self.version = None if torch.compiler.is_compiling() or input.is_inference() else input._version

    @property
    def shape(self):
        return torch.Size((*self.input.shape[:2], *self.grid.size))

    def scores(self):
        """The coarse map, as it was when it was to be upsampled."""
        if self.version is not None and self.input._version != self.version:
            raise RuntimeError(
                "fcn_fast.patch: expected scores that stay as they are between their upsampling and its use, "
                "got ones changed in place; fcn_fast.unpatch(model) runs the model's own code"
            )
        return self.input

    def loss(self, target, weight=None, **options):
        """The softmax loss of the map."""
        if self.grid.size == self.grid.in_size:  # upsampled before
            return ops.softmax_loss(self.scores(), target, weight, **options)
        return ops.upsample_softmax_loss(self.scores(), target, weight, grid=self.grid, **options)

    def full(self):
        if self.map is None and torch.is_grad_enabled() == self.differentiated:
            self.map = ops.bilinear_upsample(self.scores(), grid=self.grid)
        elif self.map is None:  # as it would have been where it was to be upsampled, for others may read it too
            with torch.inference_mode(False), torch.set_grad_enabled(self.differentiated):
                self.map = ops.bilinear_upsample(self.scores(), grid=self.grid)
        return self.map


def full(value):
    """A value of the method as its own code expects it."""
    return value.full() if isinstance(value, Deferred) else value


def resize(function, input, size=None, scale_factor=None, mode="nearest", align_corners=None, *rest, **others):
    """``function``, an F.interpolate, put off where it is bilinear and of a map that the operations take."""
    grid = _grid(input, size, scale_factor, mode, align_corners, (*rest, *others.values()))
    if grid is None:
        return function(full(input), size, scale_factor, mode, align_corners, *rest, **others)
    if isinstance(input, Deferred):
        if grid.size == grid.in_size and not align_corners:  # the same map again
            return input
        input = input.full()
    return Deferred(input, grid)


def add(left, right):
    """``left + right``, one of them an upsampling."""
    coarse, skip = (left, full(right)) if isinstance(left, Deferred) else (right, left)
    if isinstance(coarse, Deferred) and isinstance(skip, torch.Tensor):
        scores = coarse.scores()
        if (skip.shape, skip.dtype, skip.device) == (coarse.shape, scores.dtype, scores.device):
            return ops.skip_fuse(scores, skip, grid=coarse.grid)
    return full(left) + full(right)


def argmax(value, dim=None, keepdim=False):
    """``value.argmax(dim, keepdim)``."""
    if not isinstance(value, Deferred) or dim not in (1, -3):
        return full(value).argmax(dim, keepdim)
    labels = ops.upsample_argmax(value.scores(), grid=value.grid, dtype=torch.int64)
    return labels.unsqueeze(1) if keepdim else labels


def call(function, value, *args, **kwargs):
    """``function(value, ...)``, without the map where function is a loss or a measure that is known."""
    if isinstance(value, Deferred):
        if function is isinstance:
            return isinstance(value.input, *args)
        stand_in = _stand_in(function)
        result = NotImplemented if stand_in is None else stand_in(function, value, *args, **kwargs)
        if result is not NotImplemented:
            return result
        if not getattr(function, "takes_deferred", False):
            value = value.full()
    return function(value, *args, **kwargs)


class CrossEntropy:
    """nn.CrossEntropyLoss as a method makes one for itself; torch.compile does not let that one be looked at."""

    takes_deferred = True

    def __init__(
        self,
        weight=None,
        size_average=None,
        ignore_index=-100,
        reduce=None,
        reduction="mean",
        label_smoothing=0.0,
    ):
        self.options = (weight, size_average, ignore_index, reduce, reduction, label_smoothing)

    def __call__(self, input, target):
        return call(F.cross_entropy, input, target, *self.options)


def fuses(function):
    """The operation that :func:`call` puts in place of a function or module, or None."""
    stand_in = _stand_in(function)
    if stand_in is _mmseg_accuracy:
        return "upsample_argmax"
    if stand_in is _mmseg_cross_entropy and not _is_softmax(function):
        return None
    return "upsample_softmax_loss" if stand_in or getattr(function, "takes_deferred", False) else None


def _stand_in(function):
    if function is F.cross_entropy:
        return _cross_entropy
    if isinstance(function, nn.Module):
        kind = type(function)
        if kind is nn.CrossEntropyLoss:
            return _cross_entropy_module
        mmseg = kind.__module__ == "mmseg.models.losses.cross_entropy_loss"
        return _mmseg_cross_entropy if mmseg and kind.__name__ == "CrossEntropyLoss" else None
    if not isinstance(function, types.FunctionType):
        return None
    name = function.__module__, function.__name__
    return _mmseg_accuracy if name == ("mmseg.models.losses.accuracy", "accuracy") else None


def _grid(input, size, scale_factor, mode, align_corners, rest):
    """The grid of a bilinear upsampling that the operations do; None for any other."""
    if not isinstance(input, (torch.Tensor, Deferred)) or mode != "bilinear" or any(rest):
        return None
    if isinstance(input, torch.Tensor) and not (input.device.type in DEVICES and input.dtype in FLOATS):
        return None
    if len(input.shape) != 4 or 0 in input.shape or (size is None) == (scale_factor is None):
        return None
    if torch.jit.is_tracing() or _transforms():
        return None
    try:
        return BilinearGrid.interpolate(input.shape[-2:], size, scale_factor, bool(align_corners))
    except ValueError:  # tensors among the numbers, which PyTorch may take, or what it has its own words for
        return None


def _transforms():
    """Whether torch.func or forward-mode differentiation is at work, for which PyTorch's own operations are made."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def _fits(value, target):
    """Whether a label map is one for an upsampling."""
    return (
        isinstance(target, torch.Tensor)
        and target.dtype in LABELS
        and target.shape == value.shape[:1] + value.shape[2:]
        and target.device == value.input.device
    )


def _like_eager(loss, scores):
    """The loss in the dtype in which PyTorch's own would be."""
    return loss if torch.is_autocast_enabled(scores.device.type) else loss.to(scores.dtype)


def _cross_entropy(
    _function,
    value,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    """F.cross_entropy; NotImplemented for what only PyTorch does, or complains of."""
    if not _fits(value, target) or (size_average, reduce) != (None, None):
        return NotImplemented
    loss = value.loss(target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
    return _like_eager(loss, value.input)


def _cross_entropy_module(module, value, target):
    options = {name: getattr(module, name) for name in ("weight", "ignore_index", "reduction", "label_smoothing")}
    return _cross_entropy(module, value, target, **options)


def _is_softmax(module):
    return getattr(module.cls_criterion, "__name__", "") == "cross_entropy"


def _mmseg_cross_entropy(
    module, value, label, weight=None, avg_factor=None, reduction_override=None, ignore_index=-100, **others
):
    if others or not _is_softmax(module) or not _fits(value, label):
        return NotImplemented
    loss = functools.partial(value.loss, label, ignore_index=ignore_index)
    classes = None if module.class_weight is None else value.input.new_tensor(module.class_weight)
    reduction = reduction_override or module.reduction
    reduced = mmseg_reduction(loss, label, weight, classes, reduction, avg_factor, ignore_index, module.avg_non_ignore)
    return _like_eager(module.loss_weight * reduced, value.input)


def _mmseg_accuracy(function, value, target, topk=1, thresh=None, ignore_index=None):
    """Per cent of the pixels, those of ignore_index left out, in a tensor of one number."""
    if topk != 1 or thresh is not None or not _fits(value, target):
        return NotImplemented
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    right = (argmax(value, 1) == target) & valid
    tiny = torch.finfo(torch.float32).eps
    return (100 * (right.sum() + tiny) / (valid.sum() + tiny)).view(1)
