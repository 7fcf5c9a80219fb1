"""Values and gradients of every operation, at every kind of grid, layout and shape, against PyTorch in float64."""

import math

import pytest
import torch

from fcn_fast.reference import memory_format

from .support import CLAMPED, DTYPES, SAMPLINGS, ZERO, interpolation, random_samplings
from .table import DIFFERENTIABLE, OPS

pytestmark = pytest.mark.usefixtures("deterministic")

SHAPES = {
    "some classes": (CLAMPED, {"channels": 6}),
    "odd classes, zero border": (ZERO, {"channels": 37}),
    "one class": (CLAMPED, {"channels": 1}),
    "1000 classes": (interpolation((3, 4), size=(6, 7)), {"channels": 1000, "batch": 2}),
    "one pixel to many": (interpolation((1, 1), size=(9, 8)), {"channels": 6}),
    "many pixels to one": (interpolation((9, 8), size=(1, 1)), {"channels": 6, "batch": 3}),
    "one column": (interpolation((33, 1), size=(60, 1)), {"channels": 6}),
}


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_grids(op, sampling, dtype, implementation, device):
    for options in op.variants:
        op(sampling, dtype=dtype, device=device, **options).check()


@pytest.mark.isa
@pytest.mark.parametrize("op", OPS, ids=str)
def test_random_grids(op, implementation, device, seed):
    for sampling in random_samplings(seed, 25):
        if op.kind == "loss" and math.prod(sampling.grid.size) < 64:
            continue  # the loss of a few pixels can be next to nothing, and an error relative to that anything
        for options in op.variants:
            op(sampling, batch=1, channels=3, device=device, **options).check()


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced", "expanded"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_layouts(op, shape, layout, dtype, implementation, device):
    sampling, options = SHAPES[shape]
    case = op(sampling, dtype=dtype, layout=layout, device=device, **options)
    if shape == "one class" and op.kind == "loss":
        for result in case.with_grad(case.grad_output()):  # nothing to learn: nothing to be relative to
            assert result.abs().max() < 1e-6 * case.others[0].numel()
        return
    for grad_layout in ("channels_last", "sliced") if op.kind == "linear" else ("contiguous",):
        results = case.check(grad_layout)
        for result in results[:2]:  # the skip's gradient is the output's own, padded
            assert result.dim() != 4 or result.is_contiguous(memory_format=memory_format(case.inputs[0]))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", OPS, ids=str)
def test_empty_batch(op, layout, implementation, device):
    for options in op.variants:
        case = op(CLAMPED, batch=0, layout=layout, device=device, **options)
        output, *grads = case.with_grad(case.grad_output())
        assert output.shape[:1] in ((0,), ()) and not output.any()
        assert [grad.shape for grad in grads] == [x.shape for x in case.inputs[: len(grads)]]
        assert output.dtype == op(CLAMPED, device=device, **options).run().dtype


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=str)
def test_expanded_gradient(op, implementation, device):
    """What .sum() sends back."""
    for options in op.variants:
        case = op(CLAMPED, dtype=torch.float64, device=device, **options)
        one = torch.ones((), dtype=torch.float64, device=device).expand(case.run().shape)
        for actual, expected in zip(case.with_grad(one), case.with_grad(one.contiguous()), strict=True):
            assert torch.equal(actual, expected)
