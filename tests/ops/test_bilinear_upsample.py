"""bilinear_upsample, as far as it differs from the other operations."""

import pytest
import torch
import torch.nn.functional as F

from fcn_fast import ops

from .support import ZERO, randn

pytestmark = pytest.mark.usefixtures("deterministic")


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck_of_the_backward(layout, requires_grad, device):
    grad_output = randn(2, 3, *ZERO.grid.size, device=device, layout=layout).requires_grad_(requires_grad)
    backward = torch.ops.fcn_fast.bilinear_upsample_backward.default
    torch.library.opcheck(backward, (grad_output, list(ZERO.in_size), ZERO.grid.numbers()))


def test_inductor(compile, device):
    x = randn(2, 3, 5, 7, device=device)
    fast = lambda x: ops.bilinear_upsample(x * 2, scale_factor=2).relu()  # noqa: E731
    torch.testing.assert_close(compile(fast)(x), fast(x))


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("options", [{"size": (9, 17), "align_corners": True}, {"scale_factor": 4}], ids=str)
def test_taps_of_weight_zero_are_skipped(options, value, implementation, device):
    x = randn(1, 2, 5, 5, dtype=torch.float64, device=device)
    mask = torch.rand_like(x) < 0.15
    y = ops.bilinear_upsample(x.masked_fill(mask, value), **options)
    reached = F.interpolate(mask.double(), mode="bilinear", **options) > 0
    plain = F.interpolate(x.masked_fill(mask, 0), mode="bilinear", **options)
    torch.testing.assert_close(y, plain.masked_fill(reached, value), equal_nan=True)
