"""The operators in plain PyTorch: what each of them means, and what runs where there is no kernel.

Each function has the signature of the operator of its name (see ``fcn_fast.ops``): checked inputs, and the grid as
``BilinearGrid.numbers()``. Arithmetic is float32, or float64 for float64 inputs; the functions without ``_backward``
are differentiable by PyTorch's own autograd when called directly.
"""

import torch

from fcn_fast.grid import BilinearGrid

REDUCTIONS = ("none", "mean", "sum", "full", "batch")
NONE, MEAN, SUM, FULL, BATCH = range(5)  # as the operators take them


def accumulate_dtype(dtype):
    """The dtype in which an operator computes: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def memory_format(tensor):
    """channels_last if that is what the tensor's strides say; a layout that could be either counts as contiguous."""
    channels_last = (
        tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    return torch.channels_last if channels_last else torch.contiguous_format


def _taps(grid, axis, like):
    """Along one axis: for each output pixel, the coarse indices of its two taps and their weights.

    Returns (indices, weights), two pairs of 1-d tensors; a tap outside a zero border has weight 0, an index inside.
    """
    last = grid.in_size[axis] - 1
    # The quotient of whole numbers is the one rounding of a weight.
    src = torch.arange(grid.size[axis], device=like.device) * grid.step[axis] + grid.origin[axis]
    low = torch.div(src, grid.unit[axis], rounding_mode="floor")
    remainder = src - low * grid.unit[axis]
    indices = [low, low + 1]
    weights = [part.to(like.dtype) / grid.unit[axis] for part in (grid.unit[axis] - remainder, remainder)]
    outside = [(index < 0) | (index > last) for index in indices]
    if grid.border == "clamp":
        # Where a tap leaves the map, both read the edge pixel: the inner one counts whole, or the first of two outside.
        (low_gone, high_gone), (low_weight, high_weight) = outside, weights
        weights = [
            torch.where(high_gone, 1, low_weight.masked_fill(low_gone, 0)),
            torch.where(low_gone & ~high_gone, 1, high_weight.masked_fill(high_gone, 0)),
        ]
    else:
        weights = [w.masked_fill(gone, 0) for w, gone in zip(weights, outside, strict=True)]
    return [index.clamp(0, last) for index in indices], weights


def _sample_axis(x, dim, grid):
    (low, high), weights = _taps(grid, dim - 2, x)
    shape = (-1, 1) if dim == 2 else (-1,)
    parts = []
    for index, weight in zip((low, high), weights, strict=True):
        weight = weight.view(shape)
        # A tap of weight zero is skipped: 0 * inf would be NaN.
        parts.append(torch.where(weight == 0, 0, x.index_select(dim, index) * weight))
    return parts[0] + parts[1]


def _sample(x, grid):
    return _sample_axis(_sample_axis(x, 2, grid), 3, grid)


def _gather_axis(g, dim, grid):
    """The transpose of _sample_axis: each coarse pixel gathers from the outputs that read it."""
    out = g.new_zeros([n if i != dim else grid.in_size[dim - 2] for i, n in enumerate(g.shape)])
    shape = (-1, 1) if dim == 2 else (-1,)
    for index, weight in zip(*_taps(grid, dim - 2, g), strict=True):
        weight = weight.view(shape)
        out = out.index_add(dim, index, torch.where(weight == 0, 0, g * weight))
    return out


def _gather(g, grid):
    return _gather_axis(_gather_axis(g, 3, grid), 2, grid)


def bilinear_upsample(input, grid):
    grid = BilinearGrid.from_numbers(input.shape[-2:], grid)
    out = _sample(input.to(accumulate_dtype(input.dtype)), grid)
    return out.to(input.dtype).contiguous(memory_format=memory_format(input))


def bilinear_upsample_backward(grad_output, in_size, grid):
    grid = BilinearGrid.from_numbers(in_size, grid)
    grad = _gather(grad_output.to(accumulate_dtype(grad_output.dtype)), grid)
    return grad.to(grad_output.dtype).contiguous(memory_format=memory_format(grad_output))


def skip_fuse(coarse, skip, crop, grid):
    grid = BilinearGrid.from_numbers(coarse.shape[-2:], grid)
    accumulate = accumulate_dtype(coarse.dtype)
    window = skip[:, :, crop[0] : crop[0] + grid.size[0], crop[1] : crop[1] + grid.size[1]]
    out = _sample(coarse.to(accumulate), grid) + window.to(accumulate)
    return out.to(coarse.dtype).contiguous(memory_format=memory_format(coarse))


def upsample_argmax(logits, grid, dtype):
    grid = BilinearGrid.from_numbers(logits.shape[-2:], grid)
    return _sample(logits.to(accumulate_dtype(logits.dtype)), grid).argmax(1).to(dtype)


class _Labels:
    """What the targets say of each pixel: a label to look up, and the weight of its loss."""

    def __init__(self, x, target, weight, pixel_weight, ignore_index, check_labels):
        labels = target.long()
        classes = x.shape[1]
        self.valid = labels != ignore_index
        self.bad = self.valid & ((labels < 0) | (labels >= classes))
        if check_labels and self.bad.any():
            raise_for_label(target, int(self.bad.flatten().int().argmax()), classes, ignore_index)
        self.labels = labels.masked_fill(~self.valid | self.bad, 0)
        ones = x.new_ones(()).expand(target.shape)
        self.pixel = ones if pixel_weight is None else pixel_weight.to(x.dtype)
        self.classes = x.new_ones(classes) if weight is None else weight.to(x.dtype)
        self.hard = self.classes[self.labels]  # the weight of each pixel's own label
        self.total = torch.where(self.valid, self.hard * self.pixel, 0).sum()

    def scale(self, reduction):
        """What a pixel's loss is multiplied by in the reduced one; a mean over nothing is 0."""
        if reduction == MEAN:
            return torch.where(self.total == 0, 0, 1 / self.total)
        shape = self.labels.shape
        return {NONE: 1, SUM: 1, FULL: 1 / max(shape.numel(), 1), BATCH: 1 / max(shape[0], 1)}[reduction]


def raise_for_label(target, position, classes, ignore_index):
    """Raise the ValueError of the label at this flat position of target."""
    index = [int(i) for i in torch.unravel_index(torch.tensor(position), target.shape)]
    raise ValueError(
        f"target: expected labels from 0 to {classes - 1} or ignore_index {ignore_index}, "
        f"got {int(target[tuple(index)])} at {index}"
    )


def _softmax_loss(x, labels, reduction, label_smoothing):
    """The loss, the softmax's normaliser (2, N, *): largest logit and log of the sum of exp(logit - largest), and the
    total weight. Two numbers, because their sum would lose the small one's digits under large logits."""
    largest = x.detach().amax(1)
    shifted = x - largest.unsqueeze(1)
    log_sum = shifted.exp().sum(1).log()
    loss = labels.hard * (log_sum - shifted.gather(1, labels.labels.unsqueeze(1)).squeeze(1))
    if label_smoothing:
        class_weight = labels.classes.view(-1, *[1] * (x.dim() - 2))
        smooth = (class_weight * (log_sum.unsqueeze(1) - shifted)).sum(1) / x.shape[1]
        loss = (1 - label_smoothing) * loss + label_smoothing * smooth
    loss = torch.where(labels.valid, loss * labels.pixel, 0)
    loss = torch.where(labels.bad, float("nan"), loss)
    if reduction != NONE:
        scale = labels.scale(reduction)
        # Nothing but weightless pixels: 0, whatever 0 * inf would have been.
        loss = torch.where(labels.total == 0, 0, loss.sum() * scale) if reduction == MEAN else loss.sum() * scale
    return loss, torch.stack([largest, log_sum]).detach(), labels.total


def _softmax_loss_backward(grad_output, x, labels, saved, reduction, label_smoothing):
    largest, log_sum = saved
    probability = (x - largest.unsqueeze(1) - log_sum.unsqueeze(1)).exp()
    pixel = grad_output * labels.pixel * labels.scale(reduction)
    hard = (1 - label_smoothing) * labels.hard
    grad = probability * hard.unsqueeze(1)
    grad.scatter_add_(1, labels.labels.unsqueeze(1), -hard.unsqueeze(1))
    if label_smoothing:
        class_weight = labels.classes.view(-1, *[1] * (x.dim() - 2))
        grad = grad + label_smoothing / x.shape[1] * (probability * labels.classes.sum() - class_weight)
    keep = labels.valid & (labels.total != 0) if reduction == MEAN else labels.valid
    grad = torch.where(keep.unsqueeze(1), grad * pixel.unsqueeze(1), 0)
    return torch.where(labels.bad.unsqueeze(1), float("nan"), grad)


def softmax_loss(
    logits, target, weight, pixel_weight, ignore_index, reduction, label_smoothing, check_labels, with_grad
):
    x = logits.to(accumulate_dtype(logits.dtype))
    labels = _Labels(x, target, weight, pixel_weight, ignore_index, check_labels)
    loss, saved, total = _softmax_loss(x, labels, reduction, label_smoothing)
    return loss, saved if with_grad else x.new_empty(0), total


def softmax_loss_backward(
    grad_output, logits, target, weight, pixel_weight, saved, total_weight, ignore_index, reduction, label_smoothing
):
    x = logits.to(accumulate_dtype(logits.dtype))
    labels = _Labels(x, target, weight, pixel_weight, ignore_index, False)
    grad = _softmax_loss_backward(grad_output, x, labels, saved, reduction, label_smoothing)
    return grad.to(logits.dtype).contiguous(memory_format=memory_format(logits))


def softmax_loss_and_gradient(
    logits, target, weight, pixel_weight, ignore_index, reduction, label_smoothing, check_labels
):
    rest = (ignore_index, reduction, label_smoothing)
    loss, saved, total = softmax_loss(logits, target, weight, pixel_weight, *rest, check_labels, True)
    one = torch.ones_like(loss)
    return loss, softmax_loss_backward(one, logits, target, weight, pixel_weight, saved, total, *rest)


def scale_gradient(gradient, factor):
    """What fcn_fast.kernels.scale_gradient does; no operator."""
    gradient.mul_(factor)


def max_pool(x, frame=None, corner=(0, 0)):
    """What fcn_fast.kernels.max_pool does; no operator."""
    pooled = torch.max_pool2d(x, 2, 2, ceil_mode=True)
    if frame is None:
        return pooled
    whole = torch.empty_like(frame.expand(len(x), -1, -1, -1), memory_format=torch.channels_last).copy_(frame)
    (top, left), (height, width) = corner, pooled.shape[2:]
    whole[:, :, top : top + height, left : left + width] = pooled
    return whole


def upsample_softmax_loss(
    logits, target, weight, pixel_weight, grid, ignore_index, reduction, label_smoothing, check_labels, with_grad
):
    grid = BilinearGrid.from_numbers(logits.shape[-2:], grid)
    x = _sample(logits.to(accumulate_dtype(logits.dtype)), grid)
    labels = _Labels(x, target, weight, pixel_weight, ignore_index, check_labels)
    loss, saved, _ = _softmax_loss(x, labels, reduction, label_smoothing)
    if not with_grad or reduction == NONE:
        saved = x.new_empty(0)
    else:
        grad = _softmax_loss_backward(x.new_ones(()), x, labels, saved, reduction, label_smoothing)
        saved = _gather(grad, grid).contiguous(memory_format=memory_format(logits))
    return loss, saved
