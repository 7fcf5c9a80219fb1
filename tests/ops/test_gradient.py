"""Losses whose gradient is made with them: what their backward pass scales and gives away."""

import pytest
import torch

import fcn_fast
from fcn_fast import ops, reference
from fcn_fast.ops._gradient import scaled
from fcn_fast.reference import NONE, REDUCTIONS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LOSSES = ["softmax_loss", "upsample_softmax_loss", "softmax_loss_and_gradient"]


def make(loss, device, dtype=torch.float32):
    """The loss, a function of what it is differentiated in, and that."""
    factor = 3 if loss == "upsample_softmax_loss" else 1
    x = torch.randn(2, 5, 9, 11, dtype=torch.float64, device=device).to(dtype).requires_grad_()
    target = torch.randint(5, (2, 9 * factor, 11 * factor), device=device)
    target[torch.rand_like(target, dtype=torch.float32) < 0.2] = 255
    if loss == "softmax_loss_and_gradient":
        return lambda x: torch.ops.fcn_fast.softmax_loss_and_gradient(x, target, None, None, 255, 1, 0.1, False)[0], x
    return lambda x: getattr(ops, loss)(x, target, label_smoothing=0.1), x


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("shape", [(2, 5, 9, 11), (3, 21, 40, 52), (1, 700, 5, 8), (2, 150, 33, 64)])
def test_softmax_loss_and_gradient(shape, options, dtype, layout, device):
    x = torch.randn(shape, dtype=torch.float64, device=device).to(dtype).contiguous(memory_format=layout)
    size = (shape[0], *shape[2:])
    target = torch.where(torch.rand(size) < 0.2, 999, torch.randint(shape[1], size)).to(device)
    wide = reference.accumulate_dtype(dtype)
    weights = [torch.rand(s, dtype=wide, device=device) for s in (shape[1], size)] if options == "all" else [None, None]
    for reduction in range(1, len(REDUCTIONS)):
        rest = (999, reduction, 0.2 if options == "all" else 0.0, False)
        loss, gradient = torch.ops.fcn_fast.softmax_loss_and_gradient(x, target, *weights, *rest)
        exact = reference.softmax_loss_and_gradient(
            x.double(), target, *(None if w is None else w.double() for w in weights), *rest
        )
        assert gradient.dtype == dtype and gradient.is_contiguous(memory_format=layout)
        torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-5)
        atol = max(1e-6 * exact[1].abs().max().item(), torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)
        torch.testing.assert_close(gradient.double(), exact[1], rtol=max(torch.finfo(dtype).eps, 1e-5), atol=atol)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_classes_than_shared_memory_holds(dtype):
    x = torch.randn(1, 700, 368, 368, device="cuda").to(dtype).requires_grad_()
    target = torch.randint(700, (1, 368, 368), device="cuda")
    (gradient,) = torch.autograd.grad(ops.softmax_loss(x, target, ignore_index=-100), x)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(x.float(), target), x)
    torch.testing.assert_close(gradient, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_factors(dtype, loss, device):
    function, x = make(loss, device, dtype)
    (one,) = torch.autograd.grad(function(x), x)
    for factor in (1.0, 2.0, -0.75, 0.0):
        (gradient,) = torch.autograd.grad(factor * function(x), x)
        torch.testing.assert_close(gradient, factor * one)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_graph_that_is_kept_gives_the_same_again(loss, device):
    function, x = make(loss, device)
    value = function(x)
    found = [torch.autograd.grad(factor * value, x, retain_graph=True)[0] for factor in (3.0, 1.0, 2.0)]
    found += torch.autograd.grad(value, x)
    for gradient, factor in zip(found, (3.0, 1.0, 2.0, 1.0), strict=True):
        torch.testing.assert_close(gradient, factor * found[-1])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, x)


@pytest.mark.parametrize("loss", LOSSES)
def test_many_gradients_at_once(loss, device):
    function, x = make(loss, device)
    value, factors = function(x), torch.randn(3, device=device)
    (found,) = torch.autograd.grad(value, x, factors, is_grads_batched=True, retain_graph=True)
    (one,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(found, factors.view(3, 1, 1, 1, 1) * one)


def test_accumulated_gradients_are_nobody_elses(device):
    function, x = make("softmax_loss", device)
    function(x).backward()
    first = x.grad.clone()
    (2 * function(x)).backward()
    torch.testing.assert_close(x.grad, 3 * first)


def test_in_place_where_the_gradient_is_nobodys(device, monkeypatch):
    monkeypatch.setattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: False)
    for shape in [(7,), (3, 5, 33, 65)]:
        for dtype in DTYPES:
            gradient = torch.randn(shape, device=device).to(dtype)
            factor = torch.randn((), dtype=reference.accumulate_dtype(dtype), device=device)
            before = gradient.clone()
            assert scaled(gradient, torch.ones_like(factor), dtype) is gradient and torch.equal(gradient, before)
            assert scaled(gradient, factor, dtype) is gradient
            torch.testing.assert_close(gradient, (before.to(factor.dtype) * factor).to(dtype))


def test_a_gradient_of_another_dtype_is_rounded_once(device, monkeypatch):
    monkeypatch.setattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: False)
    gradient, factor = torch.randn(3, 5, 7, 9, device=device), torch.tensor(0.3, device=device)
    last = gradient.contiguous(memory_format=torch.channels_last)
    found = scaled(last, factor, torch.bfloat16)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, (gradient * factor).bfloat16()) and torch.equal(last, gradient)


def test_only_float16_and_maps_wait_for_the_backward_pass(monkeypatch):
    from fcn_fast.ops.softmax_loss import _at_once

    class Compiled:
        scale_gradient = None

    class OnGpu:
        is_cuda = requires_grad = True
        dtype = torch.float32

    monkeypatch.setattr(fcn_fast, "_C", None)
    assert not _at_once(OnGpu, 1)
    monkeypatch.setattr(fcn_fast, "_C", Compiled)
    assert _at_once(OnGpu, 1) and not _at_once(OnGpu, NONE)
    with torch.no_grad():
        assert not _at_once(OnGpu, 1)
    monkeypatch.setattr(OnGpu, "dtype", torch.float16)
    assert not _at_once(OnGpu, 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_second_derivative(loss, device):
    """Curvature must not quietly be zero."""
    function, x = make(loss, device)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.functional.hvp(function, x.detach(), torch.ones_like(x))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_may_change_in_place(loss, device):
    function, x = make(loss, device)
    (expected,) = torch.autograd.grad(2 * function(x) + 1, x)
    value = function(x)
    value *= 2
    value += 1
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], expected)
