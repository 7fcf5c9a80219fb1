"""Derivatives: numerically, twice or refused, and the graph that autograd keeps."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from .support import CLAMPED, FEW, LOSS_OPTIONS, REDUCTIONS, ZERO, assert_same, interpolation
from .table import DIFFERENTIABLE, LINEAR, LOSSES, OPS

pytestmark = pytest.mark.usefixtures("deterministic")


def requiring_grad(case):
    return [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in case.inputs]


def numerically(op, sampling, device, **options):
    case = op(sampling, batch=1, channels=3, dtype=torch.float64, device=device, **options)
    return case.of_inputs(case.fast), requiring_grad(case)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sampling", FEW[1:3] + FEW[4:], ids=str)
@pytest.mark.parametrize("op", LINEAR, ids=str)
def test_linear(op, sampling, layout, implementation, device):
    for options in op.variants:
        fast, inputs = numerically(op, sampling, device, layout=layout, **options)
        assert gradcheck(fast, inputs, fast_mode=True)
        assert gradgradcheck(fast, inputs, fast_mode=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("given", LOSS_OPTIONS)
@pytest.mark.parametrize("sampling", [interpolation((3, 4), size=(8, 6)), FEW[2], ZERO], ids=str)
@pytest.mark.parametrize("op", LOSSES, ids=str)
def test_losses(op, sampling, given, reduction, implementation, device):
    fast, inputs = numerically(op, sampling, device, given=given, reduction=reduction)
    assert gradcheck(fast, inputs, fast_mode=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("op", LOSSES, ids=str)
def test_losses_refuse_the_second(op, reduction, device):
    case = op(CLAMPED, device=device, reduction=reduction)
    (logits,) = requiring_grad(case)
    loss = case.of_inputs(case.fast)(logits).sum()
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    # None of these must quietly count for nothing: a gradient penalty, alone or beside the loss, curvature, forward
    # mode by two backward passes, and what the loss is multiplied by.
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(grad.square().sum(), logits, retain_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (loss + grad.square().sum()).backward()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.functional.hvp(lambda x: case.of_inputs(case.fast)(x).sum(), logits.detach(), grad.detach())
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.functional.jvp(lambda x: case.of_inputs(case.fast)(x).sum(), logits.detach(), grad.detach())
    factor = torch.tensor(2.0, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(factor * case.of_inputs(case.fast)(logits).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(grad.square().sum(), factor, allow_unused=True)


@pytest.mark.parametrize("op", LOSSES, ids=str)
def test_a_graph_of_the_gradient_costs_nothing_but_memory(op, device):
    """Under activation checkpointing too, which lets saved tensors be asked for once."""
    case = op(CLAMPED, device=device)
    (logits,) = requiring_grad(case)
    loss = case.of_inputs(case.fast)
    (expected,) = torch.autograd.grad(2 * loss(logits), logits)
    for value in (loss(logits), checkpoint(lambda x: loss(x * 1), logits, use_reentrant=False)):
        (grad,) = torch.autograd.grad(2 * value, logits, create_graph=True, retain_graph=False)
        torch.testing.assert_close(grad.detach(), expected)


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=str)
def test_forward_mode_is_refused(op, device):
    """A tangent must not quietly be none."""
    case = op(CLAMPED, device=device)
    with forward_ad.dual_level():
        inputs = [forward_ad.make_dual(x, torch.ones_like(x)) for x in case.inputs]
        with pytest.raises(NotImplementedError, match="jvp"):
            case.of_inputs(case.fast)(*inputs)
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(RuntimeError, match="no derivative under torch.func"):
            transform(lambda *inputs: case.of_inputs(case.fast)(*inputs).sum())(*case.inputs)


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=str)
def test_backward_again(op, device):
    """Scaled, and summed: each the same bits as the first time."""
    for options in op.variants:
        case = op(ZERO, device=device, **options)
        inputs = requiring_grad(case)
        output = case.of_inputs(case.fast)(*inputs)
        one = torch.ones_like(output)
        once, again, twice = (torch.autograd.grad(output, inputs, k * one, retain_graph=True) for k in (1, 1, 2))
        summed = torch.autograd.grad(case.of_inputs(case.fast)(*inputs).sum(), inputs)
        for a, b, c, d in zip(once, again, summed, twice, strict=True):
            assert torch.equal(a, b) and torch.equal(a, c)
            torch.testing.assert_close(d, 2 * a)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_no_graph_where_none_is_needed(op, device):
    case = op(CLAMPED, device=device)
    fast = case.of_inputs(case.fast)
    assert not case.run().requires_grad
    inputs = requiring_grad(case)
    for none in (torch.no_grad, torch.inference_mode):
        with none():
            assert not fast(*inputs).requires_grad
    assert fast(*inputs).requires_grad == (op in DIFFERENTIABLE)


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=str)
def test_direct_calls_of_the_operator_differentiate(op, device):
    case = op(CLAMPED, device=device)
    inputs = requiring_grad(case)
    output = op.operator(*inputs, *case.rest)
    output = output[0] if isinstance(output, tuple) else output
    actual = torch.autograd.grad(output.sum(), inputs)
    expected = torch.autograd.grad(case.of_inputs(case.fast)(*inputs).sum(), inputs)
    for a, b in zip(actual, expected, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=str)
def test_inputs_may_not_change_before_backward(op, device):
    """Where backward reads them; a linear operation's does not."""
    case = op(CLAMPED, device=device, **op.variants[-1])
    inputs = requiring_grad(case)
    clones = [x.clone() for x in inputs]
    output = case.of_inputs(case.fast)(*clones)
    clones[0].add_(1)
    if op in LINEAR:
        output.sum().backward()
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=str)
def test_checkpointing_gives_the_same_gradient(op, device):
    case = op(CLAMPED, device=device)
    inputs = requiring_grad(case)
    fast = case.of_inputs(case.fast)
    expected = torch.autograd.grad(fast(*inputs).sum(), inputs)
    output = torch.utils.checkpoint.checkpoint(fast, *inputs, use_reentrant=False)
    actual = torch.autograd.grad(output.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
