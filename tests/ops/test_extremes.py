"""The ends of what floating point holds, and of what a map can be; where NaN and infinity go (docs/reliability.md)."""

import math

import pytest
import torch

from fcn_fast import BilinearGrid, ops

from .support import DTYPES, REDUCTIONS, assert_near, deconvolution, interpolation, labels, randn, torch_loss, with_grad
from .table import LINEAR, LOSSES, OPS

pytestmark = pytest.mark.usefixtures("deterministic")
INF, NAN = float("inf"), float("nan")
FOUR = interpolation((5, 6), size=(20, 24))
OF_LOSSES = pytest.mark.parametrize("op", LOSSES, ids=str)


def pixel_of(op, logits, target):
    """The losses and gradient of logits that are the same at every pixel of a map of 2x3."""
    logits = torch.tensor(logits).view(1, -1, 1, 1).expand(1, -1, 2, 3).contiguous()
    target = torch.full((1, 2, 3), target)
    loss = lambda x: getattr(ops, op.name)(x, target, reduction="none")  # noqa: E731
    return with_grad(loss, [logits], torch.ones(1, 2, 3))


@pytest.mark.isa
@pytest.mark.parametrize("factor", [8, 16, 32, 64])
@pytest.mark.parametrize("op", OPS, ids=str)
def test_factors(op, factor, device):
    for in_size in ((2, 3), (1, 1)):
        size = tuple(factor * n for n in in_size)
        for sampling in (interpolation(in_size, size=size), deconvolution(in_size, factor)):
            for options in op.variants:
                op(sampling, batch=1, channels=3, device=device, **options).check()


@pytest.mark.isa
@pytest.mark.parametrize("value", [1e38, -1e38, 3e38])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", LINEAR, ids=str)
def test_the_largest_numbers_do_not_overflow(op, layout, value, implementation, device):
    """A convex combination of finite numbers is finite; with a skip of the other sign the sum is too."""
    case = op(FOUR, layout=layout, device=device)
    case.inputs[0] = torch.full_like(case.inputs[0], value)
    if len(case.inputs) > 1:
        case.inputs[1] = torch.full_like(case.inputs[1], -value / 2)
    torch.testing.assert_close(case.run(), torch.full_like(case.run(), value / (1 if len(case.inputs) == 1 else 2)))


@pytest.mark.isa
@OF_LOSSES
def test_logits_of_1e38(op, implementation, device):
    case = op(FOUR, channels=5, device=device, reduction="none")
    case.inputs[0] = 1e38 * case.inputs[0].sign()
    loss, grad = case.with_grad(torch.ones_like(case.run()))
    exact = case.exactly(case.inputs[0]).cpu()
    torch.testing.assert_close(loss.double().cpu(), exact, rtol=1e-5, atol=1e33)
    assert loss.isfinite().all() and grad.isfinite().all() and grad.abs().max() <= 16


@pytest.mark.isa
@pytest.mark.parametrize("size", [1e-40, 1e-45, 1e-38])
@pytest.mark.parametrize("op", OPS, ids=str)
def test_denormals(op, size, implementation, device):
    """They are numbers like others, as in PyTorch without flush-to-zero."""
    case = op(FOUR, device=device)
    case.inputs[:] = [(x.double() * size).float() for x in case.inputs]
    output = case.run()
    if op.kind == "linear":
        error = (output.double() - case.exactly()).abs().max()
        assert error <= 4 * 1.5e-45 and output.abs().max() > 0
    elif op.kind == "loss":
        assert_near(output, torch.tensor(math.log(5), dtype=torch.float64))
    else:
        scores = ops.bilinear_upsample(case.inputs[0], **FOUR.options)
        chosen = scores.gather(1, output.long().unsqueeze(1)).squeeze(1)
        assert (scores.amax(1) - chosen).max() <= 4 * 1.5e-45
        assert output.is_cuda or torch.equal(output.long(), scores.argmax(1))  # a GPU's kernels may round otherwise


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", LINEAR, ids=str)
def test_half_precision_overflows_to_infinity_and_keeps_denormals(op, dtype, implementation, device):
    largest, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 4
    case = op(FOUR, dtype=dtype, device=device)
    if op.name == "skip_fuse":
        case.inputs[:] = [torch.full_like(x, largest) for x in case.inputs]
        assert (case.run() == INF).all()
    case.inputs[:] = [torch.full_like(case.inputs[0], least), *(torch.zeros_like(x) for x in case.inputs[1:])]
    assert (case.run() == least).all()


@pytest.mark.isa
@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("op", LINEAR, ids=str)
def test_what_is_not_finite_reaches_what_it_has_weight_in(op, value, implementation, device):
    for sampling in (FOUR, interpolation((5, 5), size=(9, 17), align_corners=True), deconvolution((5, 6), 4, crop=1)):
        case = op(sampling, dtype=torch.float64, device=device)
        mask = torch.rand_like(case.inputs[0]) < 0.1
        one = [mask.double(), *(torch.zeros_like(x) for x in case.inputs[1:])]
        reached = case.exactly(*one) > 0
        expected = case.run().masked_fill(reached, value)
        case.inputs[0] = case.inputs[0].masked_fill(mask, value)
        torch.testing.assert_close(case.run(), expected, equal_nan=True)


@pytest.mark.parametrize("op", LINEAR, ids=str)
def test_infinities_that_meet_are_nan(op, implementation, device):
    case = op(interpolation((1, 2), size=(1, 4)), batch=1, channels=1, device=device)
    case.inputs[:] = [torch.tensor([INF, -INF], device=device).view(1, 1, 1, 2), *(0 * x for x in case.inputs[1:])]
    values = case.run().flatten().tolist()
    assert values[0] == INF and math.isnan(values[1]) and math.isnan(values[2]) and values[3] == -INF


@pytest.mark.isa
@pytest.mark.parametrize("logits, label, loss", [
    ([0.0, -INF, 1.0], 0, math.log1p(math.e)),  # a masked class is as if absent
    ([0.0, -INF, 1.0], 1, INF),  # and a label that is masked is impossible
    ([0.0, INF, 1.0], 0, NAN),
    ([0.0, INF, 1.0], 1, NAN),
    ([-INF, -INF, -INF], 0, NAN),
    ([0.0, NAN, 1.0], 0, NAN),
    ([1e38, -1e38, 0.0], 1, 2e38),
    ([-1e38, -1e38, -1e38], 1, math.log(3)),
    ([3.4e38, -3.4e38, 0.0], 0, 0.0),
])  # fmt: skip
@OF_LOSSES
def test_losses_of_pixels_that_are_not_ordinary(op, logits, label, loss, implementation, device):
    """As F.cross_entropy."""
    plain = torch_loss(torch.tensor([logits]), torch.tensor([label]))
    torch.testing.assert_close(plain, torch.tensor(loss), equal_nan=True)
    actual, grad = pixel_of(op, logits, label)
    torch.testing.assert_close(actual, torch.full((1, 2, 3), loss), equal_nan=True)
    logits = torch.tensor(logits).view(1, -1, 1, 1).expand(1, -1, 2, 3)
    target = torch.full((1, 2, 3), label)
    expected = with_grad(lambda x: torch_loss(x, target, reduction="sum"), [logits.contiguous()], None)[1]
    if op.upsamples and not math.isfinite(loss):
        assert torch.equal(grad.isnan().any(1), expected.isnan().any(1))
    else:
        torch.testing.assert_close(grad, expected, equal_nan=True)


@pytest.mark.isa
@pytest.mark.parametrize("value", [INF, NAN])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@OF_LOSSES
def test_a_pixel_that_is_not_finite_spoils_only_what_it_is_part_of(op, reduction, value, implementation, device):
    """Its loss, its gradient and every sum of them; ignored, nothing."""
    case = op(FOUR, device=device, reduction=reduction)
    y, x = 2, 3
    case.inputs[0][0, 1, y, x] = value
    touched = torch.zeros(2, 1, *case.inputs[0].shape[2:], dtype=torch.float64)
    touched[0, 0, y, x] = 1
    touched = (FOUR.torch(touched) if op.upsamples else touched)[:, 0] > 0
    case.others[0][touched] = 1
    fast, logits, target = getattr(ops, op.name), case.inputs[0], case.others[0]
    loss, grad = with_grad(lambda x: fast(x, target, reduction=reduction), [logits], torch.ones_like(case.run()))
    assert torch.equal(loss.isnan().cpu(), touched if reduction == "none" else torch.tensor(True))
    assert not grad[1].isnan().any() or reduction != "none"
    target = target.masked_fill(touched.to(device), 255)
    loss, grad = with_grad(lambda x: fast(x, target, reduction=reduction), [logits], torch.ones_like(case.run()))
    assert loss.isfinite().all() and grad.isfinite().all()


@pytest.mark.isa
@OF_LOSSES
def test_confident_pixels_have_exact_ends(op, implementation, device):
    """A logit far above the others: no loss and no gradient, not a little of either; far below: all of both."""
    loss, grad = pixel_of(op, [1000.0, 0.0, 0.0], 0)
    assert not loss.any() and not grad.any()
    loss, grad = pixel_of(op, [-1000.0, 0.0, 0.0], 0)
    torch.testing.assert_close(loss, torch.full_like(loss, 1000 + math.log(2)))
    torch.testing.assert_close(grad[:, 0], torch.full_like(loss, -1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_maps_of_one_pixel(op, dtype, implementation, device):
    for size in ((1, 1), (1, 7), (7, 1)):
        for options in op.variants:
            case = op(interpolation((1, 1), size=size), batch=3, dtype=dtype, device=device, **options)
            case.check()


@pytest.mark.isa
@pytest.mark.parametrize("border", ["clamp", "zero"])
@pytest.mark.parametrize("op", [op for op in OPS if op.upsamples], ids=str)
def test_grids_that_lie_outside_the_map(op, border, implementation, device):
    """All of it, before and after: the edge, or zeros and no gradient."""
    for origin in (-1000, 1000):
        grid = BilinearGrid((3, 4), (5, 6), (2, 2), (origin, origin), (3, 3), border)
        logits = randn(2, 3, 3, 4, device=device)
        edge = logits[:, :, :1, :1] if origin < 0 else logits[:, :, -1:, -1:]
        expected = (edge * (border == "clamp")).expand(2, 3, 5, 6)
        if op.name == "bilinear_upsample":
            assert torch.equal(ops.bilinear_upsample(logits, grid=grid), expected)
        elif op.name == "skip_fuse":
            assert torch.equal(ops.skip_fuse(logits, torch.ones(2, 3, 5, 6, device=device), grid=grid), expected + 1)
        elif op.name == "upsample_argmax":
            assert torch.equal(ops.upsample_argmax(logits, grid=grid).long(), expected.argmax(1))
        else:
            target = labels(2, 5, 6, classes=3, device=device)
            loss, grad = with_grad(lambda x: ops.upsample_softmax_loss(x, target, grid=grid), [logits], None)  # noqa: B023
            torch.testing.assert_close(loss, ops.softmax_loss(expected, target))
            assert (grad.count_nonzero() > 0) == (border == "clamp")
