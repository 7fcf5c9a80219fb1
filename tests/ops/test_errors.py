"""Wrong calls: an error that names the argument, what was expected and what came, before anything is computed."""

import pytest
import torch

from fcn_fast import BilinearGrid, ops

from .support import labels, randn
from .table import LOSSES, OPS

NAN, HUGE = float("nan"), 1 << 31
MAP, SKIP, TARGET = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 7, 9), torch.zeros(2, 4, 5, dtype=torch.int64)
FINE = torch.zeros(2, 8, 10, dtype=torch.int64)
GRID = BilinearGrid.interpolate((4, 5), scale_factor=2)
TENSORS = {
    "bilinear_upsample": {"input": MAP, "size": 5},
    "skip_fuse": {"coarse": MAP, "skip": SKIP},
    "softmax_loss": {"logits": MAP, "target": TARGET},
    "upsample_softmax_loss": {"logits": MAP, "target": FINE},
    "upsample_argmax": {"logits": MAP, "size": 5},
}
# For every operation, in place of its first map.
NO_MAPS = [
    (None, TypeError, "expected a tensor, got NoneType"),
    ([[1.0]], TypeError, "expected a tensor, got list"),
    (MAP.numpy(), TypeError, "expected a tensor, got ndarray"),
    (MAP.int(), TypeError, "expected .*float16, got torch.int32"),
    (MAP.bool(), TypeError, "expected .*, got torch.bool"),
    (MAP.to(torch.complex64), TypeError, "expected .*, got torch.complex64"),
    (MAP.to(torch.float8_e4m3fn), TypeError, "expected .*, got torch.float8_e4m3fn"),
    (MAP.to_sparse(), TypeError, "expected a dense tensor, got torch.sparse_coo"),
    (MAP[:, :0], ValueError, r"expected .*, got .*\(2, 0, 4, 5\)"),
]
NO_IMAGES = [
    (MAP[0], ValueError, r"expected 4 dimensions \(N, C, H, W\), got shape \(3, 4, 5\)"),
    (MAP[None], ValueError, "expected 4 dimensions"),
    (MAP[..., :0], ValueError, r"expected at least one channel and one pixel, got shape \(2, 3, 4, 0\)"),
    (MAP[:, :, :0], ValueError, r"expected at least one channel and one pixel, got shape \(2, 3, 0, 5\)"),
]
NO_GRIDS = [
    ({"grid": 2}, TypeError, "grid: expected a BilinearGrid, got int"),
    ({"grid": "2"}, TypeError, "grid: expected a BilinearGrid, got str"),
    ({"grid": GRID, "align_corners": True}, ValueError, "grid: expected no .*align_corners"),
    ({"grid": BilinearGrid.interpolate((3, 5), 5)}, ValueError, "grid: expected one for .*4x5.*, got one for 3x5"),
]
NO_SIZES = [
    ({"size": None}, ValueError, "size, scale_factor: expected exactly one of them"),
    ({"scale_factor": 2}, ValueError, "size, scale_factor: expected exactly one of them"),
    ({"size": 0}, ValueError, "size: expected at least 1x1, got 0x0"),
    ({"size": (5, -1)}, ValueError, "size: expected at least 1x1, got 5x-1"),
    ({"size": (5, HUGE)}, ValueError, f"size: expected at most .* pixels along an axis, got 5x{HUGE}"),
    *(
        ({"size": size}, ValueError, "size: expected an int or two ints, got ")
        for size in (2.5, "5", True, (5, 6, 7), (5,), (5, None), torch.tensor([5, 6]))
    ),
    *(
        ({"size": None, "scale_factor": factor}, ValueError, "scale_factor: expected a positive number or two, got ")
        for factor in (-1, 0, (1, 2, 3), float("inf"), NAN, "2", True, (2, None), 2j, torch.tensor(2.0))
    ),
    ({"size": None, "scale_factor": 0.1}, ValueError, "size: expected at least 1x1, got 0x0"),
    ({"size": None, "scale_factor": 1e300}, ValueError, "size: expected at most .* pixels along an axis"),
    ({"grid": GRID, "size": (8, 10)}, ValueError, "grid: expected no size"),
    ({"grid": GRID, "size": None, "scale_factor": 2}, ValueError, "grid: expected no .*scale_factor"),
]
NO_TARGETS = [
    (None, TypeError, "expected a tensor, got NoneType"),
    *((FINE.to(d), TypeError, f"expected .*int64, got {d}") for d in (torch.bool, torch.int8)),
    *((x, TypeError, "expected .*int64 labels, .*, got torch.float32") for x in (FINE.float(), torch.rand(2, 3, 4, 5))),
    (TARGET[0], ValueError, r"expected shape \(2, .*\), got \(4, 5\)"),
    (TARGET[:1], ValueError, r"expected shape \(2, .*\), got \(1, 4, 5\)"),
    (TARGET.unsqueeze(1), ValueError, r"expected shape \(2, .*\), got \(2, 1, 4, 5\)"),
    (TARGET.to("meta"), ValueError, "expected the device of logits, cpu, got meta"),
]
NO_LOSS_OPTIONS = [
    ({"weight": [1.0, 1.0, 1.0]}, TypeError, "weight: expected a tensor, got list"),
    ({"weight": torch.ones(3, dtype=torch.int64)}, TypeError, "weight: expected .*, got torch.int64"),
    ({"weight": torch.ones(4)}, ValueError, r"weight: expected shape \(3,\), got \(4,\)"),
    ({"weight": torch.ones(3, requires_grad=True)}, ValueError, "weight: expected .* not require grad"),
    ({"weight": torch.ones(3, device="meta")}, ValueError, "weight: expected the device of logits, cpu, got meta"),
    ({"pixel_weight": torch.ones(2, 4)}, ValueError, r"pixel_weight: expected shape \(2, 4, 5\), got \(2, 4\)"),
    ({"pixel_weight": TARGET}, TypeError, "pixel_weight: expected .*, got torch.int64"),
    ({"pixel_weight": torch.ones(2, 4, 5).requires_grad_()}, ValueError, "pixel_weight: expected .* not require grad"),
    ({"ignore_index": "255"}, TypeError, "ignore_index: expected an int, got '255'"),
    ({"ignore_index": 2.0}, TypeError, "ignore_index: expected an int, got 2.0"),
    ({"ignore_index": True}, TypeError, "ignore_index: expected an int, got True"),
    ({"ignore_index": 1 << 63}, ValueError, "ignore_index: expected a 64-bit int, got 9223372036854775808"),
    ({"reduction": "average"}, ValueError, "reduction: expected one of none, mean, sum, full, batch, got 'average'"),
    ({"reduction": None}, ValueError, "reduction: expected one of .*, got None"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing: expected a number from 0 to 1, got 1.5"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing: expected a number from 0 to 1, got -0.1"),
    ({"label_smoothing": NAN}, ValueError, "label_smoothing: expected a number from 0 to 1, got nan"),
    ({"label_smoothing": "0.1"}, TypeError, "label_smoothing: expected a number"),
    ({"label_smoothing": None}, TypeError, "label_smoothing: expected a number"),
]
OF_ONE_OPERATION = {
    "softmax_loss": [
        ({"logits": MAP[0, 0, 0]}, ValueError, r"logits: expected shape \(N, C, ...\) with C >= 1, got \(5,\)"),
        ({"target": TARGET[:, 1:]}, ValueError, r"target: expected shape \(2, 4, 5\), got \(2, 3, 5\)"),
    ],
    "upsample_softmax_loss": [
        ({"target": FINE[:, :0]}, ValueError, "(target|size): expected .*0x10"),
        (
            {"target": FINE[:, 1:], "grid": GRID},
            ValueError,
            "target: expected 8x10, what the grid upsamples to, got 7x10",
        ),
    ],
    "skip_fuse": [
        ({"skip": None}, TypeError, "skip: expected a tensor, got NoneType"),
        ({"skip": SKIP.int()}, TypeError, "skip: expected .*, got torch.int32"),
        ({"skip": SKIP.double()}, TypeError, "skip: expected the dtype of coarse, torch.float32, got torch.float64"),
        ({"skip": SKIP[0]}, ValueError, "skip: expected 4 dimensions"),
        ({"skip": SKIP[:1]}, ValueError, r"skip: expected the batch and channels of coarse, \(2, 3\), got \(1, 3\)"),
        ({"skip": SKIP[:, :1]}, ValueError, r"skip: expected the batch and channels of coarse, \(2, 3\), got \(2, 1\)"),
        ({"skip": SKIP.to("meta")}, ValueError, "skip: expected the device of coarse, cpu, got meta"),
        ({"crop": -1}, ValueError, "crop: expected an offset inside the skip's 7x9, got -1,-1"),
        ({"crop": 7}, ValueError, "crop: expected .*7x9, got 7,7"),
        ({"crop": (0, 9)}, ValueError, "crop: expected .*7x9, got 0,9"),
        ({"crop": 1.5}, ValueError, "crop: expected an int or two ints, got 1.5"),
        ({"crop": (1, 2, 3)}, ValueError, "crop: expected an int or two ints"),
        ({"crop": 2, "grid": GRID}, ValueError, "crop, grid: expected .*7x9, got 8x10 at 2,2"),
    ],
    "upsample_argmax": [
        ({"dtype": dtype}, TypeError, "dtype: expected torch.uint8, .* or torch.int64, got ")
        for dtype in (torch.float32, torch.int8, torch.uint16, torch.bool, None, "uint8")
    ]
    + [
        ({"logits": MAP[:, :1].expand(2, 257, 4, 5)}, ValueError, "dtype: .* holds 257 classes, got torch.uint8"),
        (
            {"logits": MAP[:1, :1, :1, :1].expand(1, 32769, 1, 1), "dtype": torch.int16},
            ValueError,
            "dtype: expected one that holds 32769 classes, got torch.int16",
        ),
    ],
}


def errors():
    for op in OPS:
        first = next(iter(TENSORS[op.name]))
        maps = NO_MAPS + NO_IMAGES * op.upsamples
        changes = [({first: value}, error, f"{first}: {message}") for value, error, message in maps]
        changes += NO_GRIDS * op.upsamples
        if "size" in TENSORS[op.name]:
            changes += NO_SIZES
        if op in LOSSES:
            changes += [({"target": value}, error, f"target: {message}") for value, error, message in NO_TARGETS]
            changes += [({"target": TARGET} | options, *expected) for options, *expected in NO_LOSS_OPTIONS]
        for i, (change, error, message) in enumerate(changes + OF_ONE_OPERATION.get(op.name, [])):
            yield pytest.param(op.name, change, error, message, id=f"{op}-{i}-{','.join(change)}")


@pytest.mark.parametrize(("name", "change", "error", "message"), list(errors()))
def test_wrong_calls(name, change, error, message):
    arguments = {**TENSORS[name], **change}
    if "grid" in change and "size" not in change and "size" in arguments:
        del arguments["size"]
    with pytest.raises(error, match=f"^{message}"):
        getattr(ops, name)(**arguments)


@pytest.mark.parametrize("name", TENSORS)
def test_right_calls(name):
    """What the wrong ones differ from is right."""
    getattr(ops, name)(**TENSORS[name])


@pytest.mark.parametrize("op", OPS, ids=str)
def test_messages_stay_short(op):
    """An argument that is a large tensor does not print itself."""
    first = next(iter(TENSORS[op.name]))
    with pytest.raises(TypeError) as caught:
        getattr(ops, op.name)(**TENSORS[op.name] | {first: torch.zeros(2, 3, 40, 50, dtype=torch.int64)})
    assert len(str(caught.value)) < 120 and "\n" not in str(caught.value)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("label", [21, 254, -1, -100, 1 << 40])
@pytest.mark.parametrize("op", LOSSES, ids=str)
def test_bad_labels(op, label, reduction, implementation, device):
    dtype = torch.uint8 if 0 <= label < 256 else torch.int64
    target = labels(2, 56, 72, classes=21, dtype=dtype, device=device)
    target[1, 17, 5] = target[1, 17, 30] = label
    logits = randn(2, 21, *((7, 9) if op.upsamples else (56, 72)), device=device)
    loss = getattr(ops, op.name)
    message = rf"^target: expected labels from 0 to 20 or ignore_index 255, got {label} at \[1, 17, 5\]"
    with pytest.raises(ValueError, match=message):
        loss(logits, target, reduction=reduction, check_labels=True)
    if device == "cpu":
        with pytest.raises(ValueError, match=message):
            loss(logits.requires_grad_(), target, reduction=reduction)


@pytest.mark.parametrize("loss", [ops.softmax_loss, ops.upsample_softmax_loss])
def test_which_label_is_ignored_among_many_classes(loss, device):
    """255 is none of 255 classes, and may not quietly be left out of 256."""
    target = torch.full((1, 4, 4), 255, device=device)
    logits = torch.randn(1, 256, 4, 4, device=device)
    assert loss(logits[:, :255], target) == 0
    with pytest.raises(ValueError, match="ignore_index: expected one .*, got none for 256 classes"):
        loss(logits, target)
    expected = torch.nn.functional.cross_entropy(logits.double(), target)
    assert loss(logits, target, ignore_index=-100).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss(logits, target, ignore_index=255) == 0
