"""What both losses promise of weights, reductions and labels."""

import pytest
import torch

from fcn_fast import ops

from .support import (
    CLAMPED,
    DTYPES,
    LOSS_OPTIONS,
    REDUCTIONS,
    SAMPLINGS,
    ZERO,
    assert_near,
    assert_same,
    exactly,
    interpolation,
    labels,
    randn,
    torch_loss,
    with_grad,
)
from .table import LOSSES

pytestmark = pytest.mark.usefixtures("deterministic")
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
OF_LOSSES = pytest.mark.parametrize("op", LOSSES, ids=str)
OF_GRIDS = pytest.mark.parametrize(
    ("op", "sampling"), [(op, s) for op in LOSSES for s in ((CLAMPED, ZERO) if op.upsamples else (CLAMPED,))], ids=str
)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("given", LOSS_OPTIONS)
@OF_GRIDS
def test_options(op, sampling, given, reduction, dtype, implementation, device):
    op(sampling, dtype=dtype, scale=3, device=device, given=given, reduction=reduction).check()


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("classes", [2, 3, 21, 150, 300])
@OF_LOSSES
def test_class_counts(op, classes, layout, dtype, implementation, device):
    for scale, sampling in ((1, SAMPLINGS[0]), (20, CLAMPED), (5, ZERO)):
        for given in ("ignore_index=-100", "all"):
            op(sampling, channels=classes, layout=layout, dtype=dtype, scale=scale, device=device, given=given).check()


@pytest.mark.parametrize("label_dtype", LABELS)
@OF_LOSSES
def test_target_dtypes(op, label_dtype, implementation, device):
    case = op(ZERO, channels=21, label_dtype=label_dtype, device=device)
    loss = case.check()[0]
    case.others[0] = case.others[0].long()
    assert_same(loss, case.run())


@pytest.mark.parametrize("strided", [lambda t: t.mT.contiguous().mT, lambda t: t[:1].expand_as(t), lambda t: t.flip(0)])
@OF_LOSSES
def test_target_strides(op, strided, implementation, device):
    case = op(CLAMPED, reduction="none", device=device, given="all")
    case.others[0], case.others[2] = strided(case.others[0]), strided(case.others[2])
    case.check()


@pytest.mark.parametrize("ignore_index", [-100, 256 + 3, -(1 << 63), (1 << 63) - 1])
@OF_LOSSES
def test_labels_are_compared_as_int64(op, ignore_index, implementation, device):
    """-100 is 156 and 259 is 3 in uint8, but neither ignores those labels."""
    target = torch.tensor([156, 3, 0, 199], dtype=torch.uint8, device=device).view(1, 1, 4).expand(2, 6, 4)
    logits = randn(2, 200, 6, 4, device=device)
    for dtype in (torch.uint8, torch.int16, torch.int64):
        loss = getattr(ops, op.name)(logits, target.to(dtype), ignore_index=ignore_index, reduction="none")
        assert_near(loss, torch_loss(logits.double(), target, reduction="none").cpu())


@pytest.mark.parametrize(
    ("ignore_index", "label_dtype"),
    [(0, torch.uint8), (4, torch.uint8), (255, torch.uint8), (-1, torch.int16), (-(1 << 15), torch.int16)]
    + [(i, torch.int16) for i in (32767, 2)]
    + [(i, torch.int32) for i in (-100, -(1 << 31), (1 << 31) - 1, 2)]
    + [(i, torch.int64) for i in (-100, -(1 << 63), (1 << 63) - 1, (1 << 32) + 3, 2)],
)
@OF_LOSSES
def test_every_boundary_can_be_ignored(op, ignore_index, label_dtype, implementation, device):
    """Inside the classes and at the ends of every dtype; the pixels count as if they were not there."""
    loss, shape = getattr(ops, op.name), (2, 9, 8)
    valid = torch.tensor([c for c in range(5) if c != ignore_index])[torch.randint(4, shape)]
    ignored = torch.rand(shape) < 0.3
    target = torch.where(ignored, ignore_index, valid).to(device, label_dtype)
    logits = randn(2, 5, *shape[1:], device=device)
    expected = torch_loss(logits.double().cpu(), valid, reduction="none").masked_fill(ignored, 0)
    assert_near(loss(logits, target, ignore_index=ignore_index, reduction="none"), expected)
    assert_near(loss(logits, target, ignore_index=ignore_index), expected.sum() / (~ignored).sum())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@OF_LOSSES
def test_all_ignored(op, dtype, reduction, implementation, device):
    for given in ("plain", "all"):
        case = op(ZERO, dtype=dtype, device=device, reduction=reduction, given=given)
        case.others[0].fill_(255)
        for result in case.with_grad(case.grad_output()):
            assert not result.any()


@pytest.mark.parametrize("option", ["weight", "pixel_weight"])
@OF_LOSSES
def test_a_mean_over_no_weight_is_zero(op, option, implementation, device):
    case = op(CLAMPED, device=device, given=option)
    case.others[1 if option == "weight" else 2].zero_()
    for result in case.with_grad(None):
        assert not result.any()


@pytest.mark.isa
@pytest.mark.parametrize("label", [5, -1, 1 << 40, -(1 << 63)])
@OF_LOSSES
def test_bad_labels_unchecked_are_nan(op, label, implementation, device):
    """So are the gradients that they reach, and no others."""
    sampling = interpolation((6, 7), size=(48, 56))
    logits = randn(2, 5, *((6, 7) if op.upsamples else (48, 56)), device=device)
    target = labels(2, 48, 56, classes=5, device=device)
    target[1, 26, 30] = label
    bad = target == label
    reached = bad.unsqueeze(1).expand(2, 5, 48, 56).cpu()
    if op.upsamples:
        reached = exactly(sampling.torch, [logits], reached)[1] > 0
    for reduction in REDUCTIONS:
        fast = lambda x: getattr(ops, op.name)(x, target, reduction=reduction, check_labels=False)  # noqa: B023, E731
        loss, grad = with_grad(fast, [logits], torch.ones_like(fast(logits)))
        assert torch.equal(loss.isnan(), bad if reduction == "none" else torch.tensor(True, device=device))
        assert torch.equal(grad.isnan().cpu(), reached)


@OF_LOSSES
def test_half_gradients_survive_a_loss_scaler(op, device):
    """Their pixels are smaller than float16 holds until the scale is applied."""
    sampling = interpolation((40, 50), size=(320, 400))
    case = op(sampling, batch=1, channels=4, dtype=torch.float16, device=device)
    scale = torch.tensor(2.0**16 if op.name == "softmax_loss" else 2.0**12)
    exact = exactly(case.of_inputs(case.plain), case.inputs, scale)[1]
    assert_near(case.with_grad(scale.to(device))[1], exact)
