"""Maps of more than 2^31 elements, whose addresses pass 32 bits: with FCN_FAST_TEST_LARGE=1, where memory is free."""

import gc
import math
import os

import pytest
import torch

from fcn_fast import BilinearGrid, ops

from .support import labels, randn

pytestmark = pytest.mark.skipif(os.environ.get("FCN_FAST_TEST_LARGE") != "1", reason="FCN_FAST_TEST_LARGE is not 1")
LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
BFLOAT16 = torch.bfloat16


@pytest.fixture
def memory():
    """Skips a test that needs more GiB than are free."""

    def need(gib):
        gc.collect()
        with open("/proc/meminfo") as file:
            free = int(next(line for line in file if line.startswith("MemAvailable")).split()[1]) / 2**20
        if free < gib + 2:
            pytest.skip(f"needs {gib} GiB of free memory, and {free:.0f} are there")

    yield need
    gc.collect()


@LAYOUTS
def test_bilinear_upsample(layout, memory):
    """Forward and backward; the last maps and rows are what they are by themselves."""
    memory(10)
    x = randn(1, 40, 116, 116, dtype=BFLOAT16, layout=layout)
    y = ops.bilinear_upsample(x, scale_factor=64)
    assert y.numel() > 1 << 31
    assert torch.equal(y[:, -1:], ops.bilinear_upsample(x[:, -1:], scale_factor=64))
    assert torch.equal(y[:, :, -64:], ops.bilinear_upsample(x[:, :, -3:].contiguous(), scale_factor=64)[:, :, -64:])
    backward = torch.ops.fcn_fast.bilinear_upsample_backward
    rule = (116, 116), BilinearGrid.interpolate((116, 116), scale_factor=64).numbers()
    assert torch.equal(backward(y, *rule)[:, -1:], backward(y[:, -1:].contiguous(), *rule))


def test_skip_fuse(memory):
    """The skip's addresses pass 32 bits, and the output's."""
    memory(10)
    coarse, skip = randn(1, 40, 116, 116, dtype=BFLOAT16), torch.zeros(1, 40, 7424, 7424, dtype=BFLOAT16)
    skip[:, -1] = randn(7424, 7424, dtype=BFLOAT16)
    fused = ops.skip_fuse(coarse, skip)
    assert fused.numel() > 1 << 31
    assert torch.equal(fused[:, -1:], ops.skip_fuse(coarse[:, -1:], skip[:, -1:]))


@LAYOUTS
def test_softmax_loss(layout, memory):
    memory(16)
    shape = (1, 21, 10240, 10240)
    logits = torch.zeros(shape, dtype=BFLOAT16)
    if layout == "channels_last":
        logits = torch.zeros(1, 10240, 10240, 21, dtype=BFLOAT16).permute(0, 3, 1, 2)
    assert logits.numel() > 1 << 31
    logits[:, :, -8:] = randn(1, 21, 8, 10240, dtype=BFLOAT16)
    target = torch.zeros(1, 10240, 10240, dtype=torch.uint8)
    target[:, -8:] = labels(1, 8, 10240, classes=21, dtype=torch.uint8)
    logits.requires_grad_()
    loss = ops.softmax_loss(logits, target, reduction="none")
    (grad,) = torch.autograd.grad(loss, logits, torch.ones(()).expand_as(loss))
    end = logits[:, :, -8:].detach().contiguous().requires_grad_()
    expected = ops.softmax_loss(end, target[:, -8:], reduction="none")
    assert torch.equal(loss[:, -8:], expected)
    torch.testing.assert_close(loss[:, :8], torch.full_like(loss[:, :8], math.log(21)))
    torch.testing.assert_close(grad[:, :, -8:], torch.autograd.grad(expected.sum(), end)[0], rtol=0, atol=1e-6)


def test_upsample_softmax_loss_of_many_logits():
    """2.5e9 of them, of which none is ever held."""
    logits, target = randn(1, 150, 64, 64), labels(1, 4096, 4096, classes=150, dtype=torch.uint8)
    assert 150 * target.numel() > 1 << 31
    logits.requires_grad_()
    loss = ops.upsample_softmax_loss(logits, target, reduction="none")
    upsampled = ops.bilinear_upsample(logits.detach()[:, :, -3:].contiguous(), scale_factor=64)[:, :, -32:]
    torch.testing.assert_close(loss[:, -32:], ops.softmax_loss(upsampled, target[:, -32:], reduction="none"))
    (mean,) = torch.autograd.grad(ops.upsample_softmax_loss(logits, target), logits)
    (each,) = torch.autograd.grad(loss, logits, torch.full_like(loss, 1 / (target != 255).sum().item()))
    torch.testing.assert_close(mean, each, rtol=1e-4, atol=1e-9)


def test_upsample_softmax_loss_of_many_pixels(memory):
    memory(4)
    target = torch.zeros(1, 46400, 46400, dtype=torch.uint8)
    assert target.numel() > 1 << 31
    logits = torch.zeros(1, 2, 725, 725, requires_grad=True)
    loss = ops.upsample_softmax_loss(logits, target)
    torch.testing.assert_close(loss.item(), math.log(2), rtol=1e-5, atol=0)
    loss.backward()
    torch.testing.assert_close(logits.grad[0, 1], torch.full((725, 725), 0.5 / 725**2), rtol=1e-4, atol=0)
    target[:, -1, -1] = 2
    with pytest.raises(ValueError, match=r"got 2 at \[0, 46399, 46399\]"):
        ops.upsample_softmax_loss(logits, target)


def test_upsample_argmax(memory):
    memory(4)
    logits = randn(1, 3, 725, 725)
    result = ops.upsample_argmax(logits, scale_factor=64)
    assert result.numel() > 1 << 31
    expected = ops.upsample_argmax(logits[:, :, -3:].contiguous(), scale_factor=64)
    assert torch.equal(result[:, -64:], expected[:, -64:])
