"""The operations as PyTorch users write them today: what ``fcn_fast.ops`` is compared with.

Each function has the name and the arguments of its counterpart in ``fcn_fast.ops`` (without pixel_weight and
check_labels) and takes the grids that PyTorch has an operation for.
"""

from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F

from fcn_fast.grid import BilinearGrid, _pair
from fcn_fast.ops._common import ignored_label

__all__ = ["bilinear_upsample", "skip_fuse", "softmax_loss", "upsample_argmax", "upsample_softmax_loss"]


def bilinear_upsample(input, size=None, scale_factor=None, *, align_corners=False, grid=None):
    """F.interpolate or a grouped conv_transpose2d with a bilinear filter, and a crop. (N, C, h, w) to (N, C, H, W).

    Raises:
        ValueError: a grid that is neither of them.
    """
    if grid is None:
        return F.interpolate(input, size, scale_factor, "bilinear", align_corners)
    if grid.border == "zero":
        return _deconvolution(input, grid)
    for align_corners in (False, True):
        if grid == BilinearGrid.interpolate(grid.in_size, grid.size, align_corners=align_corners):
            return F.interpolate(input, grid.size, mode="bilinear", align_corners=align_corners)
    # By a whole factor, cut at the bottom and right: from BilinearGrid.interpolate's numbers, unit = 2 * factor.
    full = BilinearGrid.interpolate(grid.in_size, scale_factor=max(1, grid.unit[0] // 2))
    if grid == replace(full, size=grid.size) and grid.size[0] <= full.size[0] and grid.size[1] <= full.size[1]:
        return F.interpolate(input, full.size, mode="bilinear")[:, :, : grid.size[0], : grid.size[1]]
    raise ValueError(f"grid: expected one of F.interpolate or of conv_transpose2d, got {grid}")


def skip_fuse(coarse, skip, *, crop=0, align_corners=False, grid=None):
    """Crop skip and add the upsampled coarse map. (N, C, h, w) and (N, C, H', W') to (N, C, H, W)."""
    top, left = _pair("crop", crop)
    skip = skip[:, :, top:, left:]
    if grid is None:
        return bilinear_upsample(coarse, skip.shape[-2:], align_corners=align_corners) + skip
    return bilinear_upsample(coarse, grid=grid) + skip[:, :, : grid.size[0], : grid.size[1]]


def softmax_loss(logits, target, weight=None, *, ignore_index=None, reduction="mean", label_smoothing=0.0):
    """F.cross_entropy, with Caffe's two other reductions. (N, C, *) and (N, *) to a scalar or (N, *)."""
    divisor = {"full": target.numel(), "batch": target.shape[0]}.get(reduction)
    loss = F.cross_entropy(
        logits,
        target.long(),
        weight,
        ignore_index=ignored_label(ignore_index, logits.shape[1]),
        reduction="sum" if divisor else reduction,
        label_smoothing=label_smoothing,
    )
    return loss / divisor if divisor else loss


def upsample_softmax_loss(logits, target, weight=None, *, align_corners=False, grid=None, **options):
    """Upsample, then softmax_loss with these options. (N, C, h, w) and (N, H, W) to a scalar or (N, H, W)."""
    size = target.shape[-2:] if grid is None else None
    scores = bilinear_upsample(logits, size, align_corners=align_corners, grid=grid)
    return softmax_loss(scores, target, weight, **options)


def upsample_argmax(logits, size=None, scale_factor=None, *, align_corners=False, grid=None, dtype=torch.uint8):
    """Upsample, then argmax over the classes. (N, C, h, w) to (N, H, W)."""
    scores = bilinear_upsample(logits, size, scale_factor, align_corners=align_corners, grid=grid)
    return scores.argmax(1).to(dtype)


def _deconvolution(input, grid):
    channels = input.shape[1]
    # From BilinearGrid.deconvolution's numbers: unit = 2 * stride, origin = 2 * crop + 1 - kernel.
    stride = grid.unit[0] // 2
    kernel = 2 * stride - (grid.origin[0] + 1) % 2
    top, left = ((origin + kernel - 1) // 2 for origin in grid.origin)
    if min(top, left) < 0 or grid != BilinearGrid.deconvolution(
        grid.in_size, stride, kernel=kernel, crop=(top, left), size=grid.size
    ):
        raise ValueError(f"grid: expected one of F.interpolate or of conv_transpose2d, got {grid}")
    filters = _bilinear_filters(channels, kernel, input.dtype, input.device)
    output = F.conv_transpose2d(input, filters, stride=stride, groups=channels)
    return output[:, :, top : top + grid.size[0], left : left + grid.size[1]]


@lru_cache(maxsize=32)
def _bilinear_filters(channels, kernel, dtype, device):
    """Caffe's bilinear filler, one filter a channel: (channels, 1, kernel, kernel)."""
    factor = (kernel + 1) // 2
    centre = (kernel - 1) / (2 * factor)
    line = 1 - (torch.arange(kernel, dtype=torch.float64) / factor - centre).abs()
    return (line[:, None] * line).to(device, dtype).expand(channels, 1, -1, -1).contiguous()
