"""The losses' error in float32, where it is hardest to keep, against PyTorch's own; both measured in float64."""

import pytest
import torch
import torch.nn.functional as F

from fcn_fast import ops

LOW, HIGH, CLASSES = (17, 21), (136, 168), 21


def random(scale):
    return torch.randn(2, CLASSES, *LOW) * scale, torch.randint(CLASSES, (2, *HIGH))


def smooth(scale):
    logits = F.interpolate(torch.randn(2, CLASSES, 4, 4) * scale, LOW, mode="bilinear")
    return logits, torch.randint(CLASSES, (2, *HIGH))


def confident(scale):
    """Nearly every pixel is right, with a logit that stands far above the others."""
    labels = torch.randint(CLASSES, (2, 1, 5, 5)).float()
    target = F.interpolate(labels, HIGH, mode="nearest").long()[:, 0]
    low = F.interpolate(labels, LOW, mode="nearest").long()[:, 0]
    return F.one_hot(low, CLASSES).permute(0, 3, 1, 2) * 2.0 * scale + 0.1 * torch.randn(2, CLASSES, *LOW), target


def masked(scale):
    """Classes that can't be, at -inf; PyTorch's upsampling makes NaN of them, so only softmax_loss is compared."""
    logits, target = random(scale)
    logits[:, 3:6] = -torch.inf
    return logits, target.masked_fill((target >= 3) & (target < 6), 255)


def losses(function, logits, target):
    logits = logits.detach().requires_grad_()
    loss = function(logits, target)
    return loss.detach().double(), torch.autograd.grad(loss, logits)[0].double()


def assert_no_worse(fast, plain, logits, target):
    exact = losses(plain, logits.double(), target)
    for name, ours, theirs, truth in zip(
        ("loss", "gradient"), losses(fast, logits, target), losses(plain, logits, target), exact, strict=True
    ):
        floor = torch.finfo(torch.float32).eps * truth.abs().max()
        # Twice PyTorch's, usually half of it; the single largest error, and that of a sum, varies more from run to run.
        for measure, factor in ((lambda error: error.square().mean().sqrt(), 2), (lambda error: error.abs().max(), 4)):
            error, theirs_is = measure(ours - truth), measure(theirs - truth)
            allowed = (factor if truth.dim() else 4) * theirs_is
            assert error <= max(allowed, floor), f"{name}: {error:.2e}, PyTorch {theirs_is:.2e}"


@pytest.mark.parametrize("scale", [1, 5, 20, 100, 1e4])
@pytest.mark.parametrize("make", [random, smooth, confident])
def test_upsample_softmax_loss(make, scale):
    def plain(logits, target):
        return F.cross_entropy(F.interpolate(logits, target.shape[-2:], mode="bilinear"), target, ignore_index=255)

    assert_no_worse(ops.upsample_softmax_loss, plain, *make(scale))


@pytest.mark.parametrize("scale", [1, 5, 20, 100, 1e4])
@pytest.mark.parametrize("make", [random, smooth, confident, masked])
def test_softmax_loss(make, scale):
    logits, target = make(scale)
    logits = F.interpolate(logits, HIGH, mode="nearest")
    assert_no_worse(ops.softmax_loss, lambda x, t: F.cross_entropy(x, t, ignore_index=255), logits, target)


@pytest.mark.parametrize("classes", [2, 19])
@pytest.mark.parametrize("loss", [ops.softmax_loss, ops.upsample_softmax_loss])
def test_sums_of_equal_losses(loss, classes):
    """As where training starts: all roundings go the same way, and add up in a sum that is not kept precise enough."""
    size = (40, 20000)
    target = torch.randint(classes, (1, *size))
    logits = torch.zeros(1, classes, *size) if loss is ops.softmax_loss else torch.zeros(1, classes, 5, 2500)
    for reduction, total in (("mean", 1), ("sum", target.numel())):
        exact = torch.tensor(float(classes)).double().log().item() * total
        assert abs(loss(logits, target, reduction=reduction).item() / exact - 1) < 3e-7
