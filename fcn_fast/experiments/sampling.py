"""Sampling the loss: patches of more images, and pixels, uniformly or by class."""

from dataclasses import replace

from fcn_fast.experiments.report import Experiment
from fcn_fast.experiments.runs import SOLVER, tuned
from fcn_fast.experiments.upsampling import FIXED

__all__ = ["IMAGES", "PIXELS"]


def _cells(batch, pixels=None):
    return tuned(f"fcn8s-cells-{batch}", solver=replace(SOLVER, batch=batch), pixels=pixels)


def _pixels(rule):
    return tuned("fcn8s-" + rule.replace("/", "-").replace(" ", "-"), pixels=rule)


IMAGES = Experiment(
    name="sampling-images",
    title="Whole images against patches of more images",
    claim="Keeping a share p of the deepest layer's cells in 1/p times as many images converges no faster by step, "
    "and slower by time.",
    runs={
        "2 images, all cells": _cells(2),
        "4 images, 1/2 of the cells": _cells(4, "cells 1/2"),
        "8 images, 1/4 of the cells": _cells(8, "cells 1/4"),
    },
    across="step",
)

PIXELS = Experiment(
    name="sampling-pixels",
    title="Sampling the pixels of the loss",
    claim="Neighbouring pixels tell much the same: a sample of them is enough, and classes need no balance.",
    runs={
        "all pixels": FIXED,
        "uniform, 1/100": _pixels("uniform 1/100"),
        "Poisson by class, 1/100": _pixels("poisson 1/100"),
        "all, classes balanced": _pixels("balanced"),
    },
)
