"""The measures against their definitions, pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from fcn_fast.metrics import ConfusionMatrix

MEASURES = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")


def defined(labels, target, classes, ignore_index):
    """The measures from sets of pixels, as the paper writes them."""
    labels, target = labels.numpy().astype(np.int64).ravel(), target.numpy().astype(np.int64).ravel()
    seen = [i for i in range(len(target)) if target[i] != ignore_index]
    truth = [{i for i in seen if target[i] == c} for c in range(classes)]
    found = [{i for i in seen if labels[i] == c} for c in range(classes)]
    accuracy = [len(t & f) / len(t) if t else math.nan for t, f in zip(truth, found, strict=True)]
    iu = [len(t & f) / len(t | f) if t | f else math.nan for t, f in zip(truth, found, strict=True)]
    return {
        "matrix": [[len(t & f) for f in found] for t in truth],
        "accuracy": accuracy,
        "iu": iu,
        "pixel_accuracy": sum(labels[i] == target[i] for i in seen) / len(seen),
        "mean_accuracy": np.mean([a for a in accuracy if not math.isnan(a)]),
        "mean_iu": np.mean([u for u in iu if not math.isnan(u)]),
        "frequency_weighted_iu": sum(len(t) * u for t, u in zip(truth, iu, strict=True) if t) / len(seen),
    }


def agree(matrix, expected):
    np.testing.assert_array_equal(matrix.matrix, expected["matrix"])
    for name in ("accuracy", "iu"):
        np.testing.assert_allclose(getattr(matrix, name), expected[name], rtol=1e-12)
    for name in MEASURES:
        value = getattr(matrix, name)
        assert isinstance(value, float) and value == pytest.approx(expected[name], rel=1e-12), name


@pytest.mark.parametrize("ignore_index", [255, -1, 0])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_measures(device, dtype, ignore_index):
    classes = 7
    matrix = ConfusionMatrix(classes, ignore_index)
    # The last class never occurs, the one before is only predicted, and class 1 only occurs.
    labels = torch.randint(0, classes - 1, (3, 13, 11))
    labels[labels == 1] = 2
    target = torch.randint(0, classes - 2, (3, 13, 11))
    if not (dtype == torch.uint8 and ignore_index < 0):
        target[torch.rand(target.shape) < 0.2] = ignore_index
    labels, target = labels.to(device, dtype), target.to(device, dtype)
    for part in zip(labels, target, strict=True):
        matrix.update(*part)
    agree(matrix, defined(labels.cpu(), target.cpu(), classes, ignore_index))
    assert matrix.matrix.dtype == torch.int64 and math.isnan(matrix.iu[-1]) and matrix.iu[-2] == 0
    assert math.isnan(matrix.accuracy[-2])


def test_perfect_and_opposite():
    target = torch.tensor([0, 1, 1, 255])
    right = ConfusionMatrix(2)
    right.update(torch.tensor([0, 1, 1, 9]), target)  # what stands under void does not matter
    assert [getattr(right, name) for name in MEASURES] == [1] * 4
    wrong = ConfusionMatrix(2)
    wrong.update(1 - target.clamp(max=1), target)
    assert [getattr(wrong, name) for name in MEASURES] == [0] * 4


def test_nothing_counted():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.zeros(4, 5, dtype=torch.uint8), torch.full((4, 5), 255))
    matrix.update(torch.zeros(0, 5, dtype=torch.uint8), torch.zeros(0, 5, dtype=torch.uint8))
    assert matrix.matrix.sum() == 0 and all(math.isnan(getattr(matrix, name)) for name in MEASURES)
    assert matrix.iu.isnan().all() and matrix.accuracy.isnan().all()


def test_merged_is_one():
    one, parts = ConfusionMatrix(5), [ConfusionMatrix(5), ConfusionMatrix(5)]
    for i in range(6):
        labels, target = torch.randint(0, 5, (2, 4, 9)).to(torch.uint8)
        one.update(labels, target)
        parts[i % 2].update(labels, target)
    parts[0] += parts[1]
    assert torch.equal(parts[0].matrix, one.matrix) and one.matrix.sum() == 6 * 36
    with pytest.raises(ValueError, match="other: expected 5 classes, got 4"):
        parts[0] += ConfusionMatrix(4)
    with pytest.raises(TypeError):
        parts[0] += one.matrix


def test_counts_past_float32():
    matrix = ConfusionMatrix(2)
    matrix.matrix[0, 0] = 2**53
    matrix.update(torch.zeros(3, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8))
    assert matrix.matrix[0, 0] == 2**53 + 3


def test_what_cannot_be_counted(device):
    matrix = ConfusionMatrix(3)
    labels, target = torch.zeros(2, 2, 2, dtype=torch.int64, device=device)
    for wrong in (3, -1, 254):
        target[1, 1] = wrong
        with pytest.raises(ValueError, match=f"target: expected classes from 0 to 2 or 255, got {wrong}"):
            matrix.update(labels, target)
        with pytest.raises(ValueError, match=f"labels: expected classes from 0 to 2, got {wrong}"):
            matrix.update(target, labels)
    with pytest.raises(ValueError, match=r"target: expected the shape of labels, \(2, 2\), got \(2,\)"):
        matrix.update(labels, target[0])
    with pytest.raises(ValueError, match="target: expected the device of labels"):
        matrix.update(labels, target.to("meta"))
    bytes_of_void = torch.full((2, 2), 255, dtype=torch.uint8, device=device)
    with pytest.raises(ValueError, match="target: expected classes from 0 to 2 or -1, got 255"):
        ConfusionMatrix(3, ignore_index=-1).update(labels, bytes_of_void)  # -1 is not 255
    for bad in (torch.float32, torch.bool):
        with pytest.raises(TypeError, match=f"labels: expected integers, got {bad}"):
            matrix.update(labels.to(bad), target)
    assert matrix.matrix.sum() == 0
    with pytest.raises(ValueError, match="num_classes: expected 1 or more, got 0"):
        ConfusionMatrix(0)
