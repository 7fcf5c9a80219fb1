import pytest
import torch

from fcn_fast import kernels, reference
from fcn_fast.reference import MEAN, NONE, SUM, accumulate_dtype

from ..ops.support import DTYPES, LAYOUTS, laid_out, randn
from ..ops.support import labels as random_labels
from .support import assert_close, assert_same, exactly

pytestmark = pytest.mark.usefixtures("deterministic")
INF, NAN = float("inf"), float("nan")


def options_of(name, shape, dtype, device):
    """class weights, pixel weights and label smoothing"""
    classes, pixels = shape[1], (shape[0], *shape[2:])
    dtype = accumulate_dtype(dtype)
    weight, pixel_weight = torch.rand(classes, dtype=dtype).to(device), torch.rand(pixels, dtype=dtype).to(device)
    return {
        "plain": (None, None, 0.0),
        "weights": (weight, pixel_weight, 0.0),
        "smoothing": (None, None, 0.1),
        "all": (weight, pixel_weight, 0.3),
    }[name]


OPTIONS = ("plain", "weights", "smoothing", "all")


def compare(logits, target, options, reduction, ignore_index=255, total_too=True, saved_too=True):
    weight, pixel_weight, smoothing = options
    arguments = (logits, target, weight, pixel_weight, ignore_index, reduction, smoothing, False, True)
    loss, saved, total = kernels.softmax_loss(*arguments)
    exact, plain = exactly(reference.softmax_loss, *arguments), reference.softmax_loss(*arguments)
    assert_close(loss, exact[0], plain[0], least=1)
    if saved_too:
        assert_close(saved, exact[1], plain[1], least=1)
    if total_too:
        assert_close(total, exact[2], plain[2])
    without = kernels.softmax_loss(*arguments[:-1], False)
    assert without[1].numel() == 0
    assert_same(without[0], loss, exact[0], plain[0])

    grad_output = torch.randn(loss.shape, dtype=torch.float64).to(loss)
    arguments = (grad_output, logits, target, weight, pixel_weight, saved, total, ignore_index, reduction, smoothing)
    grad, plain = kernels.softmax_loss_backward(*arguments), reference.softmax_loss_backward(*arguments)
    assert grad.dtype == logits.dtype and grad.stride() == plain.stride()
    assert_close(
        grad, exactly(reference.softmax_loss_backward, *arguments), plain, least=1 if logits.shape[1] == 1 else 0
    )


VALUES = [(torch.float32, reduction, options) for reduction in range(5) for options in OPTIONS]
VALUES += [
    (dtype, reduction, options) for dtype in DTYPES[1:] for reduction in (NONE, MEAN) for options in OPTIONS[::3]
]


@pytest.mark.parametrize(("dtype", "reduction", "options"), VALUES)
def test_values(dtype, reduction, options, device):
    shape = (2, 5, 3, 13)
    logits, target = 3 * randn(*shape, dtype=dtype, device=device), random_labels(2, 3, 13, classes=5, device=device)
    compare(logits, target, options_of(options, shape, dtype, device), reduction)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [1, 2, 21, 600])
def test_class_counts_and_layouts(classes, layout, device):
    shape = (1, classes, 2, 7)
    logits = 3 * randn(*shape, device=device, layout=layout)
    target = random_labels(1, 2, 7, classes=classes, ignore_index=-1, device=device)
    compare(logits, target, options_of("all", shape, torch.float32, device), MEAN, -1)


@pytest.mark.parametrize("shape", [(7, 4), (3, 4, 33), (2, 4, 3, 1, 6), (1, 4, 1, 1), (2, 3, 40, 33)])
def test_shapes(shape, device):
    target = random_labels(shape[0], *shape[2:], classes=3, dtype=torch.uint8, device=device)
    compare(randn(*shape, device=device), target, options_of("all", shape, torch.float32, device), NONE)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_bad_labels_are_nan(dtype, layout, device):
    logits = randn(2, 5, 3, 7, device=device, layout=layout)
    target = random_labels(2, 3, 7, classes=5, dtype=dtype, device=device)
    target[1, 2, 3] = 5 if dtype == torch.uint8 else -1
    for reduction in (NONE, SUM):
        compare(logits, target, (None, None, 0.1), reduction, total_too=False)
    with pytest.raises(
        ValueError, match=r"^target: expected labels from 0 to 4 or ignore_index 255, got .* at \[1, 2, 3\]"
    ):
        kernels.softmax_loss(logits, target, None, None, 255, MEAN, 0.0, True, False)


@pytest.mark.parametrize("ignore_index", [-100, 256 + 3, 1 << 40])
def test_labels_are_compared_as_int64(ignore_index, device):
    logits = randn(1, 200, 1, 4, device=device)
    target = torch.tensor([156, 3, 0, 199], dtype=torch.uint8, device=device).view(1, 1, 4)
    compare(logits, target, (None, None, 0.0), NONE, ignore_index)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_not_finite(value, layout, device):
    logits = randn(2, 6, 3, 5, device=device)
    logits[:, 4:] = value
    logits[0, :, 0, 0] = value
    target = random_labels(2, 3, 5, classes=4, device=device)
    for options in ("plain", "weights"):
        chosen = options_of(options, logits.shape, torch.float32, device)
        compare(laid_out(logits, layout), target, chosen, NONE, saved_too=False)


@pytest.mark.parametrize("reduction", range(5))
def test_nothing_that_counts(reduction, device):
    logits = randn(2, 3, 4, 5, device=device)
    target = torch.full((2, 4, 5), 255, device=device)
    compare(logits, target, (None, None, 0.0), reduction)
    weight = torch.zeros(3, device=device)
    compare(logits, random_labels(2, 4, 5, classes=3, device=device), (weight, None, 0.0), reduction)
    compare(logits[:0], target[:0], (None, None, 0.0), reduction)


def test_large_logits(device):
    logits = randn(2, 5, 3, 7, device=device).sign() * 1e4 + randn(2, 5, 3, 7, device=device)
    compare(logits, random_labels(2, 3, 7, classes=5, device=device), (None, None, 0.1), MEAN)


def test_offsets_in_64_bits(monkeypatch, device):
    from fcn_fast.kernels import grid

    monkeypatch.setattr(grid, "index_type", lambda largest: grid.tl.int64)
    for layout in ("contiguous", "channels_last"):
        logits = randn(2, 5, 3, 7, device=device, layout=layout)
        compare(logits, random_labels(2, 3, 7, classes=5, device=device), (None, None, 0.0), MEAN)
