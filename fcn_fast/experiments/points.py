"""Point supervision: a few labelled pixels of each class in a picture, as a sample of the loss."""

from fcn_fast.experiments.report import Experiment
from fcn_fast.experiments.runs import SCRATCH, Run

__all__ = ["EXPERIMENT"]


def _points(count):
    # From scratch: the trunk of the other runs has seen the labels of all pixels.
    return Run(f"scratch-points-{count or 'all'}", "voc-fcn8s", SCRATCH, points=count)


EXPERIMENT = Experiment(
    name="points",
    title="Labels at points",
    claim="The loss of few labelled pixels is a sample of the loss of all: much of the accuracy comes from few labels.",
    runs={
        "1 point a class and picture": _points(1),
        "10 points": _points(10),
        "100 points": _points(100),
        "all pixels": _points(None),
    },
)
