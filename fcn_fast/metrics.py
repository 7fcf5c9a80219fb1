"""The measures of semantic segmentation, from one confusion matrix ("Fully Convolutional Networks", section 5)."""

import torch

from fcn_fast.ops._common import ignored_label

__all__ = ["ConfusionMatrix"]


class ConfusionMatrix:
    """Counts of pixels by true and predicted class, and the measures that follow from them.

    The measures are floats, or float64 (C,) by class. A class that does not occur has NaN, and the means leave it out:
    its accuracy where no pixel is of it, its IU where none is predicted as it either. Without any pixel all are NaN.

    Args:
        num_classes: C.
        ignore_index: target of pixels that count for nothing. 255 unless given, and to be given for more classes.

    Attributes:
        matrix: int64 (C, C) on the CPU, rows for the truth and columns for the prediction.

    Raises:
        ValueError: no class, or more than 255 and no ignore_index.
    """

    def __init__(self, num_classes, ignore_index=None):
        if num_classes < 1:
            raise ValueError(f"num_classes: expected 1 or more, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignored_label(ignore_index, num_classes)
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, labels, target):
        """Count pixels.

        Args:
            labels: integer predictions of any shape, on any device.
            target: integer truth of the same shape, on the same device, compared as int64.

        Raises:
            TypeError: labels or target is not of integers.
            ValueError: shapes or devices that differ, or a class outside [0, C) where target is not ignore_index.
                Nothing is counted then.
        """
        for name, value in (("labels", labels), ("target", target)):
            if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
                raise TypeError(f"{name}: expected integers, got {value.dtype}")
        if labels.shape != target.shape:
            raise ValueError(f"target: expected the shape of labels, {tuple(labels.shape)}, got {tuple(target.shape)}")
        if labels.device != target.device:
            raise ValueError(f"target: expected the device of labels, {labels.device}, got {target.device}")
        target = target.long()
        valid = target != self.ignore_index
        target, labels = target[valid], labels[valid].long()
        self._check("target", target, f" or {self.ignore_index}")
        self._check("labels", labels)
        pairs = torch.bincount(target * self.num_classes + labels, minlength=self.num_classes**2)
        self.matrix += pairs.view_as(self.matrix).to(self.matrix.device)

    def __iadd__(self, other):
        """Add what another matrix has counted, as one process of several."""
        if not isinstance(other, ConfusionMatrix):
            return NotImplemented
        if other.num_classes != self.num_classes:
            raise ValueError(f"other: expected {self.num_classes} classes, got {other.num_classes}")
        self.matrix += other.matrix
        return self

    @property
    def pixel_accuracy(self):
        """The share of pixels that are right."""
        return (self.matrix.trace().double() / self.matrix.sum()).item()

    @property
    def accuracy(self):
        """float64 (C,): the share of each class's pixels that are right."""
        return self.matrix.diag().double() / self.matrix.sum(1)

    @property
    def mean_accuracy(self):
        """The mean of the classes' accuracies."""
        return self.accuracy.nanmean().item()

    @property
    def iu(self):
        """float64 (C,): intersection over union of each class."""
        return self.matrix.diag().double() / (self.matrix.sum(0) + self.matrix.sum(1) - self.matrix.diag())

    @property
    def mean_iu(self):
        """The mean of the classes' IU."""
        return self.iu.nanmean().item()

    @property
    def frequency_weighted_iu(self):
        """The mean of the classes' IU, each as often as its pixels."""
        pixels = self.matrix.sum(1)
        return ((self.iu.nan_to_num() * pixels).sum() / pixels.sum()).item()

    def _check(self, name, values, besides=""):
        if not values.numel():
            return
        low, high = (value.item() for value in values.aminmax())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"{name}: expected classes from 0 to {self.num_classes - 1}{besides}, got {low if low < 0 else high}"
            )
