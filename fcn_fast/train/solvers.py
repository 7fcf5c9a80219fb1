"""How a net is trained: the published solvers (shelhamer/fcn.berkeleyvision.org) and modern ones, as data."""

import math
from dataclasses import MISSING, dataclass, field, fields, replace

import torch

from fcn_fast.models.stages import Conv

__all__ = ["SOLVERS", "Solver", "initialise", "option", "zero_scores"]

_PIXEL_DEVIATION = 60  # of photographs, of values from 0 to 255


def option(default, help="", **options):
    """A dataclass's field that is a flag too."""
    return field(default=default, metadata={"help": help, **options})


@dataclass(frozen=True)
class Solver:
    """A recipe; its fields are flags of ``fcn-fast train``.

    Raises:
        ValueError: a value out of its range.
    """

    steps: int = option(MISSING, "updates of the weights")
    lr: float = option(MISSING, "learning rate of the weights")
    optimizer: str = option("sgd", "of the weights", choices=("sgd", "adamw"))
    momentum: float = option(0.99, "of SGD")
    weight_decay: float = option(5e-4, "of the weights, not of biases; AdamW decouples it from the gradient")
    bias_lr: float = option(2.0, "the biases' learning rate over the weights'")
    iter_size: int = option(1, "micro-batches whose gradients are averaged in one step")
    batch: int = option(1, "images in a micro-batch; smaller ones are padded at the bottom and right with labels 255")
    reduction: str = option("sum", "of the loss over a micro-batch's pixels", choices=("sum", "mean", "full", "batch"))
    schedule: str = option("fixed", "of the learning rate: half a cosine goes down to 0", choices=("fixed", "cosine"))
    warmup: int = option(0, "steps over which the learning rate rises from 0")
    precision: str = option("float32", "bf16 is autocast", choices=("float32", "bf16"))
    dropout: float = option(0.5, "of fc6 and fc7")
    # A net's name, "vgg16" or "alexnet" for weights of classification, or "scratch".
    init: str = "vgg16"

    def __post_init__(self):
        for each in fields(self):
            values = each.metadata.get("choices")
            if values and getattr(self, each.name) not in values:
                raise ValueError(f"{each.name}: expected one of {', '.join(values)}, got {getattr(self, each.name)!r}")
        for name, low in {"steps": 1, "iter_size": 1, "batch": 1, "warmup": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name}: expected a whole number from {low}, got {value!r}")
        for name in ("lr", "momentum", "weight_decay", "bias_lr", "dropout"):
            value, below = getattr(self, name), 1 if name in ("momentum", "dropout") else math.inf
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < below:
                raise ValueError(f"{name}: expected a number from 0 to below {below}, got {value!r}")

    def optimizer_of(self, model):
        """The optimiser, with the weights and the biases of the model in two groups."""
        groups = {True: [], False: []}
        for name, parameter in model.named_parameters():
            groups[name.endswith(".bias")].append(parameter)
        groups = [
            {"params": groups[False], "lr": self.lr, "scale": 1.0, "weight_decay": self.weight_decay},
            {"params": groups[True], "lr": self.lr, "scale": self.bias_lr, "weight_decay": 0.0},
        ]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups)
        return torch.optim.SGD(groups, momentum=self.momentum)

    def set_lr(self, optimizer, step):
        """Give the optimiser the learning rates of this step, counted from 0; returns that of the weights."""
        lr = self.lr
        if self.schedule == "cosine":
            lr *= 0.5 * (1 + math.cos(math.pi * step / self.steps))
        if step < self.warmup:
            lr *= (step + 1) / (self.warmup + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        return lr


def initialise(model, solver, scratch=True):
    """Prepare a net of random weights: its dropout, scores that start at zero, and its first layer.

    Kaiming's weights keep a net's activations in the range of its input, which is that of pixels. From ``scratch``
    the first layer brings them to about 1.
    """
    model.stage3.dropout.p = solver.dropout
    zero_scores(model)
    if scratch:
        first = next(layer for layer in model.stage1.modules() if isinstance(layer, Conv))
        with torch.no_grad():
            first.weight /= _PIXEL_DEVIATION


def zero_scores(model):
    """Let all score layers start at zero, as published."""
    for name, layer in model.named_modules():
        if isinstance(layer, Conv) and name.partition(".")[2].startswith("score"):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)


def _published():
    voc = Solver(100_000, 1e-10)
    for name, lr, init in (("32s", 1e-10, "vgg16"), ("16s", 1e-12, "voc-fcn32s"), ("8s", 1e-14, "voc-fcn16s")):
        yield f"voc-fcn{name}", replace(voc, lr=lr, init=init)
    yield "voc-fcn8s-atonce", replace(voc, steps=300_000)
    yield (
        "voc-fcn-alexnet",
        replace(voc, lr=1e-4, momentum=0.9, iter_size=20, reduction="mean", init="alexnet"),
    )
    nyud = Solver(100_000, 1e-10)
    for name in ("color", "hha", "color-d"):
        yield f"nyud-fcn32s-{name}", nyud
    yield "nyud-fcn32s-color-hha", replace(nyud, lr=1e-12, init="nyud-fcn32s-color+nyud-fcn32s-hha")
    for data, steps, lrs in (
        ("siftflow", 100_000, (1e-10, 1e-12, 1e-12)),
        ("pascalcontext", 400_000, (1e-10, 1e-12, 1e-14)),
    ):
        inits = ("vgg16", f"{data}-fcn32s", f"{data}-fcn16s")
        for stride, lr, init in zip((32, 16, 8), lrs, inits, strict=True):
            yield f"{data}-fcn{stride}s", Solver(steps, lr, init=init)


_MODERN = Solver(
    20_000, 1e-4, "adamw", weight_decay=0.01, bias_lr=1.0, batch=8, reduction="mean", schedule="cosine", warmup=500,
    precision="bf16",
)  # fmt: skip

SOLVERS = {
    **dict(_published()),
    "modern": _MODERN,
    "shapes": replace(_MODERN, steps=6000, lr=4e-3, warmup=100, precision="float32", dropout=0.0, init="scratch"),
}
"""The published solvers by the names of their nets; ``"modern"`` for nets that start from given weights, and
``"shapes"`` for narrow nets from scratch."""
