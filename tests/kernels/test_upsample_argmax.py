import pytest
import torch
import torch.nn.functional as F

from fcn_fast import kernels, reference

from ..ops.support import deconvolution, interpolation, laid_out, randn
from .support import DTYPES_AND_LAYOUTS, FEW, GRIDS, ZERO, by_name

pytestmark = pytest.mark.usefixtures("deterministic")
INF, NAN = float("inf"), float("nan")


def smooth(*shape, dtype=torch.float32, device="cpu", layout="contiguous"):
    """Scores whose classes form regions, so that pruning leaves one class in most cells."""
    coarse = torch.randn(*shape[:2], *(max(n // 8, 1) for n in shape[2:]))
    scores = F.interpolate(coarse, shape[2:], mode="bilinear") * 8 + 0.1 * torch.randn(shape)
    return laid_out(scores.to(device, dtype), layout)


def compare(logits, grid, dtype=torch.uint8):
    """Each label's score in float64 is the largest, but for the rounding of float32."""
    labels = kernels.upsample_argmax(logits, grid.numbers(), dtype)
    assert labels.dtype == dtype and labels.is_contiguous()
    scores = reference.bilinear_upsample(logits.double().cpu(), grid.numbers())
    chosen = scores.gather(1, labels.cpu().long().unsqueeze(1)).squeeze(1)
    eps = torch.finfo(torch.promote_types(logits.dtype, torch.float32)).eps
    assert (scores.amax(1) - chosen).max().item() <= 8 * eps * logits.abs().max().item()
    assert (labels.cpu() == scores.argmax(1)).double().mean() > 0.9


@pytest.mark.parametrize("make", [randn, smooth])
@pytest.mark.parametrize("grid", **by_name(GRIDS))
def test_values(grid, make, device):
    compare(make(1, 4, *grid.in_size, device=device), grid)


@pytest.mark.parametrize(("dtype", "layout"), DTYPES_AND_LAYOUTS)
@pytest.mark.parametrize("classes", [1, 6])
def test_dtypes_and_layouts(classes, dtype, layout, device):
    for make in (randn, smooth):
        compare(make(2, classes, *ZERO.in_size, dtype=dtype, device=device, layout=layout), ZERO)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_result_dtypes(dtype, device):
    classes = 256 if dtype == torch.uint8 else 300
    compare(randn(1, classes, 2, 3, device=device), interpolation((2, 3), scale_factor=2).grid, dtype)


@pytest.mark.parametrize(
    "sampling", [interpolation((5, 6), scale_factor=4), deconvolution((3, 2), 8, crop=(5, 3))], ids=str
)
@pytest.mark.parametrize("values", [1, 3])
def test_ties_go_to_the_lowest_class(values, sampling, device):
    logits = torch.randint(-values, values + 1, (2, 5, *sampling.in_size)).float()
    actual = kernels.upsample_argmax(logits.to(device), sampling.grid.numbers(), torch.int64)
    assert torch.equal(actual.cpu(), sampling.torch(logits.double()).argmax(1))


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("grid", **by_name(FEW))
def test_not_finite(grid, value, device):
    logits = randn(1, 4, *grid.in_size)
    logits[torch.rand(logits.shape) < 0.2] = value
    grid = grid.numbers()
    actual = kernels.upsample_argmax(logits.to(device), grid, torch.int64)
    assert (actual.cpu() == reference.upsample_argmax(logits, grid, torch.int64)).double().mean() > 0.99


def test_agrees_with_bilinear_upsample(device):
    """To the last bit: near ties fall to the same class. On a GPU to rounding, which is another in another kernel."""
    sampling = interpolation((6, 7), size=(23, 31))
    logits = randn(1, 1, 6, 7, device=device) + 1e-7 * randn(1, 6, 6, 7, device=device)
    grid = sampling.grid.numbers()
    scores, labels = kernels.bilinear_upsample(logits, grid), kernels.upsample_argmax(logits, grid, torch.int64)
    chosen = scores.gather(1, labels.unsqueeze(1)).squeeze(1)
    assert (scores.amax(1) - chosen).max() <= 4 * torch.finfo(torch.float32).eps * logits.abs().max()
    assert labels.is_cuda or torch.equal(labels, scores.argmax(1))


def test_empty_batch(device):
    labels = kernels.upsample_argmax(torch.empty(0, 2, *ZERO.in_size, device=device), ZERO.numbers(), torch.uint8)
    assert labels.shape == (0, *ZERO.size)
