"""The losses' error, where it is hardest to keep, against PyTorch's own; both measured in float64."""

import pytest
import torch
import torch.nn.functional as F

from fcn_fast import ops

from .support import HALF

LOW, HIGH, CLASSES = (17, 21), (136, 168), 21
SCALES = pytest.mark.parametrize(
    ("scale", "dtype"),
    [(scale, torch.float32) for scale in (1, 5, 20, 100, 1e4)]
    + [(scale, dtype) for dtype in HALF for scale in (1, 20)],
)


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


def draws(make, scale):
    """Several of the largest logits, of which few pixels are undecided."""
    return [make(scale) for _ in range(8 if scale == 1e4 else 1)]


def losses(function, logits, target):
    logits = logits.detach().requires_grad_()
    loss = function(logits, target)
    return loss.detach().double(), torch.autograd.grad(loss, logits)[0].double()


def assert_no_worse(fast, plain, calls, scale):
    """calls: pairs of logits and target."""
    errors = {"loss": [], "gradient": []}
    largest = dict.fromkeys(errors, 0.0)
    for logits, target in calls:
        exact, ours, theirs = (
            losses(f, x, target) for f, x in ((plain, logits.double()), (fast, logits), (plain, logits))
        )
        for name, truth, *both in zip(errors, exact, ours, theirs, strict=True):
            errors[name].append([(x - truth).flatten() for x in both])
            largest[name] = max(largest[name], truth.abs().max().item())
    for name, pairs in errors.items():
        ours, theirs = (torch.cat(each) for each in zip(*pairs, strict=True))
        floor = torch.finfo(torch.float32).eps * largest[name]
        # Twice PyTorch's, usually half of it; the single largest error, and that of few sums, varies more, and most
        # where the logits are so large that one undecided pixel is nearly all of it.
        assert_at_most(ours.abs().mean(), (2 if name == "gradient" else 4) * theirs.abs().mean(), floor, name)
        assert_at_most(ours.abs().max(), (4 if scale < 1e4 else 32) * theirs.abs().max(), floor, name)


def assert_at_most(error, allowed, floor, name):
    assert error <= max(allowed, floor), f"{name}: error {error:.2e}, allowed {allowed:.2e}"


@SCALES
@pytest.mark.parametrize("make", [random, smooth, confident])
def test_upsample_softmax_loss(make, scale, dtype):
    def plain(logits, target):
        return F.cross_entropy(F.interpolate(logits, target.shape[-2:], mode="bilinear"), target, ignore_index=255)

    calls = [(logits.to(dtype), target) for logits, target in draws(make, scale)]
    assert_no_worse(ops.upsample_softmax_loss, plain, calls, scale)


@SCALES
@pytest.mark.parametrize("make", [random, smooth, confident, masked])
def test_softmax_loss(make, scale, dtype):
    calls = [(F.interpolate(logits, HIGH, mode="nearest").to(dtype), target) for logits, target in draws(make, scale)]
    assert_no_worse(ops.softmax_loss, lambda x, t: F.cross_entropy(x, t, ignore_index=255), calls, scale)


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
