"""Narrow nets and small pictures."""

import torch

from fcn_fast import models
from fcn_fast.data.shapes import CLASSES, Shapes
from fcn_fast.train import SOLVERS, initialise

FLAGS = ["--data", "shapes:32", "--width", "0.02", "--padding", "lean", "--device", "cpu", "--eval-images", "3"]


def net(solver=SOLVERS["shapes"], name="voc-fcn8s", **options):
    model = models.build(name, len(CLASSES), 0.02, padding="lean", **options)
    initialise(model, solver)
    return model.to(memory_format=torch.channels_last)


def pictures(length, seed):
    return Shapes(32, "train", length=length, seed=seed)
