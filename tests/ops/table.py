"""The table of operations: how to call each on random inputs, and what PyTorch and the reference make of the same call.

What is to hold for all of them is tested once, over OPS; the tests of one operation are in the file of its name.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fcn_fast import nn, ops, reference

from .support import (
    REDUCTIONS,
    as_pytorch,
    assert_all_near,
    assert_loss_near,
    exactly,
    labels,
    loss_options,
    randn,
    torch_loss,
    with_grad,
)


@dataclass(frozen=True)
class Op:
    """An operation.

    Attributes:
        name: in fcn_fast.ops, and of its operator.
        make: (sampling, values, batch, channels, **options) -> what a Case needs; values makes the random maps.
        module: of fcn_fast.nn, with options for maps of any size.
        kind: "linear", "loss" or "labels".
        variants: options that its values are tested under everywhere.
    """

    name: str
    make: Callable
    module: Callable
    kind: str
    variants: tuple = ({},)

    def __call__(
        self,
        sampling,
        *,
        batch=2,
        channels=5,
        dtype=torch.float32,
        layout="contiguous",
        device="cpu",
        scale=1,
        **options,
    ):
        """A call at this sampling, of whose grid softmax_loss takes the size alone."""

        def values(*shape, layout=layout):
            return randn(*shape, dtype=dtype, layout=layout, device=device, scale=scale)

        return Case(self, *self.make(sampling, values, batch, channels, **options))

    def __str__(self):
        return self.name

    @property
    def operator(self):
        return getattr(torch.ops.fcn_fast, self.name).default

    @property
    def upsamples(self):
        return self.name != "softmax_loss"


@dataclass(frozen=True)
class Case:
    """One call of an operation.

    Attributes:
        inputs: the maps that it is a function of.
        others: the other tensors, or None.
        fast: the operation, of inputs and others.
        plain: what PyTorch has in its place, of the same at any dtype on the CPU; in place of labels, their scores.
        rest: what the operator takes after inputs.
    """

    op: Op
    inputs: list
    others: list
    fast: Callable
    plain: Callable
    rest: tuple

    @property
    def dtype(self):
        return self.inputs[0].dtype

    def of_inputs(self, function):
        """fast or plain as a function of the inputs alone."""
        return lambda *inputs: function(*inputs, *(x if x is None else x.to(inputs[0].device) for x in self.others))

    def run(self):
        return self.fast(*self.inputs, *self.others)

    def exactly(self, *inputs):
        """The reference in float64: the definition. Differentiable."""
        rest = (x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in self.rest)
        output = getattr(reference, self.op.name)(*(x.double() for x in inputs or self.inputs), *rest)
        return output[0] if isinstance(output, tuple) else output

    def check(self, grad_layout="contiguous"):
        """Hold the operation and its gradients against PyTorch; returns them, the output first."""
        if self.op.kind == "labels":
            labels = self.run()
            assert_labels_near(labels, self.plain(*(x.double().cpu() for x in self.inputs)), self.inputs[0])
            return [labels]
        fast, plain = self.of_inputs(self.fast), self.of_inputs(self.plain)
        grad_output = self.grad_output(grad_layout)
        actual, sizes = with_grad(fast, self.inputs, grad_output), self.sizes(grad_output)
        if self.op.kind == "loss":
            assert_loss_near(actual, plain, *self.inputs, grad_output, sizes[1], self.op.name == "softmax_loss")
        else:
            assert_all_near(actual, *(f(plain, self.inputs, grad_output) for f in (exactly, as_pytorch)), sizes)
        return actual

    def grad_output(self, layout="contiguous"):
        """A random gradient of the output."""
        output = self.run()
        if output.dim() != 4:
            layout = "contiguous"
        return randn(*output.shape, dtype=output.dtype, device=output.device, layout=layout)

    def sizes(self, grad_output):
        """What the numbers of the output and of each gradient are sums of, all taken as positive.

        Roundings are relative to these: a sum of large numbers can be small. Of a loss they are the weights alone,
        which a pixel's own loss and gradient are multiplied by.
        """
        grad_output = grad_output.double().abs()
        if self.op.kind == "linear":
            inputs = [x.detach().double().nan_to_num(0, 0, 0).abs().requires_grad_() for x in self.inputs]
            output = self.exactly(*inputs)
            return [output.detach(), *torch.autograd.grad(output, inputs, grad_output)]
        (logits,), (target, weight, pixel_weight) = self.inputs, self.others
        ignore_index, reduction = self.rest[-5:-3]
        counts = (target != ignore_index).double()
        total = counts if weight is None else counts * weight[target.long().clamp(0, len(weight) - 1)]
        counts = counts if weight is None else counts * weight.max()
        if pixel_weight is not None:
            counts, total = counts * pixel_weight, total * pixel_weight
        pixels, batch = max(target.numel(), 1), max(target.shape[0], 1)
        counts = counts * (1, 1 / total.sum().item() if total.any() else 0, 1, 1 / pixels, 1 / batch)[reduction]
        each = (counts * grad_output).unsqueeze(1).expand(-1, logits.shape[1], *target.shape[1:])
        if self.op.upsamples:
            each = reference.bilinear_upsample_backward(each, logits.shape[-2:], self.rest[3])
        return [counts if reduction == 0 else counts.sum(), each]

    def with_grad(self, grad_output):
        """The operation's output and the gradients of its inputs."""
        if self.op.kind == "labels":
            return [self.run()]
        return with_grad(self.of_inputs(self.fast), self.inputs, grad_output)


def assert_labels_near(actual, scores, logits):
    """Each label's float64 score is the largest, to a few units in the last place of a float32 (float64) score."""
    scores, actual = scores.cpu(), actual.cpu().long()
    if not actual.numel():
        assert actual.shape == scores[:, 0].shape
        return
    short = scores.amax(1) - scores.gather(1, actual.unsqueeze(1)).squeeze(1)
    eps = torch.finfo(torch.promote_types(logits.dtype, torch.float32)).eps
    assert short.max().item() <= 8 * eps * logits.abs().max().item()
    assert (actual == scores.argmax(1)).double().mean() > 0.9  # so ties are not what passes here


def _bilinear_upsample(sampling, values, batch, channels):
    def fast(x):
        return ops.bilinear_upsample(x, **sampling.options)

    return [values(batch, channels, *sampling.in_size)], [], fast, sampling.torch, (sampling.grid.numbers(),)


def _skip_fuse(sampling, values, batch, channels, crop=(0, 0), margin=(0, 0), skip_layout=None):
    (height, width), (top, left) = sampling.grid.size, crop
    options = _to_the_size(sampling) if margin == (0, 0) else {"grid": sampling.grid}

    def fast(coarse, skip):
        return ops.skip_fuse(coarse, skip, crop=crop, **options)

    def plain(coarse, skip):
        return sampling.torch(coarse) + skip[:, :, top : top + height, left : left + width]

    skip = (batch, channels, top + height + margin[0], left + width + margin[1])
    skip = values(*skip, layout=skip_layout) if skip_layout else values(*skip)
    inputs = [values(batch, channels, *sampling.in_size), skip]
    return inputs, [], fast, plain, (list(crop), sampling.grid.numbers())


def _softmax_loss(sampling, values, batch, channels, **options):
    logits = values(batch, channels, *sampling.grid.size)
    others, settings = _loss(logits, sampling.grid.size, **options)

    def fast(logits, target, weight=None, pixel_weight=None):
        return ops.softmax_loss(logits, target, weight, pixel_weight=pixel_weight, **settings)

    def plain(logits, target, weight=None, pixel_weight=None):
        return torch_loss(logits, target, weight, pixel_weight=pixel_weight, **settings)

    return [logits], others, fast, plain, _loss_rest(logits, others, (), **settings)


def _upsample_softmax_loss(sampling, values, batch, channels, **options):
    logits = values(batch, channels, *sampling.in_size)
    others, settings = _loss(logits, sampling.grid.size, **options)
    grid = _to_the_size(sampling)

    def fast(logits, target, weight=None, pixel_weight=None):
        return ops.upsample_softmax_loss(logits, target, weight, pixel_weight=pixel_weight, **grid, **settings)

    def plain(logits, target, weight=None, pixel_weight=None):
        return torch_loss(sampling.torch(logits), target, weight, pixel_weight=pixel_weight, **settings)

    return [logits], others, fast, plain, _loss_rest(logits, others, (sampling.grid.numbers(),), **settings)


def _upsample_argmax(sampling, values, batch, channels, dtype=torch.int16):
    def fast(logits):
        return ops.upsample_argmax(logits, dtype=dtype, **sampling.options)

    return [values(batch, channels, *sampling.in_size)], [], fast, sampling.torch, (sampling.grid.numbers(), dtype)


def _to_the_size(sampling):
    """The grid's keyword arguments for an operation that knows the size to go to without them."""
    if "size" in sampling.interpolate:
        return {"align_corners": sampling.interpolate.get("align_corners", False)}
    return {"grid": sampling.grid}


def _loss(logits, size, given="plain", reduction="mean", label_dtype=torch.int64):
    """The loss's tensors beside logits, and its settings; given is a name of loss_options."""
    batch, classes = logits.shape[:2]
    shape = (batch, *size)
    settings = loss_options(given, torch.empty(shape, device=logits.device), classes)
    ignore_index = settings.get("ignore_index", 255)
    target = labels(*shape, classes=classes, dtype=label_dtype, ignore_index=ignore_index, device=logits.device)
    target.view(-1)[:1] = classes - 1  # a mean over nothing is another test
    weights = settings.pop("weight", None), settings.pop("pixel_weight", None)
    return [target, *weights], {"reduction": reduction, **settings}


def _loss_rest(logits, others, grid, reduction, ignore_index=255, label_smoothing=0.0):
    target, *weights = others
    weights = [w if w is None else w.to(reference.accumulate_dtype(logits.dtype)) for w in weights]
    return target, *weights, *grid, ignore_index, REDUCTIONS.index(reduction), label_smoothing, True, False


_LOSS_VARIANTS = ({"reduction": "mean"}, {"reduction": "none"})
OPS = (
    Op("bilinear_upsample", _bilinear_upsample, lambda: nn.BilinearUpsample(scale_factor=2), "linear"),
    Op(
        "skip_fuse",
        _skip_fuse,
        lambda: nn.SkipFuse(crop=1),
        "linear",
        ({}, {"crop": (5, 2)}, {"crop": (0, 3), "margin": (4, 1)}),
    ),
    Op("softmax_loss", _softmax_loss, lambda: nn.SoftmaxLoss(torch.rand(5)), "loss", _LOSS_VARIANTS),
    Op(
        "upsample_softmax_loss",
        _upsample_softmax_loss,
        lambda: nn.UpsampleSoftmaxLoss(torch.rand(5)),
        "loss",
        _LOSS_VARIANTS,
    ),
    Op("upsample_argmax", _upsample_argmax, lambda: nn.UpsampleArgmax(scale_factor=2), "labels"),
)
LINEAR, LOSSES = (tuple(op for op in OPS if op.kind == kind) for kind in ("linear", "loss"))
DIFFERENTIABLE = (*LINEAR, *LOSSES)
