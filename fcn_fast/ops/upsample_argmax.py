"""The label map of upsampled logits that never holds them at full resolution."""

import torch

from fcn_fast.ops._common import LABELS, check_map, register, resolve_grid


def upsample_argmax(logits, size=None, scale_factor=None, *, align_corners=False, grid=None, dtype=torch.uint8):
    """``bilinear_upsample(logits, ...).argmax(1)`` that writes only the label map.

    Args:
        logits: (N, C, h, w), float32, float64, bfloat16 or float16.
        size, scale_factor, align_corners, grid: as in :func:`bilinear_upsample`.
        dtype: of the result: uint8, int16, int32 or int64.

    Returns:
        (N, H, W), the class of each pixel's largest upsampled logit. Ties go to the lowest class and NaN counts as
        largest, as in torch.argmax. Not differentiable.

    Raises:
        TypeError: as :func:`bilinear_upsample`, or another dtype.
        ValueError: as :func:`bilinear_upsample`, or more classes than dtype holds.
    """
    check_map("logits", logits)
    if dtype not in LABELS:
        raise TypeError(f"dtype: expected torch.uint8, torch.int16, torch.int32 or torch.int64, got {dtype}")
    if logits.shape[1] - 1 > torch.iinfo(dtype).max:
        raise ValueError(f"dtype: expected one that holds {logits.shape[1]} classes, got {dtype} (torch.int64 does)")
    grid = resolve_grid("logits", logits, size, scale_factor, align_corners, grid)
    return _forward(logits, grid.numbers(), dtype)


def _fake(logits, grid, dtype):
    return logits.new_empty((logits.shape[0], grid[0], grid[1]), dtype=dtype)


_forward = register("upsample_argmax(Tensor logits, SymInt[] grid, ScalarType dtype) -> Tensor", _fake)
