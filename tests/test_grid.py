"""The sampling rule by itself, against PyTorch's answer for a map that is 1 at one pixel."""

import dataclasses
from fractions import Fraction

import pytest
import torch

from fcn_fast import BilinearGrid

from .ops.support import SAMPLINGS, random_samplings


def weights(grid, axis):
    """What each output pixel takes from each coarse pixel, in fractions, as the docstring of BilinearGrid has it."""
    last = grid.in_size[axis] - 1
    rows = []
    for dst in range(grid.size[axis]):
        index, remainder = divmod(grid.step[axis] * dst + grid.origin[axis], grid.unit[axis])
        weight = Fraction(remainder, grid.unit[axis])
        row = [Fraction(0)] * (last + 1)
        for tap, share in ((index, 1 - weight), (index + 1, weight)):
            if grid.border == "clamp":
                row[min(max(tap, 0), last)] += share
            elif 0 <= tap <= last:
                row[tap] += share
        rows.append(row)
    return torch.tensor([[float(share) for share in row] for row in rows], dtype=torch.float64)


def assert_samples_as_pytorch(sampling):
    x = torch.rand(1, 1, *sampling.in_size, dtype=torch.float64)
    grid = sampling.grid
    expected = sampling.torch(x)
    assert grid.size == expected.shape[-2:]
    # 1e-9: a scale factor's fraction is as near to it as a denominator of 2**24 comes.
    torch.testing.assert_close(weights(grid, 0) @ x @ weights(grid, 1).T, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_samples_as_pytorch(sampling):
    assert_samples_as_pytorch(sampling)


def test_random_grids_sample_as_pytorch(seed):
    for sampling in random_samplings(seed, 60):
        assert_samples_as_pytorch(sampling)


@pytest.mark.parametrize(
    ("grid", "step", "origin", "unit"),
    [
        (BilinearGrid.interpolate((63, 64), (504, 500)), (126, 128), (63 - 504, 64 - 500), (1008, 1000)),
        (BilinearGrid.interpolate((5, 9), (17, 1), align_corners=True), (4, 0), (0, 0), (16, 1)),
        (BilinearGrid.interpolate((6, 6), scale_factor=8), (2, 2), (-7, -7), (16, 16)),
        (BilinearGrid.interpolate((6, 6), scale_factor=(2.5, 0.5)), (4, 4), (-3, 1), (10, 2)),
        (BilinearGrid.deconvolution((16, 16), 2), (2, 2), (-3, -3), (4, 4)),
        (BilinearGrid.deconvolution((70, 70), 8, crop=31, size=500), (2, 2), (47, 47), (16, 16)),
        (BilinearGrid.deconvolution((16, 16), 32, kernel=63, crop=(18, 0)), (2, 2), (-26, -62), (64, 64)),
    ],
)
def test_the_rule_in_whole_numbers(grid, step, origin, unit):
    assert (grid.step, grid.origin, grid.unit) == (step, origin, unit)
    assert all(type(number) is int for number in grid.numbers())


def test_coordinates_are_exact_at_every_size():
    """Where float32 coordinates are off by 2.6e-5, and at sizes that no tensor has."""
    grid = BilinearGrid.interpolate((125, 250), (1000, 2000))
    assert Fraction(grid.step[1] * 1999 + grid.origin[1], grid.unit[1]) == Fraction(3999, 2) * Fraction(
        1, 8
    ) - Fraction(1, 2)
    grid = BilinearGrid.interpolate((1 << 20, 3), (1 << 28, 3))
    assert Fraction(grid.step[0], grid.unit[0]) == Fraction(1, 256)


@pytest.mark.parametrize("stride", range(1, 34))
def test_default_kernels(stride):
    kernel = 2 * stride - stride % 2
    grid = BilinearGrid.deconvolution((3, 4), stride)
    assert grid == BilinearGrid.deconvolution((3, 4), stride, kernel=kernel)
    assert grid.size == (2 * stride + kernel, 3 * stride + kernel)


@pytest.mark.parametrize(
    ("steps", "size"),
    [  # (coarse map, stride, kernel, crop, size): the published nets at 500 px
        ([((16, 16), 32, 64, 19, 500)], 500),
        ([((16, 16), 2, 4, 0, None), ((34, 34), 16, 32, 27, 500)], 500),
        ([((16, 16), 2, 4, 0, None), ((34, 34), 2, 4, 0, None), ((70, 70), 8, 16, 31, 500)], 500),
        ([((16, 16), 32, 63, 18, 500)], 500),
    ],
    ids=["32s", "16s", "8s", "alexnet"],
)
def test_the_published_geometry(steps, size):
    grids = [BilinearGrid.deconvolution(i, stride, kernel=k, crop=crop, size=n) for i, stride, k, crop, n in steps]
    for coarse, fine in zip(grids, grids[1:], strict=False):
        assert coarse.size == fine.in_size
    assert grids[-1].size == (size, size)


def test_deep_scores_fade_at_the_zero_border():
    """FCN-8s: along an axis the crop leaves a weight of about 0.609 at pixel 0, and 1 from 25 px on."""
    two = weights(BilinearGrid.deconvolution((16, 16), 2), 0).sum(1)
    four = weights(BilinearGrid.deconvolution((34, 34), 2), 0) @ two
    all_the_way = weights(BilinearGrid.deconvolution((70, 70), 8, crop=31, size=500), 0) @ four
    assert all_the_way[0].item() == pytest.approx(0.609, abs=5e-4)
    assert all_the_way[25] == 1 and all_the_way[24] < 1


def test_is_a_frozen_value():
    grid = BilinearGrid.interpolate((3, 4), scale_factor=2)
    same = BilinearGrid.interpolate((3, 4), scale_factor=(2, 2.0))
    assert grid == same and hash(grid) == hash(same)
    assert grid != BilinearGrid.interpolate((3, 4), scale_factor=2, align_corners=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.size = (1, 1)


@pytest.mark.parametrize("sampling", SAMPLINGS[:3] + SAMPLINGS[-3:], ids=str)
def test_numbers_bring_it_back(sampling):
    grid = sampling.grid
    assert BilinearGrid.from_numbers(grid.in_size, grid.numbers()) == grid


@pytest.mark.parametrize("size", [7, [7, 7], (7, 7), torch.Size([7, 7])])
def test_an_int_stands_for_both(size):
    assert BilinearGrid.interpolate((3, 4), size).size == (7, 7)


GOOD = {"in_size": (3, 4), "size": (6, 8), "step": (2, 2), "origin": (-1, -1), "unit": (4, 4), "border": "clamp"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"border": "reflect"}, "border: expected 'clamp' or 'zero', got 'reflect'"),
        ({"in_size": (0, 4)}, "in_size: expected at least 1x1, got 0x4"),
        ({"size": (6, 0)}, "size: expected at least 1x1, got 6x0"),
        ({"step": (-1, 2)}, "step: expected .*, got .-1, 2"),
        ({"unit": (4, 0)}, "unit: expected .*, got .4, 0"),
        ({"origin": (1 << 62, 0)}, r"step, origin, unit: expected .* below 2\*\*62"),
        ({"step": (2, 1 << 60)}, r"step, origin, unit: expected .* below 2\*\*62"),
    ],
)
def test_bad_numbers(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        BilinearGrid(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ([(3, 4), 0], {}, "stride: expected an int >= 1, got 0"),
        ([(3, 4), 2.0], {}, "stride: expected an int >= 1, got 2.0"),
        ([(3, 4), 2], {"kernel": 5}, "kernel: expected 3 or 4 .* stride 2, got 5"),
        ([(3, 4), 32], {"kernel": 62}, "kernel: expected 63 or 64 .* stride 32, got 62"),
        ([(3, 4), 2], {"kernel": 4.0}, "kernel: expected .*, got 4.0"),
        ([(3, 4), 2], {"crop": -1}, "crop, size: expected .*8x10 output"),
        ([(3, 4), 2], {"crop": 2, "size": 7}, "crop, size: expected .*8x10 output, got 7x7 at 2,2"),
        ([(3, 4), 2], {"crop": (8, 0)}, "size: expected at least 1x1, got 0x10"),
        ([(3, 4), 2], {"crop": 0.5}, "crop: expected an int or two ints, got 0.5"),
        ([3.5, 2], {}, "in_size: expected an int or two ints, got 3.5"),
        ([(3, 4, 5), 2], {}, "in_size: expected an int or two ints"),
    ],
)
def test_bad_deconvolutions(args, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        BilinearGrid.deconvolution(*args, **options)
