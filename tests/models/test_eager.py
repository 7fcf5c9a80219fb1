"""What fcn_fast is compared with computes the same: eager PyTorch against fcn_fast.ops in float64."""

import pytest
import torch

from fcn_fast import BilinearGrid, eager, ops

GRIDS = {
    "deconvolution 4/2": BilinearGrid.deconvolution((5, 7), 2),
    "deconvolution 16/8, cropped": BilinearGrid.deconvolution((5, 7), 8, crop=(3, 9), size=(30, 40)),
    "deconvolution 63/32": BilinearGrid.deconvolution((5, 7), 32, kernel=63, crop=18),
    "deconvolution 5/3": BilinearGrid.deconvolution((5, 7), 3, crop=1),
    "deconvolution 6/3": BilinearGrid.deconvolution((5, 7), 3, kernel=6, crop=1),
    "interpolate": BilinearGrid.interpolate((5, 7), (11, 30)),
    "interpolate by 8, cropped": BilinearGrid((5, 7), (33, 56), (2, 2), (-7, -7), (16, 16), "clamp"),
    "interpolate by 1, cropped": BilinearGrid((5, 7), (5, 3), (2, 2), (0, 0), (2, 2), "clamp"),
    "interpolate, aligned": BilinearGrid.interpolate((5, 7), (11, 30), align_corners=True),
}


def random(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_grids(grid):
    x, target = random(2, 4, 5, 7), torch.randint(0, 4, (2, *grid.size))
    torch.testing.assert_close(eager.bilinear_upsample(x, grid=grid), ops.bilinear_upsample(x, grid=grid))
    assert torch.equal(eager.upsample_argmax(x, grid=grid), ops.upsample_argmax(x, grid=grid))
    for reduction in ("none", "mean", "sum", "full", "batch"):
        expected = ops.upsample_softmax_loss(x, target, grid=grid, reduction=reduction)
        torch.testing.assert_close(eager.upsample_softmax_loss(x, target, grid=grid, reduction=reduction), expected)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_skip_fuse(grid):
    coarse, skip = random(2, 4, 5, 7), random(2, 4, grid.size[0] + 5, grid.size[1] + 4)
    expected = ops.skip_fuse(coarse, skip, crop=(3, 4), grid=grid)
    torch.testing.assert_close(eager.skip_fuse(coarse, skip, crop=(3, 4), grid=grid), expected)


def test_without_a_grid():
    x, skip, target = random(2, 4, 5, 7), random(2, 4, 12, 15), torch.randint(0, 4, (2, 12, 15))
    weight = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    pairs = [
        (o.bilinear_upsample(x, (12, 15)), o.skip_fuse(x, skip), o.upsample_softmax_loss(x, target, weight))
        for o in (eager, ops)
    ]
    torch.testing.assert_close(pairs[0], pairs[1])


def test_a_grid_without_an_operation_is_named():
    for grid in (
        BilinearGrid.interpolate((5, 7), scale_factor=1.3),
        BilinearGrid((5, 7), (33, 57), (2, 2), (-7, -7), (16, 16), "clamp"),
        BilinearGrid((5, 7), (3, 3), (2, 2), (-5, 4), (4, 4), "zero"),
        BilinearGrid((5, 7), (3, 3), (3, 3), (0, 0), (4, 4), "zero"),
    ):
        with pytest.raises(ValueError, match="grid: expected one of F.interpolate or of conv_transpose2d"):
            eager.bilinear_upsample(random(1, 1, 5, 7), grid=grid)
