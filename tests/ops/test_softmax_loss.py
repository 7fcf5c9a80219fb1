"""softmax_loss, as far as it differs from upsample_softmax_loss."""

import pytest
import torch

from fcn_fast import ops

from .support import CLAMPED, REDUCTIONS, ZERO, assert_loss_near, labels, loss_grad_output, randn, torch_loss, with_grad
from .table import LOSSES

pytestmark = pytest.mark.usefixtures("deterministic")
LOSS = LOSSES[0]


@pytest.mark.parametrize("shape", [(7, 4), (7, 4, 30), (2, 4, 3, 5, 6)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_other_dimensions(shape, reduction, implementation, device):
    logits, target = randn(*shape, device=device), labels(shape[0], *shape[2:], classes=shape[1], device=device)
    target.view(-1)[0] = 0
    grad_output = loss_grad_output(target, reduction)
    actual = with_grad(lambda x: ops.softmax_loss(x, target, reduction=reduction), [logits], grad_output.float())
    assert_loss_near(actual, lambda x: torch_loss(x, target.cpu(), reduction=reduction), logits, grad_output)


@pytest.mark.isa
def test_large_logits(implementation, device):
    case = LOSS(CLAMPED, channels=21, device=device)
    case.inputs[0] = case.inputs[0].sign() * 1e4 + torch.randn_like(case.inputs[0])
    case.check()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("reduction", range(len(REDUCTIONS)))
def test_opcheck_of_the_backward(reduction, layout, device):
    case = LOSS(ZERO, layout=layout, device=device, reduction=REDUCTIONS[reduction], given="all")
    loss, saved, total_weight = LOSS.operator(*case.inputs, *case.rest[:-1], True)
    target, *weights = case.rest[:3]
    arguments = (torch.ones_like(loss), *case.inputs, target, *weights, saved, total_weight, 255, reduction, 0.3)
    torch.library.opcheck(torch.ops.fcn_fast.softmax_loss_backward.default, arguments)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_classes_masked_with_minus_infinity_are_as_if_absent(dtype, implementation, device):
    logits = randn(2, 6, 9, 13, dtype=dtype, device=device)
    target = labels(2, 9, 13, classes=4, device=device)
    expected = with_grad(lambda x: ops.softmax_loss(x, target), [logits[:, :4]], None)
    masked = logits.clone()
    masked[:, 4:] = -float("inf")
    loss, grad = with_grad(lambda x: ops.softmax_loss(x, target), [masked], None)
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(grad[:, :4], expected[1])
    assert not grad[:, 4:].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_ignored_pixel_does_not_count_whatever_it_holds(value, implementation, device):
    logits = randn(2, 3, 4, 5, device=device)
    target = labels(2, 4, 5, classes=3, device=device)
    target[0, 1, 2] = 255
    expected = with_grad(lambda x: ops.softmax_loss(x, target), [logits], None)
    logits[0, :, 1, 2] = value
    actual = with_grad(lambda x: ops.softmax_loss(x, target), [logits], None)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
