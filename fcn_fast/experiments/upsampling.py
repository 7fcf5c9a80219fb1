"""Upsampling: fixed bilinear filters against learned ones."""

from fcn_fast.experiments.report import Experiment
from fcn_fast.experiments.runs import tuned

__all__ = ["EXPERIMENT", "FIXED"]

FIXED = tuned("fcn8s")

EXPERIMENT = Experiment(
    name="upsampling",
    title="Fixed upsampling against learned",
    claim="The published nets keep bilinear filters fixed: learning them was not found to help.",
    runs={
        "fixed": FIXED,
        "learned, one filter a class": tuned("fcn8s-grouped", learned_upsampling="grouped"),
        "learned, one for each pair of classes": tuned("fcn8s-dense", learned_upsampling="dense"),
    },
)
