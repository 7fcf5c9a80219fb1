"""Bilinear upsampling of a coarse map at the pixels of a grid."""

import torch

from fcn_fast.ops._common import below_autograd, check_map, register, resolve_grid
from fcn_fast.reference import memory_format


def bilinear_upsample(input, size=None, scale_factor=None, *, align_corners=False, grid=None):
    """Sample ``input`` at the pixels of a grid.

    With size or scale_factor this is ``torch.nn.functional.interpolate(mode="bilinear")``; with
    ``BilinearGrid.deconvolution`` it is Caffe's bilinear Deconvolution and Crop in one.

    Args:
        input: (N, C, h, w), float32, float64, bfloat16 or float16.
        size: output size in pixels, an int or (H, W).
        scale_factor: multiplier of the size, a number or (vertical, horizontal).
        align_corners: as in F.interpolate.
        grid: a :class:`BilinearGrid` in place of the three above.

    Returns:
        (N, C, H, W) in input's dtype and memory format. Twice differentiable, and the gradient is deterministic.

    Unlike F.interpolate: coordinates are exact whole numbers, and a tap of weight zero is skipped, so that an infinite
    neighbour does not become NaN.

    Raises:
        TypeError: input is not a floating-point tensor, or grid no BilinearGrid.
        ValueError: input is not 4-d, both or none of size and scale_factor, grid beside them or for another input size.
    """
    check_map("input", input)
    grid = resolve_grid("input", input, size, scale_factor, align_corners, grid)
    return _forward(input, grid.numbers())


def _fake(input, grid):
    shape = (*input.shape[:2], grid[0], grid[1])
    return input.new_empty(shape).contiguous(memory_format=memory_format(input))


def _backward_fake(grad_output, in_size, grid):
    shape = (*grad_output.shape[:2], *in_size)
    return grad_output.new_empty(shape).contiguous(memory_format=memory_format(grad_output))


def input_gradient(ctx, grad_output):
    """The gradient of an input of ctx.in_size and ctx.format from that of its sample at ctx.grid."""
    grad = backward(grad_output.contiguous(memory_format=ctx.format), ctx.in_size, ctx.grid)
    return grad.contiguous(memory_format=ctx.format)  # which the gradient of a single pixel could not say


class BilinearUpsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, grid):
        ctx.in_size, ctx.grid, ctx.format = input.shape[-2:], grid, memory_format(input)
        with below_autograd():
            return _forward(input, grid)

    @staticmethod
    def backward(ctx, grad_output):
        return input_gradient(ctx, grad_output), None


class BilinearUpsampleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad_output, in_size, grid):
        ctx.grid, ctx.format = grid, memory_format(grad_output)
        with below_autograd():
            return backward(grad_output, in_size, grid)

    @staticmethod
    def backward(ctx, grad):
        return _forward(grad.contiguous(memory_format=ctx.format), ctx.grid), None, None


_forward = register("bilinear_upsample(Tensor input, SymInt[] grid) -> Tensor", _fake, BilinearUpsample)
backward = register(
    "bilinear_upsample_backward(Tensor grad_output, SymInt[] in_size, SymInt[] grid) -> Tensor",
    _backward_fake,
    BilinearUpsampleGradient,
)
