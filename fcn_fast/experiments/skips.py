"""Skips: 32s against 16s against 8s, staged and at once."""

from dataclasses import replace

from fcn_fast.experiments.report import Experiment
from fcn_fast.experiments.runs import SOLVER, Run, tuned

__all__ = ["EXPERIMENT", "FCN32S"]

_SHORT, _MIDDLE, _LONG = (replace(SOLVER, steps=steps) for steps in (1000, 2000, 4000))

FCN32S = tuned("fcn32s", "voc-fcn32s", solver=_MIDDLE)
_FCN16S = Run("fcn16s-staged", "voc-fcn16s", _SHORT, start=FCN32S)
_FCN8S = Run("fcn8s-staged", "voc-fcn8s", _SHORT, start=_FCN16S)
_LONGER = tuned("fcn32s-long", "voc-fcn32s", solver=_LONG)
_AT_ONCE = tuned("fcn8s-at-once", solver=_LONG)

EXPERIMENT = Experiment(
    name="skips",
    title="Skips sharpen the net, staged or at once",
    claim="Mean IU rises from 32s to 16s to 8s; training all at once comes out as training in stages does.",
    runs={
        "32s": FCN32S,
        "32s, as long as all three": _LONGER,
        "16s, from 32s": _FCN16S,
        "8s, from 16s": _FCN8S,
        "8s at once": _AT_ONCE,
    },
    published={"32s": 0.636, "16s, from 32s": 0.650, "8s, from 16s": 0.655, "8s at once": 0.654},
)
