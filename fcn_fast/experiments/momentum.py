"""Momentum and batch size: 20 images at 0.9, one at 0.9, one at 0.99."""

from dataclasses import replace

from fcn_fast.experiments.report import Experiment
from fcn_fast.experiments.runs import SOLVER, tuned

__all__ = ["EXPERIMENT"]

_IMAGES = 4000
# An image moves the weights by lr / (1 - momentum) / iter_size times its gradient in all: the same in every run.
_PER_IMAGE = 0.004


def _run(iter_size, momentum):
    solver = replace(
        SOLVER,
        steps=_IMAGES // iter_size,
        lr=_PER_IMAGE * (1 - momentum) * iter_size,
        optimizer="sgd",
        momentum=momentum,
        weight_decay=5e-4,
        bias_lr=2.0,
        iter_size=iter_size,
        batch=1,
        schedule="fixed",
        warmup=0,
    )
    return tuned(f"momentum-{momentum}-of-{iter_size}", solver=solver)


EXPERIMENT = Experiment(
    name="momentum",
    title="One image at momentum 0.99 against 20 at 0.9",
    claim="0.9^(1/20) is about 0.99: one image at 0.99 weighs past images as 20 at 0.9 do, and learns as much.",
    runs={
        "20 images, 0.9": _run(20, 0.9),
        "1 image, 0.9": _run(1, 0.9),
        "1 image, 0.99": _run(1, 0.99),
    },
)
