import pytest
import torch

from fcn_fast import kernels, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def max_pool(*arguments):
    return kernels._load("max_pool")(*arguments)  # not the reference where only the interpreter is


def map_of(*shape, dtype, device):
    return torch.randn(shape).to(device, dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 64, 6, 10), (1, 3, 7, 5), (2, 80, 5, 4), (1, 16, 3, 131), (3, 5, 1, 1)])
def test_values(shape, dtype, device):
    x = map_of(*shape, dtype=dtype, device=device)
    found = max_pool(x)
    assert torch.equal(found, torch.max_pool2d(x, 2, 2, ceil_mode=True))
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("corner", [(0, 0), (2, 1), (3, 6)])
def test_in_a_frame(corner, dtype, device):
    x, frame = map_of(2, 19, 7, 8, dtype=dtype, device=device), map_of(1, 19, 8, 70, dtype=dtype, device=device)
    found = max_pool(x, frame, corner)
    assert torch.equal(found, reference.max_pool(x, frame, corner))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_nan_and_infinities(device):
    x = torch.full((1, 8, 4, 4), -torch.inf, device=device).contiguous(memory_format=torch.channels_last)
    x[0, 1, 0, 1] = x[0, 2, 3, 2] = torch.nan
    x[0, 2, 3, 3] = torch.inf
    for dtype in DTYPES:
        found, expected = max_pool(x.to(dtype)), torch.max_pool2d(x.to(dtype), 2, 2)
        assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


def test_nothing(device):
    assert max_pool(map_of(0, 8, 4, 4, dtype=torch.float32, device=device)).shape == (0, 8, 2, 2)


def test_it_is_called_by_its_name(device):
    """Again too, when its file has been imported, which has that name."""
    x = map_of(1, 8, 4, 6, dtype=torch.float32, device=device)
    for _ in range(2):
        assert torch.equal(kernels.max_pool(x), torch.max_pool2d(x, 2, 2))
        kernels._load("max_pool")
