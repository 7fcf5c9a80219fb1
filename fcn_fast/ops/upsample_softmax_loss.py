"""The softmax loss of upsampled logits that never holds them at full resolution."""

import torch

from fcn_fast.grid import _by
from fcn_fast.ops._common import (
    below_autograd,
    check_loss_arguments,
    check_map,
    check_target,
    first_derivative_only,
    raises_on_labels,
    register,
    resolve_grid,
)
from fcn_fast.ops._gradient import scaled
from fcn_fast.reference import NONE, SUM, accumulate_dtype, memory_format


def upsample_softmax_loss(
    logits,
    target,
    weight=None,
    *,
    align_corners=False,
    grid=None,
    ignore_index=None,
    reduction="mean",
    label_smoothing=0.0,
    pixel_weight=None,
    check_labels=None,
):
    """``softmax_loss(bilinear_upsample(logits, target.shape[-2:]), target)`` without the upsampled logits.

    Nothing of the size (N, C, H, W) is ever held. With the gradient, memory is about twice that of the
    low-resolution logits in float32, on a GPU up to 64 MiB more. The upsampled values are not rounded to half precision
    on the way.

    Args:
        logits: (N, C, h, w), float32, float64, bfloat16 or float16.
        target: (N, H, W), uint8, int16, int32 or int64 labels from 0 to C - 1, or ignore_index.
        align_corners: as in F.interpolate, to which target's size is the size.
        grid: a :class:`BilinearGrid` from logits to target in its place.
        weight, ignore_index, reduction, label_smoothing, pixel_weight, check_labels: as in :func:`softmax_loss`.

    Returns:
        As :func:`softmax_loss`: float32 (float64 for float64 logits), a scalar, or (N, H, W) for ``"none"``.

    Raises:
        TypeError, ValueError: as :func:`softmax_loss` and :func:`bilinear_upsample`; also for a grid whose size is not
            target's.
    """
    check_map("logits", logits)
    check_target(target)
    if target.dim() != 3 or target.shape[0] != logits.shape[0]:
        raise ValueError(f"target: expected shape ({logits.shape[0]}, H, W), got {tuple(target.shape)}")
    size = target.shape[-2:] if grid is None else None
    grid = resolve_grid("logits", logits, size, None, align_corners, grid)
    if target.shape[1] != grid.size[0] or target.shape[2] != grid.size[1]:
        expected, got = _by(grid.size), _by(target.shape[-2:])
        raise ValueError(f"target: expected {expected}, what the grid upsamples to, got {got}")
    weight, pixel_weight, ignore_index, code = check_loss_arguments(
        logits, target, weight, pixel_weight, ignore_index, reduction, label_smoothing
    )
    check = raises_on_labels(logits, check_labels)
    numbers = grid.numbers()
    return _forward(logits, target, weight, pixel_weight, numbers, ignore_index, code, label_smoothing, check, False)[0]


def _fake(
    logits, target, weight, pixel_weight, grid, ignore_index, reduction, label_smoothing, check_labels, with_grad
):
    dtype = accumulate_dtype(logits.dtype)
    loss = logits.new_empty(target.shape if reduction == NONE else (), dtype=dtype)
    if not with_grad or reduction == NONE:
        saved = logits.new_empty((0,), dtype=dtype)
    else:
        saved = torch.empty_like(logits, dtype=dtype, memory_format=memory_format(logits))
    return loss, saved


class UpsampleSoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, weight, pixel_weight, *options):
        grid, ignore_index, reduction, label_smoothing, check_labels, _ = options
        rest = (grid, ignore_index, reduction, label_smoothing, check_labels)
        with below_autograd():
            loss, saved = _forward(logits, target, weight, pixel_weight, *rest, True)
        ctx.set_materialize_grads(False)  # or zeros as large as saved would be made for it
        ctx.reduction, ctx.dtype = reduction, logits.dtype
        if reduction == NONE:
            ctx.save_for_backward(logits, target, weight, pixel_weight)
            ctx.rest = (grid, ignore_index, label_smoothing)
        else:
            ctx.save_for_backward(saved)
        return loss, saved

    @staticmethod
    @first_derivative_only("upsample_softmax_loss")
    def backward(ctx, saved, grad_output):
        if ctx.reduction == NONE:
            # The gradient of a sum of losses, weighted by what arrives for each.
            logits, target, weight, pixel_weight = saved
            grid, ignore_index, label_smoothing = ctx.rest
            weights = grad_output if pixel_weight is None else grad_output * pixel_weight
            _, grad = _forward(logits, target, weight, weights, grid, ignore_index, SUM, label_smoothing, False, True)
            grad = grad.to(ctx.dtype)
        else:
            # The loss is a scalar, so its gradient was made with it; only its scale was missing.
            # An output of the forward pass, for first_derivative_only; here it is just a tensor.
            grad = scaled(saved[0].detach(), grad_output, ctx.dtype)
        return grad, *[None] * 9


_forward = register(
    "upsample_softmax_loss(Tensor logits, Tensor target, Tensor? weight, Tensor? pixel_weight, SymInt[] grid, "
    "int ignore_index, int reduction, float label_smoothing, bool check_labels, bool with_grad) "
    "-> (Tensor loss, Tensor saved)",
    _fake,
    UpsampleSoftmaxLoss,
)
