"""The operations as modules, and criteria with the signatures that other people's training code calls.

The modules hold their function's options and nothing else. The criteria take scores at the target's size or at a lower
one; they live in fcn_fast/criteria.py.
"""

import torch
from torch import nn

from fcn_fast import ops
from fcn_fast.criteria import CrossEntropyLoss, MMSegCrossEntropyLoss, OHEMLoss, SamplePixels, SoftCrossEntropyLoss

__all__ = [
    "BilinearUpsample",
    "CrossEntropyLoss",
    "MMSegCrossEntropyLoss",
    "OHEMLoss",
    "SamplePixels",
    "SkipFuse",
    "SoftCrossEntropyLoss",
    "SoftmaxLoss",
    "UpsampleArgmax",
    "UpsampleSoftmaxLoss",
]


class _Options(nn.Module):
    """A module whose options are plain attributes, shown by repr."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def extra_repr(self):
        return ", ".join(f"{name}={value}" for name, value in self.options.items() if value is not None)


class BilinearUpsample(_Options):
    """:func:`fcn_fast.ops.bilinear_upsample`: (N, C, h, w) to (N, C, H, W)."""

    def __init__(self, size=None, scale_factor=None, *, align_corners=False, grid=None):
        super().__init__(size=size, scale_factor=scale_factor, align_corners=align_corners, grid=grid)

    def forward(self, input):
        return ops.bilinear_upsample(input, **self.options)


class SkipFuse(_Options):
    """:func:`fcn_fast.ops.skip_fuse`: (N, C, h, w) and (N, C, H', W') to (N, C, H, W)."""

    def __init__(self, *, crop=0, align_corners=False, grid=None):
        super().__init__(crop=crop, align_corners=align_corners, grid=grid)

    def forward(self, coarse, skip):
        return ops.skip_fuse(coarse, skip, **self.options)


class _Loss(_Options):
    def __init__(self, weight, **options):
        super().__init__(**options)
        self.register_buffer("weight", weight)


class SoftmaxLoss(_Loss):
    """:func:`fcn_fast.ops.softmax_loss`: (N, C, *) and (N, *) to a scalar or (N, *)."""

    def __init__(self, weight=None, *, ignore_index=None, reduction="mean", label_smoothing=0.0, check_labels=None):
        super().__init__(
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            check_labels=check_labels,
        )

    def forward(self, logits, target, pixel_weight=None):
        return ops.softmax_loss(logits, target, self.weight, pixel_weight=pixel_weight, **self.options)


class UpsampleSoftmaxLoss(_Loss):
    """:func:`fcn_fast.ops.upsample_softmax_loss`: (N, C, h, w) and (N, H, W) to a scalar or (N, H, W)."""

    def __init__(
        self,
        weight=None,
        *,
        align_corners=False,
        grid=None,
        ignore_index=None,
        reduction="mean",
        label_smoothing=0.0,
        check_labels=None,
    ):
        super().__init__(
            weight,
            align_corners=align_corners,
            grid=grid,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            check_labels=check_labels,
        )

    def forward(self, logits, target, pixel_weight=None):
        return ops.upsample_softmax_loss(logits, target, self.weight, pixel_weight=pixel_weight, **self.options)


class UpsampleArgmax(_Options):
    """:func:`fcn_fast.ops.upsample_argmax`: (N, C, h, w) to (N, H, W)."""

    def __init__(self, size=None, scale_factor=None, *, align_corners=False, grid=None, dtype=torch.uint8):
        super().__init__(size=size, scale_factor=scale_factor, align_corners=align_corners, grid=grid, dtype=dtype)

    def forward(self, logits):
        return ops.upsample_argmax(logits, **self.options)
