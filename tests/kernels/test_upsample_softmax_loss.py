import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fcn_fast import BilinearGrid, kernels, reference
from fcn_fast.reference import FULL, MEAN, NONE, SUM

from ..ops.support import interpolation, labels, randn
from .support import (
    CLAMPED,
    DTYPES_AND_LAYOUTS,
    FEW,
    GRIDS,
    ONE_WARP,
    ONE_WARP_ZERO,
    SAME,
    ZERO,
    assert_close,
    assert_same,
    by_name,
    exactly,
    file_of,
    plan_anew,
)
from .test_softmax_loss import OPTIONS, options_of

pytestmark = pytest.mark.usefixtures("deterministic")
INF, NAN = float("inf"), float("nan")


def compare(logits, target, grid, options=(None, None, 0.0), reduction=MEAN, both=False, times=2):
    """The loss and its gradient; both: also the loss alone, which must be the same; times: as in assert_close."""
    weight, pixel_weight, smoothing = options
    arguments = (logits, target, weight, pixel_weight, grid.numbers(), 255, reduction, smoothing, False)
    loss, saved = kernels.upsample_softmax_loss(*arguments, True)
    exact = exactly(reference.upsample_softmax_loss, *arguments, True)
    plain = reference.upsample_softmax_loss(*arguments, True)
    assert loss.dtype == saved.dtype == plain[0].dtype
    assert reference.memory_format(saved) == reference.memory_format(plain[1])
    assert_close(loss, exact[0], plain[0], least=1)
    assert_close(saved, exact[1], plain[1], least=1 if logits.shape[1] == 1 else 0, times=times)
    if both:
        alone = kernels.upsample_softmax_loss(*arguments, False)
        assert alone[1].numel() == 0
        assert_same(alone[0], loss, exact[0], plain[0])


def random(grid, classes=3, n=1, device="cpu", dtype=torch.float32, layout="contiguous", scale=2):
    logits = scale * randn(n, classes, *grid.in_size, dtype=dtype, device=device, layout=layout)
    return logits, labels(n, *grid.size, classes=classes, device=device, dtype=torch.uint8), grid


@pytest.mark.parametrize("grid", **by_name(GRIDS))
def test_values(grid, device):
    compare(*random(grid, device=device))


@pytest.mark.parametrize(("dtype", "layout"), DTYPES_AND_LAYOUTS)
def test_dtypes_and_layouts(dtype, layout, device):
    compare(*random(ONE_WARP_ZERO, dtype=dtype, layout=layout, device=device), reduction=SUM)


@pytest.mark.parametrize("reduction", range(5))
@pytest.mark.parametrize("options", OPTIONS)
def test_options(options, reduction, device):
    logits, target, grid = random(ONE_WARP_ZERO, n=2, device=device)
    shape = (2, 3, *grid.size)
    compare(logits, target, grid, options_of(options, shape, torch.float32, device), reduction, both=True)


@pytest.mark.parametrize("scale", [1, 5, 100])
@pytest.mark.parametrize("options", ["plain", "all"])
def test_gentle_and_steep_cells(options, scale, device):
    """Steep ones take the way with the largest logit of every pixel; shifted, the logits are large too, and on a GPU
    how they happen to be rounded counts for most of the error."""
    logits, target, grid = random(ONE_WARP, scale=scale, device=device)
    shape = (1, 3, *grid.size)
    for shift, reduction in ((0, FULL), (1e3, NONE), (-1e3, SUM)):
        chosen = options_of(options, shape, torch.float32, device)
        compare(logits + shift, target, grid, chosen, reduction, times=4 if shift and device == "cuda" else 2)


@pytest.mark.parametrize("reach", [19.9, 20.1])
@pytest.mark.parametrize(
    "grid",
    [
        BilinearGrid((5, 5), (9, 9), (4, 4), (8, 8), (9, 9), "clamp"),  # begins in the middle of a cell
        BilinearGrid((2, 2), (3, 3), (2, 2), (-4, -4), (1, 1), "clamp"),  # two outputs far apart before the first cell
        BilinearGrid((3, 4), (9, 9), (4, 4), (8, 8), (10, 10), "zero"),
    ],
    ids=("middle", "before", "zero"),
)
def test_cells_as_steep_as_are_gentle(grid, reach, device):
    """Progressions that go on past a cell's last output would overflow here."""
    logits, target, _ = random(grid, device=device)
    rows, columns = (torch.arange(n, device=device) for n in grid.in_size)
    logits = reach * ((rows[:, None] + columns) % 2 - 0.5) + 0 * logits
    logits[:, 1] *= -1
    compare(logits, target, grid, reduction=SUM)


@pytest.mark.parametrize(("options", "scale", "classes"), [("plain", 2, 150), ("all", 2, 150), ("plain", 100, 70)])
def test_labels_that_share_a_bit(options, scale, classes, device):
    """Classes that differ by 64 or by 32 in one warp, of gentle and of steep cells."""
    logits, target, grid = random(ONE_WARP, classes=classes, device=device, scale=scale)
    target = (target % 8 % 3 * 32 + target % 2 * 64 + target % 8) % classes
    compare(logits, target, grid, options_of(options, (1, classes, *grid.size), torch.float32, device))


@pytest.mark.parametrize(
    ("classes", "layout"), [(1, "contiguous"), (2, "contiguous"), (21, "contiguous"), (35, "channels_last")]
)
def test_class_counts(classes, layout, device):
    grid = CLAMPED if layout == "channels_last" else ONE_WARP_ZERO  # of which _combine has two tiles
    compare(*random(grid, classes=classes, layout=layout, device=device))


@pytest.mark.parametrize("grid", **by_name(FEW))
@pytest.mark.parametrize("reduction", [NONE, SUM])
def test_bad_labels_are_nan(reduction, grid, device):
    logits, target, _ = random(grid, device=device)
    target[0, 2, 3] = 3
    compare(logits, target, grid, (None, None, 0.1), reduction)
    with pytest.raises(ValueError, match="^target: expected labels from 0 to 2 or ignore_index 255, got 3 at"):
        kernels.upsample_softmax_loss(logits, target, None, None, grid.numbers(), 255, MEAN, 0.0, True, False)


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("grid", [SAME, ONE_WARP_ZERO], ids=("same", "zero"))
def test_not_finite(grid, value, device):
    logits, target, _ = random(grid, classes=4, device=device)
    target[target == 3] = 255
    logits[:, 3] = value
    compare(logits, target, grid, reduction=SUM)
    logits[0, 0, 1, 1] = value
    compare(logits, target, grid, reduction=NONE)


@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_a_single_corner_that_is_not_finite(value, device):
    """What it reaches with no weight, and what is ignored, stays as it is."""
    logits, target, grid = random(SAME, device=device)
    logits[0, 1, 2, 3] = value
    compare(logits, target, grid, reduction=NONE)
    compare(logits, target, grid, reduction=SUM)
    target[0, 2, 3] = 255
    compare(logits, target, grid, reduction=SUM)


def test_masked_classes_with_smoothing(device):
    """Their logits add up to more than a number holds: an infinite loss, as PyTorch's, and not NaN."""
    logits, target, grid = random(ONE_WARP, classes=5, device=device)
    logits[:, 2:] = torch.finfo(torch.float32).min
    target = torch.where(target == 255, target, target % 2)
    loss, _ = kernels.upsample_softmax_loss(logits, target, None, None, grid.numbers(), 255, NONE, 0.1, False, False)
    assert torch.equal(loss == INF, target != 255) and not loss[target == 255].any()


def test_weights_that_are_not_finite(device):
    """As the incoming gradients of a loss of each pixel may be; they reach the corners that have a weight."""
    logits, target, grid = random(SAME, device=device)
    target[0, :2] = torch.tensor([0, 1, 255], device=device).repeat(3)[: grid.size[1]]
    pixel_weight = torch.ones(1, *grid.size, device=device)
    pixel_weight[0, 1, 1:3] = NAN
    compare(logits, target, grid, (None, pixel_weight, 0.0), SUM)


@pytest.mark.parametrize("reduction", range(5))
def test_nothing_that_counts(reduction, device):
    logits, target, grid = random(ONE_WARP_ZERO, device=device)
    compare(logits, torch.full_like(target, 255), grid, reduction=reduction)
    compare(logits, target, grid, (torch.zeros(3, device=device), None, 0.0), reduction)
    compare(logits[:0], target[:0], grid, reduction=reduction)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_chunks_of_the_batch(layout, monkeypatch, device):
    logits, target, grid = random(ZERO, n=3, layout=layout, device=device)
    plan_anew(monkeypatch, "upsample_softmax_loss")
    monkeypatch.setattr(file_of("upsample_softmax_loss"), "MAPS", 1)
    for reduction in (NONE, MEAN):
        shape = (3, 3, *grid.size)
        compare(logits, target, grid, options_of("all", shape, torch.float32, device), reduction)


@pytest.mark.parametrize("first", [100.0, INF])
@pytest.mark.parametrize("grid", **by_name({"clamped": interpolation((3, 4), size=(6, 8)).grid, "zero": ZERO}))
def test_an_image_has_the_same_bits_alone_and_in_a_batch(grid, first, device):
    """Though the one before it is steep, or not finite, and both would meet in a warp."""
    logits, target, _ = random(grid, classes=4, n=2, device=device)
    logits[0] *= 100
    logits[0, :, 0, 0] = first

    def call(reduction, images):
        arguments = (logits[images], target[images], None, None, grid.numbers(), 255, reduction, 0.0, False, True)
        return kernels.upsample_softmax_loss(*arguments)

    both, last = slice(0, 2), slice(1, 2)
    assert torch.equal(call(NONE, both)[0][1:], call(NONE, last)[0])
    assert torch.equal(call(SUM, both)[1][1:], call(SUM, last)[1])


class Allocated(TorchDispatchMode):
    """Adds up the bytes of all that is allocated, whatever becomes free again."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if "empty" in str(function) or "clone" in str(function):
            self.bytes += result.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_a_tenth_of_eager_pytorchs(dtype, monkeypatch):
    """At 16x150x128x128, x4; eager holds the upsampled logits' log_softmax and two gradients of them at once."""
    monkeypatch.setattr(file_of("upsample_softmax_loss").Launch, "__call__", lambda self, *tensors: None)
    logits = torch.empty(16, 150, 128, 128, dtype=dtype, device="meta")
    target = torch.empty(16, 512, 512, dtype=torch.uint8, device="meta")
    grid = BilinearGrid.interpolate((128, 128), scale_factor=4).numbers()
    with Allocated() as allocated:
        loss, saved = kernels.upsample_softmax_loss(logits, target, None, None, grid, 255, MEAN, 0.0, False, True)
    assert saved.shape == logits.shape and allocated.bytes > 8 * logits.numel()
    assert allocated.bytes <= 3 * 16 * logits.numel() * dtype.itemsize / 10


def test_offsets_in_64_bits(monkeypatch, device):
    from fcn_fast.kernels import grid

    plan_anew(monkeypatch, "upsample_softmax_loss")
    monkeypatch.setattr(grid, "index_type", lambda largest: grid.tl.int64)
    compare(*random(ZERO, n=2, device=device))
