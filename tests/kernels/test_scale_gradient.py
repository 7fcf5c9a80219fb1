import pytest
import torch

from fcn_fast.kernels import _load
from fcn_fast.reference import accumulate_dtype

from ..ops.support import DTYPES


def scale(gradient, factor):
    """The kernel itself: without a GPU the function of its name is the reference's."""
    _load("scale_gradient")(gradient, factor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 1023, 5000])
def test_values(count, dtype, device):
    x = torch.randn(count, dtype=torch.float64).to(dtype).to(device)
    factor = torch.randn((), dtype=torch.float64).to(accumulate_dtype(dtype)).to(device)
    for by in (factor, torch.ones_like(factor), torch.full_like(factor, float("nan"))):
        # With what lies behind it, and must stay.
        whole = torch.cat((x, x[:1]))
        scale(whole[:count], by)
        expected = (x.to(by.dtype) * by).to(dtype)
        assert torch.equal(whole[:count].nan_to_num(7), expected.nan_to_num(7)) and whole[count] == x[0]


def test_more_than_all_programs_do_at_once(device):
    x = torch.randn(1024 * 1024 + 1500 if device == "cuda" else 3000, device=device)
    expected = 2 * x
    scale(x, torch.tensor(2.0, device=device))
    assert torch.equal(x, expected)
