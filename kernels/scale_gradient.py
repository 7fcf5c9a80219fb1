"""gradient *= factor, where what a loss is differentiated by is nearly always 1: then nothing is read or written."""

import functools

import torch
import triton
import triton.language as tl

from fcn_fast.kernels import grid as rule
from fcn_fast.kernels.launch import Launch


def scale_gradient(gradient, factor):
    """In place; gradient is dense, in any memory format."""
    with torch.cuda.device_of(gradient):
        _plan(gradient.numel())(gradient, factor)


@functools.lru_cache
def _plan(count):
    programs = min(rule.cdiv(count, 1024), 1024)
    wide = rule.index_type(count + (1 << 21))
    return Launch(_scale, (programs,), count, WIDE=wide, BLOCK=1024, num_warps=4)


@triton.jit
def _scale(gradient, factor, count, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by != 1:
        for block in range(tl.program_id(0), tl.cdiv(count, BLOCK), tl.num_programs(0)):
            at = tl.cast(block, WIDE) * BLOCK + tl.arange(0, BLOCK)
            x = tl.load(gradient + at, at < count)
            tl.store(gradient + at, (x.to(by.dtype) * by).to(x.dtype), at < count)
