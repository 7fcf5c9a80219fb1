"""Modules that do something with an upsampling, each in its own way."""

import functools
import types

import torch
import torch.nn as tnn
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.nn import functional as F
from torch.nn.functional import interpolate as enlarge


class Base(nn.Module):
    def forward(self, x, target, finer):
        return x * 2


class Plain(Base):
    def forward(self, x, target, finer):
        return F.interpolate(x, (12, 14), mode="bilinear").exp()


class Functional(Base):
    def forward(self, x, target, finer):
        x = F.interpolate(x, size=target.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(x, target)


class Criterion(Base):
    def forward(self, x, target, finer):
        criterion = CrossEntropyLoss(ignore_index=3, label_smoothing=0.1)
        up = tnn.functional.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return criterion(up, target.clamp(min=0)) * 2


class Weighted(Base):
    def forward(self, x, target, finer):
        up = torch.nn.functional.interpolate(x, (12, 14), None, "bilinear")
        weight = torch.arange(5, dtype=x.dtype, device=x.device)
        return F.cross_entropy(up, target, weight, reduction="sum", ignore_index=-100)


class Attribute(Base):
    def __init__(self):
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(torch.tensor([1.0, 2, 3, 4, 5]), reduction="none")

    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return self.criterion(up, target)


def helper(scores, target, factor=1.0):
    """Calls itself for lists of scores."""
    if isinstance(scores, list):
        return sum(helper(part, target) for part in scores)
    return factor * F.cross_entropy(scores, target)


class ByHelper(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return helper(up, target, factor=3)


class LossAndMap(Base):
    def forward(self, x, target, finer):
        x = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        loss = F.cross_entropy(x, target)
        return loss * x


class MapThenLoss(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        squared = up.pow(2).sum() + up.shape[1] + len(up)
        return squared + F.cross_entropy(up, target)


class Unknown(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=finer.shape[-2:], mode="bilinear")
        return F.mse_loss(up, finer)


class SoftTarget(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=finer.shape[-2:], mode="bilinear")
        return F.cross_entropy(up, finer.softmax(1))


class OldReduction(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return F.cross_entropy(up, target, None, False)


class Labels(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return up.argmax(1)


class LabelsKept(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return up.argmax(dim=-3, keepdim=True)


class LabelsAtOnce(Base):
    def forward(self, x, target, finer):
        return F.interpolate(x, scale_factor=2, mode="bilinear").argmax(dim=1)


class FlatLabels(Base):
    def forward(self, x, target, finer):
        return F.interpolate(x, scale_factor=2, mode="bilinear").argmax()


class Sum(Base):
    def forward(self, x, target, finer):
        return finer + F.interpolate(x, size=finer.shape[-2:], mode="bilinear")


class SumOtherWay(Base):
    def forward(self, x, target, finer):
        return F.interpolate(x, size=finer.shape[-2:], mode="bilinear") + finer * 2


class SumOfName(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, scale_factor=2, mode="bilinear")
        finer = finer.exp()
        return up + finer


class SumOfTwo(Base):
    def forward(self, x, target, finer):
        return F.interpolate(x, (12, 14), mode="bilinear") + F.interpolate(x.exp(), (12, 14), mode="bilinear")


class Broadcast(Base):
    def forward(self, x, target, finer):
        return F.interpolate(x, (12, 14), mode="bilinear") + finer[:, :1]


class Chain(Base):
    def forward(self, x, target, finer):
        a = F.interpolate(x, (12, 14), mode="bilinear") + finer
        b = F.interpolate(a, (20, 20), mode="bilinear") + a.sum() * torch.ones_like(a).sum() * x.new_ones(2, 5, 20, 20)
        return b


class Loop(Base):
    def forward(self, x, target, finer):
        maps = [finer, x, x[..., :3, :3]]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(
                maps[i], size=maps[i - 1].shape[2:], mode="bilinear", align_corners=False
            )
        return maps[0]


class Twice(Base):
    def forward(self, x, target, finer):
        x = F.interpolate(x, (9, 9), mode="bilinear")
        x = F.interpolate(x, (12, 14), mode="bilinear")
        return F.cross_entropy(x, target)


class InPlace(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, (12, 14), mode="bilinear")
        up += finer
        return F.cross_entropy(up, target)


class InputInPlace(Base):
    def forward(self, x, target, finer):
        y = x * 1
        up = F.interpolate(y, (12, 14), mode="bilinear")
        y += 1
        return F.cross_entropy(up, target) + y.sum()


class InputByMethod(Base):
    def forward(self, x, target, finer):
        y = x * 1
        up = F.interpolate(y, (12, 14), mode="bilinear")
        y.add_(1)
        return F.cross_entropy(up, target) + y.sum()


class Late(Base):
    """Changes what it upsampled where its source does not show it."""

    def forward(self, x, target, finer):
        y = x * 1
        up = F.interpolate(y, (12, 14), mode="bilinear")
        F.relu(y, inplace=True)
        return F.cross_entropy(up, target)


class Branches(Base):
    def forward(self, x, target, finer):
        up = x
        if x.shape[-2:] != target.shape[-2:]:
            up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return F.cross_entropy(up, target)


class Rebound(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        loss = F.cross_entropy(up, target)
        up = x.sigmoid()
        return loss + up.sum() + F.mse_loss(up, x)


class NestedFunction(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")

        def loss(scale):
            return F.mse_loss(up * scale, finer)

        return loss(2) + (lambda up: up)(3) + F.l1_loss(up, finer)


class Comprehension(Base):
    def forward(self, x, target, finer):
        ups = [F.interpolate(x * i, size=target.shape[-2:], mode="bilinear") for i in (1, 2)]
        return torch.cat(ups, dim=1)


class Inherited(Plain):
    pass


class SuperCall(Plain):
    def forward(self, x, target, finer):
        return super().forward(x, target, finer) + F.interpolate(x, (12, 14), mode="bilinear").exp()


class SuperAlone(Functional):
    def forward(self, x, target, finer):
        old_style = super(SuperAlone, self).forward(-x, target, finer)  # noqa: UP008
        return super().forward(x, target, finer) + 3 * old_style


class SuperOfSuper(SuperAlone):
    def forward(self, x, target, finer):
        return super().forward(2 * x, target, finer)


class Sibling(Functional):
    def forward(self, x, target, finer):
        up = F.interpolate(x, (12, 14), mode="bilinear")
        return up.exp() + super().forward(x, target, finer)


class Diamond(SuperAlone, Sibling):
    def forward(self, x, target, finer):
        return super().forward(x, target, finer)


class NotCalled(Plain):
    """What it says of super() is of other methods."""

    def forward(self, x, target, finer):
        return 3 * x + self.extra(x)

    def extra(self, x):
        return super().extra_repr() == "" and x.sum() + len(self.forward.__name__)


class Hidden(NotCalled):
    def forward(self, x, target, finer):
        return super().forward(x, target, finer)


class Wrapped(Base):
    """Hides a method under a decorator of what is no function."""

    @functools.wraps(functools.partial(F.interpolate, mode="bilinear"))
    def upsample(self, x):
        return F.interpolate(x, (12, 14), mode="bilinear").exp()


class OverWrapped(Wrapped):
    def upsample(self, x):
        return 2 * super().upsample(x)

    def forward(self, x, target, finer):
        return self.upsample(x)


class EqualNames(SuperCall):
    def forward(self, x, target, finer):
        return super().forward(x, target, finer) + F.interpolate(x, (12, 14), mode="bilinear")


EqualNames.__name__ = EqualNames.__qualname__ = "SuperCall"


class Registered(Plain):
    """Its subclasses have to say what they are, and are kept."""

    known = {}

    def __init_subclass__(cls, *, kind):
        cls.known[kind] = cls


class Kind(Registered, kind="own"):
    def forward(self, x, target, finer):
        return super().forward(x, target, finer) + F.interpolate(x, (12, 14), mode="bilinear").sin()


class ParentByName(Plain):
    def forward(self, x, target, finer):
        return Plain.forward(self, x, target, finer)


def scaled(factor):
    """A decorator with a closure of its own."""

    def decorate(function):
        @functools.wraps(function)
        def wrapper(self, *args, **kwargs):
            return factor * function(self, *args, **kwargs)

        return wrapper

    return decorate


class Decorated(Base):
    @scaled(2)
    @torch.enable_grad()
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return F.cross_entropy(up, target)


class Scaled(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, scale_factor=(2, 2.0), mode="bilinear")
        return F.cross_entropy(up, target)


class Aligned(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=[12, 14], mode="bilinear", align_corners=True)
        return F.cross_entropy(up, target)


class IsNone(Base):
    def forward(self, x, target, finer):
        up = None
        if finer is not None:
            up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        if up is not None and up.shape[1] == 5:
            return F.cross_entropy(up, target)
        return x


def _closed_over(scale):
    class Closure(Base):
        def forward(self, x, target, finer):
            return scale * F.interpolate(x, (12, 14), mode="bilinear")

    return Closure


Closure = _closed_over(3)


class ReadWithoutGradient(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        with torch.no_grad():
            mean = up.mean()
        return up.exp().sum() + F.cross_entropy(up, target) + mean


class ReadInInferenceMode(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        with torch.inference_mode():
            mean = up.mean().item()
        return up.exp().sum() + mean


class MadeWithoutGradient(Base):
    def forward(self, x, target, finer):
        with torch.no_grad():
            up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return F.cross_entropy(up, target) + (finer + up).sum() + up.sum() + x.exp().sum()


class Private(Base):
    def __init__(self):
        super().__init__()
        self.__scale = 3.0

    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return self.__scale * F.cross_entropy(up, target)


class OtherName(Base):
    def forward(self, x, target, finer):
        return F.cross_entropy(enlarge(x, size=target.shape[-2:], mode="bilinear"), target)


class OldName(Base):
    def forward(self, x, target, finer):
        return F.cross_entropy(nn.functional.upsample(x, target.shape[-2:], mode="bilinear"), target)


class SizeOfTensors(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=list(torch.tensor(target.shape[-2:])), mode="bilinear")
        return F.cross_entropy(up, target)


class Locals(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        names = locals()
        return F.cross_entropy(names["up"], target) + F.cross_entropy(up, target)


class MadeAndCalled(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return nn.CrossEntropyLoss(label_smoothing=0.1)(up, target)


class PartOfAttribute(Base):
    def __init__(self):
        super().__init__()
        self.losses = nn.Module()
        self.losses.of_pixels = nn.CrossEntropyLoss(reduction="sum")

    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return self.losses.of_pixels(up, target)


class Partial(Base):
    def __init__(self):
        super().__init__()
        self.loss = functools.partial(F.cross_entropy, ignore_index=-100)

    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return self.loss(up, target)


class SameSize(Base):
    def forward(self, x, target, finer):
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
        return again(up, target)


def again(scores, target):
    scores = F.interpolate(scores, size=target.shape[-2:], mode="bilinear")
    return F.cross_entropy(scores, target)


class Shadowed(Base):
    def forward(self, x, target, finer):
        class Other:
            def interpolate(self, x, size, mode):
                return x + 1

        return (lambda F: F.interpolate(x, (12, 14), mode="bilinear"))(Other())


class Untouched(Base):
    def forward(self, x, target=None, finer=None):
        interpolate = F.interpolate  # by another name is another matter
        return interpolate(x, scale_factor=2, mode="bilinear") + F.interpolate(x, scale_factor=2)


class ByMode(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode = mode

    def forward(self, x):
        return F.interpolate(x, scale_factor=2.0, mode=self.mode)


def without_source():
    space = {}
    exec(
        "def forward(self, x):\n    return F.interpolate(x, scale_factor=2, mode='bilinear')",
        {"F": F},
        space,
    )
    return type("Made", (nn.Module,), space)()


def with_other_source():
    original = Plain.forward
    code = original.__code__.replace(co_consts=tuple(3 if c == 12 else c for c in original.__code__.co_consts))
    code = code.replace(co_consts=tuple((3, 14) if c == (12, 14) else c for c in code.co_consts))
    function = types.FunctionType(code, original.__globals__, "forward")
    return type("Edited", (nn.Module,), {"forward": function})()


def with_hiding_decorator():
    def hide(function):
        functions = [function]

        def hidden(self, x):
            return functions[0](self, x)

        hidden.__wrapped__ = function
        return hidden

    return type("Hidden", (nn.Module,), {"forward": hide(Plain.forward)})()


def super_by_instance():
    class ByInstance(Plain):
        def forward(self, x):
            return super(type(self), self).forward(x, None, None)

    return ByInstance()


def super_by_class_of_instance():
    class ByInstance(Plain):
        def forward(self, x):
            return super(self.__class__, self).forward(x, None, None) + F.interpolate(x, (12, 14), mode="bilinear")

    return ByInstance()


def pickled_its_own_way():
    def __reduce__(self):
        return Plain, ()

    return type("Own", (Plain,), {"__reduce__": __reduce__})()
