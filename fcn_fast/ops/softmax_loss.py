"""Per-pixel softmax cross entropy with ignored labels."""

import torch

import fcn_fast
from fcn_fast.ops._common import (
    FLOATS,
    below_autograd,
    check_loss_arguments,
    check_target,
    check_tensor,
    first_derivative_only,
    raises_on_labels,
    register,
)
from fcn_fast.ops._gradient import scaled
from fcn_fast.reference import NONE, accumulate_dtype, memory_format


def softmax_loss(
    logits,
    target,
    weight=None,
    *,
    ignore_index=None,
    reduction="mean",
    label_smoothing=0.0,
    pixel_weight=None,
    check_labels=None,
):
    """Softmax cross entropy of every pixel, where pixels labelled ``ignore_index`` count for nothing.

    The loss of a pixel is ``pixel_weight * weight[label] * -log_softmax(logits)[label]``, smoothed as in
    ``torch.nn.functional.cross_entropy``.

    Args:
        logits: (N, C, *), float32, float64, bfloat16 or float16.
        target: (N, *), uint8, int16, int32 or int64 labels from 0 to C - 1, or ignore_index.
        weight: (C,) weight of each class.
        ignore_index: the label that is left out; compared as int64. 255 unless given, and to be given for more classes.
        reduction: ``"none"``; ``"mean"``, over the total weight of the pixels (Caffe's VALID); ``"sum"`` (NONE);
            ``"full"``, over N * H * W (FULL); ``"batch"``, over N (BATCH_SIZE).
        label_smoothing: from 0 to 1.
        pixel_weight: (N, *) weight of each pixel.
        check_labels: raise for a label that is neither a class nor ignore_index. By default on the CPU only; elsewhere
            it costs a synchronisation. Unchecked, such a pixel's loss and gradient are NaN.

    Returns:
        float32 (float64 for float64 logits), under autocast or not: a scalar, or (N, *) for ``"none"``. Once
        differentiable in logits; the gradient has their dtype and memory format and the same bits on every run.

    Unlike F.cross_entropy: ignore_index is 255 unless given, half-precision logits give a float32 loss, a mean over
    pixels of no weight is 0 with gradient 0 (there: NaN), and soft (floating-point) targets are not supported.

    Raises:
        TypeError: logits not floating point, target not of a label dtype, a weight that is no floating-point tensor.
        ValueError: shapes or devices that do not fit, a label out of range, an unknown reduction.
    """
    check_tensor("logits", logits, FLOATS)
    if logits.dim() < 2 or logits.shape[1] < 1:
        raise ValueError(f"logits: expected shape (N, C, ...) with C >= 1, got {tuple(logits.shape)}")
    check_target(target)
    if target.shape != logits.shape[:1] + logits.shape[2:]:
        expected = tuple(logits.shape[:1] + logits.shape[2:])
        raise ValueError(f"target: expected shape {expected}, got {tuple(target.shape)}")
    weight, pixel_weight, ignore_index, code = check_loss_arguments(
        logits, target, weight, pixel_weight, ignore_index, reduction, label_smoothing
    )
    arguments = (logits, target, weight, pixel_weight, ignore_index, code, label_smoothing)
    check = raises_on_labels(logits, check_labels)
    if _at_once(logits, code):
        return _and_gradient(*arguments, check)[0]
    return _forward(*arguments, check, False)[0]


def _at_once(logits, reduction):
    """Whether to make the gradient with the loss, which in CUDA C++ saves reading the logits again.

    A compiled graph would have to copy it to scale it. In float16 it would be too small a number before it is scaled;
    in bfloat16 it is rounded twice, where it is scaled by other than a power of two.
    """
    return (
        logits.is_cuda
        and hasattr(fcn_fast._C, "scale_gradient")
        and logits.requires_grad
        and reduction != NONE
        and logits.dtype != torch.float16
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _fake(logits, target, weight, pixel_weight, ignore_index, reduction, label_smoothing, check_labels, with_grad):
    dtype = accumulate_dtype(logits.dtype)
    loss = logits.new_empty(target.shape if reduction == NONE else (), dtype=dtype)
    saved = logits.new_empty((2, *target.shape) if with_grad else (0,), dtype=dtype)
    return loss, saved, logits.new_empty((), dtype=dtype)


def _backward_fake(
    grad_output, logits, target, weight, pixel_weight, saved, total_weight, ignore_index, reduction, label_smoothing
):
    return torch.empty_like(logits, memory_format=memory_format(logits))


def _and_gradient_fake(logits, target, weight, pixel_weight, ignore_index, reduction, label_smoothing, check_labels):
    loss = logits.new_empty((), dtype=accumulate_dtype(logits.dtype))
    return loss, torch.empty_like(logits, memory_format=memory_format(logits))


class SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, weight, pixel_weight, *options):
        ignore_index, reduction, label_smoothing, check_labels, _ = options
        rest = (ignore_index, reduction, label_smoothing)
        with below_autograd():
            loss, saved, total_weight = _forward(logits, target, weight, pixel_weight, *rest, check_labels, True)
        ctx.set_materialize_grads(False)  # or zeros as large as saved would be made for it
        ctx.mark_non_differentiable(saved, total_weight)
        ctx.save_for_backward(logits, target, weight, pixel_weight, saved, total_weight)
        ctx.rest = rest
        return loss, saved, total_weight

    @staticmethod
    @first_derivative_only("softmax_loss")
    def backward(ctx, saved, grad_output):
        return _backward(grad_output, *saved, *ctx.rest), *[None] * 8


class SoftmaxLossAndGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        with below_autograd():
            loss, gradient = _and_gradient(*arguments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient)
        return loss, gradient

    @staticmethod
    @first_derivative_only("softmax_loss")
    def backward(ctx, saved, grad_output):
        gradient = saved[0].detach()  # as in upsample_softmax_loss
        return scaled(gradient, grad_output, gradient.dtype), *[None] * 7


_forward = register(
    "softmax_loss(Tensor logits, Tensor target, Tensor? weight, Tensor? pixel_weight, int ignore_index, int reduction, "
    "float label_smoothing, bool check_labels, bool with_grad) -> (Tensor loss, Tensor saved, Tensor total_weight)",
    _fake,
    SoftmaxLoss,
)
_backward = register(
    "softmax_loss_backward(Tensor grad_output, Tensor logits, Tensor target, Tensor? weight, Tensor? pixel_weight, "
    "Tensor saved, Tensor total_weight, int ignore_index, int reduction, float label_smoothing) -> Tensor",
    _backward_fake,
)
_and_gradient = register(
    "softmax_loss_and_gradient(Tensor logits, Tensor target, Tensor? weight, Tensor? pixel_weight, int ignore_index, "
    "int reduction, float label_smoothing, bool check_labels) -> (Tensor loss, Tensor gradient)",
    _and_gradient_fake,
    SoftmaxLossAndGradient,
)
