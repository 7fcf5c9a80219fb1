"""Which pixels count in the loss: functions from targets (N, H, W) to the weight of each pixel, by name."""

import functools

import torch

from fcn_fast.data.transforms import VOID

__all__ = ["RULES"]

_CELL = 32  # pixels a side: what one score of the deepest layer stands for


def _cells(share, target):
    """Whole cells of the deepest layer at random, each a patch: the published way of sampling."""
    n, height, width = target.shape
    kept = (torch.rand(n, -(-height // _CELL), -(-width // _CELL), device=target.device) < share).float()
    return kept.repeat_interleave(_CELL, 1).repeat_interleave(_CELL, 2)[:, :height, :width].contiguous()


def _uniform(share, target):
    """Each pixel with the same probability."""
    return (torch.rand(target.shape, device=target.device) < share).float()


def _poisson(share, target):
    """Each pixel with a probability that favours rare classes, weighted by its inverse: on average the loss of all.

    Each class is to give as many pixels as any other, as far as it has them.
    """
    counts = _counts(target)
    wanted = share * counts.sum() / (counts > 0).sum()
    probability = torch.where(counts > 0, wanted / counts, 0).clamp(max=1)[target.clamp(max=len(counts) - 1).long()]
    return (torch.rand(target.shape, device=target.device) < probability) / probability.clamp(min=1e-12)


def _balanced(target):
    """All pixels, each class with the same weight in sum."""
    counts = _counts(target)
    return (counts.sum() / counts.clamp(min=1))[target.clamp(max=len(counts) - 1).long()]


def _counts(target):
    """float (C,): pixels of each class; the last entry is of void, and 0."""
    counts = torch.bincount(target.flatten().long(), minlength=VOID + 1).float()
    counts[VOID] = 0
    return counts


RULES = {
    "cells 1/2": functools.partial(_cells, 1 / 2),
    "cells 1/4": functools.partial(_cells, 1 / 4),
    "uniform 1/100": functools.partial(_uniform, 1 / 100),
    "poisson 1/100": functools.partial(_poisson, 1 / 100),
    "balanced": _balanced,
}
