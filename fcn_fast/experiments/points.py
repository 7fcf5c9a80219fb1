"""Point supervision: a few labelled pixels of each class in a picture, as a sample of the loss."""

from dataclasses import replace

from fcn_fast.experiments.report import Experiment
from fcn_fast.experiments.runs import PRETRAINED

__all__ = ["EXPERIMENT"]


def _points(count):
    # From scratch, as the trunk that other runs start from has seen the labels of all pixels.
    return replace(PRETRAINED, name=f"points-{count}", points=count)


EXPERIMENT = Experiment(
    name="points",
    title="Labels at points",
    claim="The loss of few labelled pixels is a sample of the loss of all: much of the accuracy comes from few labels.",
    runs={
        "1 point a class and picture": _points(1),
        "10 points": _points(10),
        "100 points": _points(100),
        "all pixels": PRETRAINED,
    },
)
