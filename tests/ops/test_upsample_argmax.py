"""upsample_argmax, as far as it differs from the other operations: smooth scores, ties, what is not finite."""

import pytest
import torch
import torch.nn.functional as F

from fcn_fast import BilinearGrid, ops

from .support import DTYPES, LAYOUTS, SAMPLINGS, ZERO, interpolation, laid_out, randn, random_samplings, same_bits
from .table import assert_labels_near

pytestmark = pytest.mark.usefixtures("deterministic")
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def smooth(*shape, **options):
    """Scores whose classes form regions, as a network's do."""
    coarse = torch.randn(*shape[:2], *(max(n // 16, 1) for n in shape[2:]))
    scores = F.interpolate(coarse, shape[2:], mode="bilinear") * 8 + 0.5 * torch.randn(shape)
    return laid_out(scores.to(options.get("device", "cpu"), options.get("dtype")), options.get("layout", "contiguous"))


def compare(sampling, logits, **options):
    actual = ops.upsample_argmax(logits, **sampling.options, **options)
    assert_labels_near(actual, sampling.torch(logits.double().cpu()), logits)
    return actual


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_smooth_scores(sampling, dtype, implementation, device):
    compare(sampling, smooth(2, 5, *sampling.in_size, dtype=dtype, device=device))


@pytest.mark.isa
def test_smooth_scores_on_random_grids(implementation, device, seed):
    for sampling in random_samplings(seed, 25):
        compare(sampling, smooth(1, 4, *sampling.in_size, device=device))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [1, 2, 21, 150])
@pytest.mark.parametrize("sampling", [interpolation((20, 33), size=(160, 264)), ZERO], ids=str)
def test_class_counts(sampling, classes, layout, dtype, implementation, device):
    for make in (randn, smooth):
        labels = compare(sampling, make(1, classes, *sampling.in_size, dtype=dtype, device=device, layout=layout))
        assert labels.dtype == torch.uint8 and labels.is_contiguous()


@pytest.mark.isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_of_smooth_scores(layout, set_num_threads, device):
    logits = smooth(2, 21, 40, 50, device=device, layout=layout)
    assert same_bits(lambda: [ops.upsample_argmax(logits, scale_factor=8)], set_num_threads)


@pytest.mark.isa
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sampling", [interpolation((9, 13), scale_factor=4), SAMPLINGS[17], SAMPLINGS[18]], ids=str)
@pytest.mark.parametrize("values", [1, 2, 4])
def test_ties_go_to_the_lowest_class(values, sampling, layout, implementation, device):
    """Small whole numbers on these grids are exact in float32 too, so every tie is one."""
    logits = torch.randint(-values, values + 1, (2, 7, *sampling.in_size)).float()
    actual = ops.upsample_argmax(laid_out(logits.to(device), layout), **sampling.options)
    assert torch.equal(actual.cpu().long(), sampling.torch(logits.double()).argmax(1))


@pytest.mark.isa
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("make", [randn, smooth])
@pytest.mark.parametrize("sampling", [interpolation((9, 13), scale_factor=4), SAMPLINGS[18]], ids=str)
def test_not_finite(sampling, make, value, implementation, device):
    logits = make(1, 5, *sampling.in_size, dtype=torch.float64)
    for share in (0.02, 0.3):
        mask = torch.rand(logits.shape) < share
        scores = sampling.torch(logits.masked_fill(mask, 0)).masked_fill(sampling.torch(mask.double()) > 0, value)
        actual = ops.upsample_argmax(logits.masked_fill(mask, value).float().to(device), **sampling.options)
        assert (actual.cpu().long() == scores.argmax(1)).double().mean() > 0.999


def test_nan_wins_over_infinity(implementation, device):
    logits = torch.tensor([1.0, float("inf"), float("nan"), float("nan")], device=device).view(1, 4, 1, 1)
    assert torch.equal(ops.upsample_argmax(logits, 3), torch.full((1, 3, 3), 2, dtype=torch.uint8, device=device))


def test_infinities_that_meet_are_nan(implementation, device):
    logits = torch.tensor([[9.0, 9.0], [float("inf"), -float("inf")]], device=device).view(1, 2, 1, 2)
    assert ops.upsample_argmax(logits, (1, 4)).tolist() == [[[1, 1, 1, 0]]]


def test_outside_a_zero_border_class_0_wins(implementation, device):
    """Every score is 0 there, negative ones inside notwithstanding."""
    grid = BilinearGrid((2, 2), (6, 6), (1, 1), (-4, -4), (2, 2), "zero")
    labels = ops.upsample_argmax(
        torch.tensor([-2.0, -1.0], device=device).view(1, 2, 1, 1).expand(1, 2, 2, 2), grid=grid
    )
    assert not labels[:, :3].any() and not labels[:, :, :3].any() and labels[0, 4, 4] == 1


@pytest.mark.isa
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("classes", [21, 128, 256, 257, 300])
def test_result_dtypes(classes, dtype, implementation, device):
    logits = randn(1, classes, 4, 5, device=device)
    if classes > 256 and dtype == torch.uint8:
        with pytest.raises(ValueError, match=rf"^dtype: expected one that holds {classes} classes, got torch.uint8"):
            ops.upsample_argmax(logits, scale_factor=2, dtype=dtype)
        return
    logits[:, -1, 0, 0] = 100
    labels = compare(interpolation((4, 5), scale_factor=2), logits, dtype=dtype)
    assert labels.dtype == dtype and labels[0, 0, 0] == classes - 1
