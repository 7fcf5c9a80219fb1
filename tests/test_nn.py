"""Each module is its function with the options kept."""

import inspect

import pytest
import torch

from fcn_fast import BilinearGrid, nn, ops

from .ops.support import labels, randn

SCORES = torch.Size((2, 3, 5, 6))
GRID = BilinearGrid.deconvolution((5, 6), 2, crop=1)
WEIGHT = torch.tensor([0.5, 1.0, 2.0])

CASES = [
    (nn.BilinearUpsample, ops.bilinear_upsample, {"size": (9, 13)}, lambda: [randn(*SCORES)]),
    (nn.BilinearUpsample, ops.bilinear_upsample, {"scale_factor": 2, "align_corners": True}, lambda: [randn(*SCORES)]),
    (nn.BilinearUpsample, ops.bilinear_upsample, {"grid": GRID}, lambda: [randn(*SCORES)]),
    (nn.SkipFuse, ops.skip_fuse, {"crop": (1, 2), "grid": GRID}, lambda: [randn(*SCORES), randn(2, 3, 20, 20)]),
    (nn.SkipFuse, ops.skip_fuse, {"align_corners": True}, lambda: [randn(*SCORES), randn(2, 3, 20, 20)]),
    (nn.UpsampleArgmax, ops.upsample_argmax, {"scale_factor": 2, "dtype": torch.int64}, lambda: [randn(*SCORES)]),
    (nn.UpsampleArgmax, ops.upsample_argmax, {"grid": GRID}, lambda: [randn(*SCORES)]),
    (
        nn.SoftmaxLoss,
        ops.softmax_loss,
        {"weight": WEIGHT, "ignore_index": 1, "reduction": "sum", "label_smoothing": 0.2, "check_labels": False},
        lambda: [randn(*SCORES), labels(2, 5, 6, classes=3, ignore_index=1)],
    ),
    (
        nn.UpsampleSoftmaxLoss,
        ops.upsample_softmax_loss,
        {"weight": WEIGHT, "grid": GRID, "ignore_index": 1, "reduction": "none", "label_smoothing": 0.2},
        lambda: [randn(*SCORES), labels(2, *GRID.size, classes=3, ignore_index=1)],
    ),
]


@pytest.mark.parametrize(("module", "function", "options", "make"), CASES)
def test_is_its_function(module, function, options, make, device):
    inputs = [x.to(device) for x in make()]
    options_there = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    assert torch.equal(module(**options).to(device)(*inputs), function(*inputs, **options_there))


@pytest.mark.parametrize(("module", "function"), {case[:2]: None for case in CASES})
def test_takes_the_functions_options_with_its_defaults(module, function):
    of_module = inspect.signature(module).parameters
    of_function = inspect.signature(function).parameters
    for name, parameter in of_module.items():
        assert (parameter.default, parameter.kind) == (of_function[name].default, of_function[name].kind)
    tensors = {"input", "logits", "coarse", "skip", "target", "pixel_weight"}
    assert set(of_function) - set(of_module) <= tensors


@pytest.mark.parametrize("module", [nn.SoftmaxLoss, nn.UpsampleSoftmaxLoss])
def test_losses_take_pixel_weights_and_keep_class_weights(module):
    logits, target = randn(2, 3, 5, 6), labels(2, 5, 6, classes=3)
    loss = module(WEIGHT, reduction="sum")
    doubled = loss(logits, target, torch.full(target.shape, 2.0))
    torch.testing.assert_close(doubled, 2 * loss(logits, target))
    assert torch.equal(loss.state_dict()["weight"], WEIGHT) and not module().state_dict()


def test_repr_shows_the_options():
    assert repr(nn.BilinearUpsample(scale_factor=2)) == "BilinearUpsample(scale_factor=2, align_corners=False)"
