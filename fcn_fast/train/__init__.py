"""Training, end to end and pixels to pixels."""

from fcn_fast.train.loop import Trainer, evaluate, pad_batch
from fcn_fast.train.solvers import SOLVERS, Solver, initialise, zero_scores

__all__ = ["SOLVERS", "Solver", "Trainer", "evaluate", "initialise", "pad_batch", "zero_scores"]
