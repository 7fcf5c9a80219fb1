"""Criteria with the signatures that other people's training code calls, as :mod:`fcn_fast.nn` has them.

They take scores at the target's size or at another, usually lower one: then :func:`fcn_fast.ops.upsample_softmax_loss`
resizes them without ever holding the result.
"""

import math

import torch
import torch.distributed as dist
from torch import nn

from fcn_fast import ops
from fcn_fast.ops._common import check_target, ignored_label

__all__ = ["CrossEntropyLoss", "MMSegCrossEntropyLoss", "OHEMLoss", "SamplePixels", "SoftCrossEntropyLoss"]


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss for (N, C, h, w) scores and (N, H, W) labels, and the same arguments.

    Scores smaller (or larger) than the target are resized to it as F.interpolate(mode="bilinear") would, without
    holding the result; at the target's size any (N, C, *) is taken.

    Args:
        weight, size_average, ignore_index, reduce, reduction, label_smoothing: torch.nn.CrossEntropyLoss's;
            ignore_index is -100 unless given, as there.
        align_corners: as in F.interpolate.
        global_mean: the mean over the pixels of all ranks that average their gradients (DistributedDataParallel, FSDP):
            the loss of a rank is its own sum times the number of ranks over the weight of all ranks' pixels, so that
            the average is the mean over the global batch, however the ignored pixels are spread. Costs one all_reduce
            of a number.
        process_group: the ranks of global_mean; all unless given.

    Unlike there: a mean over no pixel is 0, losses are float32 for half-precision scores, no soft targets.

    Raises:
        ValueError: global_mean with another reduction than "mean".
    """

    def __init__(self, *args, align_corners=False, global_mean=False, process_group=None, **kwargs):
        super().__init__(*args, **kwargs)
        if global_mean and self.reduction != "mean":
            raise ValueError(f"reduction: expected 'mean' with global_mean, got {self.reduction!r}")
        self.align_corners = align_corners
        self.global_mean = global_mean
        self.process_group = process_group

    def forward(self, input, target, pixel_weight=None):
        options = {
            "align_corners": self.align_corners,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "pixel_weight": pixel_weight,
        }
        if not self.global_mean:
            return _loss(input, target, self.weight, reduction=self.reduction, **options)
        loss = _loss(input, target, self.weight, reduction="sum", **options)
        total, ranks = _over_ranks(_total_weight(target, self.weight, self.ignore_index, pixel_weight), self)
        return loss * torch.where(total == 0, 0, ranks / total).to(loss.dtype)


class MMSegCrossEntropyLoss(nn.Module):
    """mmsegmentation's CrossEntropyLoss, the softmax one, called as there, on scores at the label's size or lower.

    Its mean is over all pixels, the ignored ones too, unless ``avg_non_ignore``; a call's ``weight`` and ``avg_factor``
    are the pixels' weights and what the sum is divided by.

    Raises:
        ValueError: use_sigmoid or use_mask, which are no softmax; avg_factor with reduction "sum".
    """

    def __init__(
        self,
        use_sigmoid=False,
        use_mask=False,
        reduction="mean",
        class_weight=None,
        loss_weight=1.0,
        loss_name="loss_ce",
        avg_non_ignore=False,
        align_corners=False,
    ):
        super().__init__()
        for name, value in (("use_sigmoid", use_sigmoid), ("use_mask", use_mask)):
            if value:
                raise ValueError(f"{name}: expected False, as this is a softmax loss, got {value!r}")
        self.reduction = reduction
        self.class_weight = class_weight
        self.loss_weight = loss_weight
        self.loss_name = loss_name
        self.avg_non_ignore = avg_non_ignore
        self.align_corners = align_corners

    def forward(
        self, cls_score, label, weight=None, avg_factor=None, reduction_override=None, ignore_index=-100, **kwargs
    ):
        def loss(**options):
            return _loss(cls_score, label, align_corners=self.align_corners, ignore_index=ignore_index, **options)

        classes = None if self.class_weight is None else cls_score.new_tensor(self.class_weight)
        reduction = reduction_override or self.reduction
        return self.loss_weight * mmseg_reduction(
            loss, label, weight, classes, reduction, avg_factor, ignore_index, self.avg_non_ignore
        )


def mmseg_reduction(loss, label, weight, class_weight, reduction, avg_factor, ignore_index, avg_non_ignore):
    """``loss(weight=, pixel_weight=, reduction=)`` reduced as mmsegmentation reduces its cross entropy."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', got {reduction!r}")
    if reduction == "sum" and avg_factor is not None:
        raise ValueError("avg_factor: expected None with reduction 'sum', got one")
    weight = None if weight is None else weight.float()
    if reduction != "mean":
        return loss(weight=class_weight, pixel_weight=weight, reduction=reduction)
    if avg_factor is None:
        nothing = ignore_index if avg_non_ignore or class_weight is not None else None
        avg_factor = _total_weight(label, class_weight, nothing, None)
    return loss(weight=class_weight, pixel_weight=weight, reduction="sum") / (
        avg_factor + torch.finfo(torch.float32).eps
    )


class SoftCrossEntropyLoss(nn.Module):
    """segmentation_models_pytorch's SoftCrossEntropyLoss on scores at the target's size or lower.

    Its mean is over all pixels, the ignored ones too. ``smooth_factor`` is the label smoothing, none unless given.

    Raises:
        ValueError: a dim other than 1.
    """

    def __init__(
        self,
        reduction="mean",
        smooth_factor=None,
        ignore_index=-100,
        dim=1,
        *,
        align_corners=False,
    ):
        super().__init__()
        if dim != 1:
            raise ValueError(f"dim: expected 1, the classes of (N, C, H, W), got {dim!r}")
        self.reduction = reduction
        self.smooth_factor = smooth_factor
        self.ignore_index = ignore_index
        self.align_corners = align_corners

    def forward(self, y_pred, y_true):
        return _loss(
            y_pred,
            y_true,
            align_corners=self.align_corners,
            ignore_index=_NO_LABEL if self.ignore_index is None else self.ignore_index,
            reduction="full" if self.reduction == "mean" else self.reduction,
            label_smoothing=self.smooth_factor or 0.0,
        )


class OHEMLoss(nn.Module):
    """Softmax loss of the hard pixels alone: online hard example mining, on scores at the target's size or lower.

    Hard are the pixels whose own class has a probability below ``threshold``, and at least the ``min_kept`` least
    probable ones of each image of the batch (of the batch together, as in mmsegmentation); without a threshold those
    ``min_kept`` alone. The loss is the mean over the hard pixels. It costs a second evaluation without gradient.

    Args:
        threshold: a probability, or None.
        min_kept: pixels an image.
        weight, ignore_index, align_corners: as in :func:`fcn_fast.ops.upsample_softmax_loss`.

    Raises:
        ValueError: a threshold outside 0 to 1, a min_kept below 1.
    """

    def __init__(self, threshold=0.7, min_kept=100_000, weight=None, *, ignore_index=None, align_corners=False):
        super().__init__()
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold: expected a probability above 0 or None, got {threshold!r}")
        if min_kept < 1:
            raise ValueError(f"min_kept: expected at least 1, got {min_kept!r}")
        self.register_buffer("weight", weight)
        self.threshold = threshold
        self.min_kept = min_kept
        self.options = {"ignore_index": ignore_index, "align_corners": align_corners}

    def forward(self, logits, target):
        hard = self.hard_pixels(logits, target)
        return _loss(logits, target, self.weight, pixel_weight=hard, **self.options)

    @torch.no_grad()
    def hard_pixels(self, logits, target):
        """The (N, H, W) weight of the pixels: 1 for the hard ones, 0 for the others."""
        losses = _loss(logits, target, reduction="none", **self.options)
        ignored = ignored_label(self.options["ignore_index"], logits.shape[1])
        losses = losses.masked_fill(target.long() == ignored, -math.inf)
        if losses.numel() == 0:
            return losses
        kept = min(self.min_kept * len(target), losses.numel() - 1)
        # Harder than the first that need not be kept; -inf, and so all that count, where there are not as many.
        bound = losses.flatten().topk(kept + 1).values[-1]
        if self.threshold is not None:
            bound = bound.clamp(max=-math.log(self.threshold))
        return (losses > bound).to(losses.dtype)


class SamplePixels(nn.Module):
    """Weights that keep each pixel of a target with a probability, in training: pixel_weight for any of the losses.

    Args:
        probability: of a pixel to count, above 0 up to 1.

    Raises:
        ValueError: another probability.
    """

    def __init__(self, probability):
        super().__init__()
        if not 0 < probability <= 1:
            raise ValueError(f"probability: expected a number above 0 up to 1, got {probability!r}")
        self.probability = probability

    def forward(self, target, generator=None):
        """float32 zeros and ones of target's shape, all ones in eval mode."""
        weight = torch.ones(target.shape, device=target.device)
        return weight.bernoulli_(self.probability, generator=generator) if self.training else weight

    def extra_repr(self):
        return f"probability={self.probability}"


_NO_LABEL = torch.iinfo(torch.int64).min


def _loss(logits, target, weight=None, *, align_corners, **options):
    """The softmax loss of logits at target's size, or upsampled to it."""
    check_target(target)
    if logits.shape[2:] == target.shape[1:]:
        return ops.softmax_loss(logits, target, weight, **options)
    return ops.upsample_softmax_loss(logits, target, weight, align_corners=align_corners, **options)


def _total_weight(target, weight, ignore_index, pixel_weight):
    """What a mean over the pixels divides by, as a tensor; ignore_index None: over all of them."""
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target.long() != ignore_index
    if weight is None and pixel_weight is None:
        return valid.sum()
    # A label out of range is for the loss to complain of.
    total = torch.ones((), device=target.device) if weight is None else weight[target.long().clamp(0, len(weight) - 1)]
    if pixel_weight is not None:
        total = total * pixel_weight
    return torch.where(valid, total, 0).sum()


def _over_ranks(total, criterion):
    """The sum of a number over the ranks, and how many ranks there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return total, 1
    dist.all_reduce(total, group=criterion.process_group)
    return total, dist.get_world_size(criterion.process_group)
