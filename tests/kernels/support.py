"""The grids to try, and how near a kernel comes to the reference in float64."""

import sys

import torch

from fcn_fast import BilinearGrid, kernels

from ..ops.support import DTYPES, LAYOUTS, deconvolution, interpolation

DTYPES_AND_LAYOUTS = [*((dtype, LAYOUTS[0]) for dtype in DTYPES), *((torch.float32, layout) for layout in LAYOUTS[1:])]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}

# Every kind, as small as shows it: Triton's interpreter takes seconds for what a GPU does in microseconds.
GRIDS = {
    str(sampling): sampling.grid
    for sampling in (
        interpolation((4, 5), size=(16, 20)),
        interpolation((7, 9), size=(20, 31)),
        interpolation((8, 9), size=(5, 6)),
        interpolation((6, 8), size=(6, 8)),
        interpolation((5, 1), size=(3, 8)),
        interpolation((1, 1), size=(7, 5)),
        interpolation((1, 1), size=(1, 1)),
        interpolation((5, 7), size=(17, 9), align_corners=True),
        interpolation((9, 5), size=(4, 3), align_corners=True),
        interpolation((4, 4), size=(1, 6), align_corners=True),
        interpolation((5, 4), scale_factor=2.5),
        interpolation((4, 6), scale_factor=(1.3, 3.7)),
        interpolation((7, 6), scale_factor=0.6),
        deconvolution((5, 7), 2, kernel=4),
        deconvolution((8, 8), 2, kernel=4, crop=5, size=(9, 8)),
        deconvolution((3, 3), 8, kernel=16, crop=(5, 3), size=(17, 20)),
        deconvolution((2, 2), 16, kernel=31, crop=9, size=(24, 5)),
        deconvolution((6, 5), 3, kernel=5, crop=(1, 2)),
        deconvolution((1, 1), 4),
        deconvolution((4, 3), 1),
    )
}
GRIDS["far outside"] = BilinearGrid((2, 2), (7, 6), (1, 1), (-5, -4), (2, 2), "zero")
CLAMPED, SAME, ZERO = (list(GRIDS.values())[i] for i in (1, 3, 17))
FEW = {"clamped": CLAMPED, "same": SAME, "zero": ZERO}
# Of the same kinds, with so few cells that one warp does an image's, in the fused loss.
ONE_WARP = interpolation((4, 5), size=(11, 14)).grid
ONE_WARP_ZERO = deconvolution((3, 2), 3, kernel=5, crop=(1, 2)).grid


def by_name(grids):
    """The arguments of parametrize."""
    return {"argvalues": list(grids.values()), "ids": list(grids)}


def exactly(function, *arguments):
    """The reference in float64, on the CPU."""
    return function(*(exact(argument) for argument in arguments))


def exact(argument):
    if not isinstance(argument, torch.Tensor):
        return argument
    return argument.double().cpu() if argument.is_floating_point() else argument.cpu()


def assert_close(actual, exact, plain, least=0, times=2):
    """NaN and infinity stand where they should, and the rest is near to exact.

    Near is a few roundings of the largest (or of least) or some times the error of plain, the reference at the same
    dtype.
    """
    assert actual.shape == exact.shape
    dtype, actual, plain = actual.dtype, actual.detach().double().cpu(), plain.double().cpu()
    finite = exact.isfinite()
    assert torch.equal(actual.nan_to_num(0, 1, -1)[~finite], exact.nan_to_num(0, 1, -1)[~finite])
    assert torch.equal(actual.isnan(), exact.isnan()) and torch.equal(actual.isfinite(), finite)
    if not finite.any():
        return
    tolerance = TOLERANCE.get(dtype, torch.finfo(dtype).eps / 2)
    allowed = tolerance * max(exact[finite].abs().max().item(), least)
    difference = (plain - exact)[finite & plain.isfinite()].abs()
    if difference.numel():
        allowed = max(allowed, times * difference.max().item())
    error = (actual - exact)[finite].abs().max().item()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


def assert_same(actual, expected, exact, plain):
    """The same bits of two compilations of a kernel; a GPU's may round otherwise, but stay as near to exact."""
    assert_close(actual, exact, plain, least=1)
    assert actual.is_cuda or torch.equal(actual.nan_to_num(), expected.nan_to_num())


def plan_anew(monkeypatch, operation):
    """For a test that changes what plans are made with: none that is made comes from a cache or stays in it."""
    module = file_of(operation)
    for name in ("_plan", "_sampling", "_gathering"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)


def file_of(operator):
    """The module of an operator's kernels; in fcn_fast.kernels the function hides it."""
    getattr(kernels, operator)  # imports it
    return sys.modules[f"fcn_fast.kernels.{operator}"]
