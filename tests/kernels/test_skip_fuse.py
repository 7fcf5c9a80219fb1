import pytest
import torch

from fcn_fast import kernels, reference

from ..ops.support import DTYPES, LAYOUTS, randn
from .support import CLAMPED, GRIDS, ZERO, assert_close, exactly

pytestmark = pytest.mark.usefixtures("deterministic")


def compare(grid, crop=(2, 3), layouts=("contiguous", "contiguous"), dtype=torch.float32, device="cpu"):
    height, width = grid.size
    coarse = randn(1, 2, *grid.in_size, dtype=dtype, layout=layouts[0], device=device)
    skip = randn(1, 2, height + crop[0] + 1, width + crop[1] + 2, dtype=dtype, layout=layouts[1], device=device)
    arguments = (coarse, skip, list(crop), grid.numbers())
    actual, plain = kernels.skip_fuse(*arguments), reference.skip_fuse(*arguments)
    assert actual.dtype == dtype and actual.stride() == plain.stride()
    assert_close(actual, exactly(reference.skip_fuse, *arguments), plain)


@pytest.mark.parametrize("layouts", [(a, b) for a in LAYOUTS[:2] for b in LAYOUTS], ids="+".join)
def test_layouts(layouts, device):
    compare(ZERO, layouts=layouts, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("grid", "crop"), [(CLAMPED, (0, 0)), (list(GRIDS.values())[14], (1, 5))])
def test_dtypes_and_grids(grid, crop, dtype, device):
    compare(grid, crop, dtype=dtype, device=device)
