"""The fusion of a skip connection: crop the skip, upsample the coarse map, add."""

import torch
import torch.nn.functional as F

from fcn_fast.grid import _by, _pair
from fcn_fast.ops._common import (
    below_autograd,
    check_map,
    check_same_device,
    register,
    resolve_grid,
)
from fcn_fast.ops.bilinear_upsample import input_gradient
from fcn_fast.reference import memory_format


def skip_fuse(coarse, skip, *, crop=0, align_corners=False, grid=None):
    """Crop ``skip`` and add the upsampled ``coarse``.

    Without a grid, coarse is resized to what is left of the skip after the crop: with ``crop=0`` that is the
    resize-and-add of feature pyramids. With a grid the output has the grid's size; FCN-16s at 500 px is
    ``skip_fuse(score_fr, score_pool4, grid=BilinearGrid.deconvolution((16, 16), 2), crop=5)``, a 34x34 map.

    Args:
        coarse: (N, C, h, w), float32, float64, bfloat16 or float16.
        skip: (N, C, H', W') of the same dtype.
        crop: pixels of the skip left out at the top and left, an int or (top, left).
        align_corners: as in F.interpolate.
        grid: a :class:`BilinearGrid` for coarse; crop plus its size must fit in the skip.

    Returns:
        (N, C, H, W) in coarse's dtype and memory format. Twice differentiable, deterministic.

    Raises:
        TypeError: not floating-point tensors of one dtype, or grid no BilinearGrid.
        ValueError: other than 4-d, different N, C or device, a crop or grid that does not fit.
    """
    check_map("coarse", coarse)
    check_map("skip", skip)
    check_same_device("skip", skip, "coarse", coarse)
    if skip.dtype != coarse.dtype:
        raise TypeError(f"skip: expected the dtype of coarse, {coarse.dtype}, got {skip.dtype}")
    if skip.shape[0] != coarse.shape[0] or skip.shape[1] != coarse.shape[1]:
        raise ValueError(
            f"skip: expected the batch and channels of coarse, {tuple(coarse.shape[:2])}, got {tuple(skip.shape[:2])}"
        )
    top, left = _pair("crop", crop)
    height, width = skip.shape[2] - top, skip.shape[3] - left
    if top < 0 or left < 0 or height < 1 or width < 1:
        raise ValueError(f"crop: expected an offset inside the skip's {_by(skip.shape[-2:])}, got {top},{left}")
    size = (height, width) if grid is None else None
    grid = resolve_grid("coarse", coarse, size, None, align_corners, grid)
    if grid.size[0] > height or grid.size[1] > width:
        raise ValueError(
            f"crop, grid: expected a window inside the skip's {_by(skip.shape[-2:])}, "
            f"got {_by(grid.size)} at {top},{left}"
        )
    return _forward(coarse, skip, (top, left), grid.numbers())


def _fake(coarse, skip, crop, grid):
    shape = (*coarse.shape[:2], grid[0], grid[1])
    return coarse.new_empty(shape).contiguous(memory_format=memory_format(coarse))


class SkipFuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, coarse, skip, crop, grid):
        ctx.in_size, ctx.skip_size, ctx.crop, ctx.grid = coarse.shape[-2:], skip.shape[-2:], crop, grid
        ctx.format = memory_format(coarse)
        with below_autograd():
            return _forward(coarse, skip, crop, grid)

    @staticmethod
    def backward(ctx, grad_output):
        grad_coarse = grad_skip = None
        if ctx.needs_input_grad[0]:
            grad_coarse = input_gradient(ctx, grad_output)
        if ctx.needs_input_grad[1]:
            (top, left), (height, width) = ctx.crop, ctx.skip_size
            bottom, right = height - top - ctx.grid[0], width - left - ctx.grid[1]
            grad_skip = grad_output
            if top or left or bottom or right:
                grad_skip = F.pad(grad_output, (left, right, top, bottom))
        return grad_coarse, grad_skip, None, None


_forward = register(
    "skip_fuse(Tensor coarse, Tensor skip, SymInt[] crop, SymInt[] grid) -> Tensor", _fake, SkipFuse, differentiable=2
)
