"""skip_fuse, as far as it differs from the other operations."""

import pytest
import torch

from fcn_fast import BilinearGrid, ops

from .support import DTYPES, LAYOUTS, ZERO, has_layout, randn
from .table import LINEAR

pytestmark = pytest.mark.usefixtures("deterministic")
FUSE = LINEAR[1]


def skip_for(sampling, crop, margin=(0, 0), batch=2, channels=3, **options):
    height, width = (crop[i] + sampling.grid.size[i] + margin[i] for i in (0, 1))
    return randn(batch, channels, height, width, **options)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("skip_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_both(layout, skip_layout, dtype, implementation, device):
    """The first one's is the output's."""
    options = {"layout": layout, "skip_layout": skip_layout, "crop": (3, 1), "margin": (0, 2)}
    for channels in (1, 37):
        case = FUSE(ZERO, channels=channels, dtype=dtype, device=device, **options)
        for result in case.check(skip_layout)[:2]:
            assert has_layout(result, layout)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("crop", [0, 2, (1, 3)])
def test_without_a_grid_coarse_is_resized_to_what_is_left(crop, align_corners, implementation, device):
    top, left = crop if isinstance(crop, tuple) else (crop, crop)
    coarse, skip = randn(2, 3, 4, 5, device=device), randn(2, 3, 11, 14, device=device)
    resized = ops.bilinear_upsample(coarse, (11 - top, 14 - left), align_corners=align_corners)
    actual = ops.skip_fuse(coarse, skip, crop=crop, align_corners=align_corners)
    torch.testing.assert_close(actual, resized + skip[:, :, top:, left:], rtol=0, atol=1e-6)


def test_fcn16s_at_500(device):
    """500 px: fc gives 16, pool4 gives 44, their fusion is 34 wide."""
    score_fr, score_pool4 = randn(1, 21, 16, 16, device=device), randn(1, 21, 44, 44, device=device)
    fused = ops.skip_fuse(score_fr, score_pool4, grid=BilinearGrid.deconvolution((16, 16), 2), crop=5)
    assert fused.shape == (1, 21, 34, 34)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_gradient_of_one_input(needed, device):
    inputs = [randn(2, 3, *ZERO.in_size, device=device), skip_for(ZERO, (1, 1), device=device)]
    both = [x.clone().requires_grad_() for x in inputs]
    one = [x.clone().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
    for pair in (both, one):
        ops.skip_fuse(*pair, grid=ZERO.grid, crop=1).sum().backward()
    for x, y, need in zip(one, both, needed, strict=True):
        assert torch.equal(x.grad, y.grad) if need else x.grad is None


def test_the_skips_gradient_is_zero_outside_the_window(device):
    coarse = randn(1, 2, *ZERO.in_size, device=device)
    skip = skip_for(ZERO, (3, 1), (2, 4), 1, 2, device=device).requires_grad_()
    ops.skip_fuse(coarse, skip, crop=(3, 1), grid=ZERO.grid).sum().backward()
    inside = torch.zeros_like(skip)
    inside[:, :, 3 : 3 + ZERO.grid.size[0], 1 : 1 + ZERO.grid.size[1]] = 1
    assert torch.equal(skip.grad, inside)
