"""upsample_softmax_loss, as far as it differs from softmax_loss."""

import pytest
import torch

from fcn_fast import BilinearGrid, ops, reference

from .support import (
    CLAMPED,
    DTYPES,
    LAYOUTS,
    ZERO,
    assert_loss_near,
    assert_same,
    has_layout,
    interpolation,
    labels,
    loss_grad_output,
    randn,
    torch_loss,
    with_grad,
)
from .table import LOSSES

pytestmark = pytest.mark.usefixtures("deterministic")
LOSS = LOSSES[1]
MASKED = interpolation((5, 7), size=(20, 28))


def targets(sampling, classes, **options):
    return labels(2, *sampling.grid.size, classes=classes, **options)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("sampling", [CLAMPED, ZERO], ids=str)
def test_layouts_with_strided_targets(sampling, reduction, layout, dtype, implementation, device):
    case = LOSS(sampling, channels=6, dtype=dtype, layout=layout, device=device, reduction=reduction)
    case.others[0] = case.others[0].mT.contiguous().mT
    assert has_layout(case.check()[1], layout)


@pytest.mark.isa
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("offset", [-200, 0, 200])
def test_cells_beside_a_zero_border(offset, reduction, implementation, device):
    """Cells further out hold nothing but zeros, which says nothing of the next ones' largest logit."""
    grid = BilinearGrid((2, 3), (11, 13), (1, 1), (-5, -5), (2, 2), "zero")
    logits = 100 * randn(2, 5, 2, 3, device=device) + offset
    target = labels(2, *grid.size, classes=5, device=device)

    def plain(x):
        upsampled = reference.bilinear_upsample(x, grid.numbers())
        return torch_loss(upsampled, target.cpu(), reduction=reduction, label_smoothing=0.2)

    fast = lambda x: ops.upsample_softmax_loss(x, target, grid=grid, reduction=reduction, label_smoothing=0.2)  # noqa: E731
    grad_output = loss_grad_output(target, reduction)
    assert_loss_near(with_grad(fast, [logits], grad_output.float()), plain, logits, grad_output)


@pytest.mark.parametrize("align_corners", [False, True])
def test_without_a_grid_targets_size_is_the_size(align_corners, implementation, device):
    sampling = interpolation((6, 7), size=(19, 30), align_corners=align_corners)
    case = LOSS(sampling, device=device)
    assert_same(case.check()[0], ops.upsample_softmax_loss(*case.inputs, case.others[0], grid=sampling.grid))


@pytest.mark.isa
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_large_logits(reduction, implementation, device):
    """PyTorch's upsampled logits are off by 1e-3 here, in float32, and ours may be by twice that."""
    case = LOSS(CLAMPED, channels=21, device=device, reduction=reduction)
    case.inputs[0] = case.inputs[0] + 1e4 * case.inputs[0].sign()
    case.check()


def test_is_the_loss_of_the_upsampled_logits(device):
    logits = randn(2, 21, 9, 11, device=device)
    target = labels(2, 72, 88, classes=21, device=device)
    whole = ops.softmax_loss(ops.bilinear_upsample(logits, (72, 88)), target)
    torch.testing.assert_close(ops.upsample_softmax_loss(logits, target), whole, rtol=1e-6, atol=0)


@pytest.mark.isa
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_logits_masked_with_minus_infinity(dtype, reduction, implementation, device):
    """A masked class is as if absent wherever a masked tap has weight, and only there."""
    logits = randn(2, 6, *MASKED.in_size, dtype=dtype, device=device)
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask[:, 3] = torch.rand_like(logits[:, 3].float()) < 0.3
    mask[:, 4] = True
    target = targets(MASKED, 3, device=device)

    def plain(x):
        reached = MASKED.torch(mask.cpu().double()) > 0
        scores = MASKED.torch(torch.where(mask.cpu(), 0, x)).masked_fill(reached, -float("inf"))
        return torch_loss(scores, target.cpu(), reduction=reduction)

    fast = lambda x: ops.upsample_softmax_loss(x, target, reduction=reduction)  # noqa: E731
    masked = logits.masked_fill(mask, -float("inf"))
    grad_output = loss_grad_output(target, reduction)
    loss, grad = with_grad(fast, [masked], grad_output.to(torch.promote_types(dtype, torch.float32)))
    assert_loss_near((loss, grad), plain, logits, grad_output)
    assert not grad[mask].any()
