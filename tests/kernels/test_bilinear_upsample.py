import math
from random import Random

import pytest
import torch

from fcn_fast import BilinearGrid, kernels, reference
from fcn_fast.reference import memory_format

from ..ops.support import randn
from .support import CLAMPED, DTYPES_AND_LAYOUTS, FEW, GRIDS, ZERO, assert_close, by_name, exactly, file_of, plan_anew

pytestmark = pytest.mark.usefixtures("deterministic")
INF, NAN = float("inf"), float("nan")


def compare(grid, dtype=torch.float32, layout="contiguous", device="cpu", channels=2):
    in_size, numbers = list(grid.in_size), grid.numbers()
    x = randn(1, channels, *in_size, dtype=dtype, layout=layout, device=device)
    g = randn(1, channels, *grid.size, dtype=dtype, layout=layout, device=device)
    for name, arguments in (("bilinear_upsample", (x, numbers)), ("bilinear_upsample_backward", (g, in_size, numbers))):
        actual, plain = getattr(kernels, name)(*arguments), getattr(reference, name)(*arguments)
        assert actual.dtype == dtype and memory_format(actual) == memory_format(plain)
        assert_close(actual, exactly(getattr(reference, name), *arguments), plain, least=1)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("grid", **by_name(GRIDS))
def test_values(grid, layout, device):
    compare(grid, layout=layout, device=device)


@pytest.mark.parametrize(("dtype", "layout"), DTYPES_AND_LAYOUTS)
def test_dtypes_and_layouts(dtype, layout, device):
    compare(ZERO, dtype, layout, device)


@pytest.mark.parametrize("channels", [16, 19])
def test_channels_side_by_side(channels, device):
    compare(CLAMPED, torch.float32, "channels_last", device, channels)


@pytest.mark.parametrize("grid", **by_name(FEW))
def test_programs_that_own_several_rows(grid, monkeypatch, device):
    compare(grid, device=device)
    plan_anew(monkeypatch, "bilinear_upsample")
    monkeypatch.setattr(file_of("bilinear_upsample"), "PROGRAMS", 1)
    compare(grid, device=device)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("grid", **by_name(FEW))
def test_programs_that_own_few_columns(grid, layout, monkeypatch, device):
    plan_anew(monkeypatch, "bilinear_upsample")
    monkeypatch.setattr(file_of("bilinear_upsample"), "WINDOWS", 1)
    compare(grid, layout=layout, device=device, channels=5)


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 16, 32])
@pytest.mark.parametrize("zero", [False, True])
def test_windows_begin_at_multiples_of_their_alignment(factor, zero, seed):
    """The interpreter takes no notice of a wrong hint, a GPU faults or reads other numbers."""
    from fcn_fast.kernels import grid as rule

    random, aligned = Random(f"{seed} {factor} {zero}"), set()
    for _ in range(200):
        size, crop = random.randint(1, 40), random.choice([0, factor // 2, random.randint(0, factor)])
        if zero:
            end = factor * (size - 1) + 2 * factor - crop
            window = {"kernel": 2 * factor, "crop": crop, "size": (random.randint(1, end),) * 2}
            sampled = BilinearGrid.deconvolution((size, size), factor, **window)
        else:
            sampled = BilinearGrid.interpolate(
                (size, size), (random.choice([size * factor, random.randint(1, 99)]),) * 2
            )
        _, axis, constants = rule.axes(sampled.in_size, sampled.numbers())
        cells = [(d * sampled.step[1] + sampled.origin[1]) // sampled.unit[1] for d in range(sampled.size[1])]
        cells = [min(max(cell, -1 - zero), size - 1 + zero) for cell in cells]
        begins = [i for i in range(1, len(cells)) if cells[i] != cells[i - 1]]
        found = rule.alignment(axis)
        assert constants["ZERO"] == zero and all(i % found == 0 for i in (*begins, sampled.size[1]))
        aligned.add(found)
    assert math.gcd(factor // 2, 8) in aligned


def test_whole_numbers_in_64_bits(monkeypatch, device):
    from fcn_fast.kernels import grid

    plan_anew(monkeypatch, "bilinear_upsample")
    monkeypatch.setattr(grid, "index_type", lambda largest: grid.tl.int64)
    compare(ZERO, device=device)


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("grid", **by_name(FEW))
def test_a_tap_of_weight_zero_is_skipped(grid, value, device):
    in_size, numbers = list(grid.in_size), grid.numbers()
    x, g = randn(1, 1, *in_size, device=device), randn(1, 1, *grid.size, device=device)
    x[..., ::2, ::3] = g[..., ::4, ::5] = value
    for name, arguments in (("bilinear_upsample", (x, numbers)), ("bilinear_upsample_backward", (g, in_size, numbers))):
        plain = getattr(reference, name)(*arguments)
        assert_close(getattr(kernels, name)(*arguments), exactly(getattr(reference, name), *arguments), plain, least=1)


def test_empty_batch(device):
    x, numbers = torch.empty(0, 2, *ZERO.in_size, device=device), ZERO.numbers()
    assert kernels.bilinear_upsample(x, numbers).shape == (0, 2, *ZERO.size)
    g = torch.empty(0, 2, *ZERO.size, device=device)
    assert kernels.bilinear_upsample_backward(g, list(ZERO.in_size), numbers).shape == x.shape
