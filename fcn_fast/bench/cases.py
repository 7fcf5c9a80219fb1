"""The operations at the sizes of usual data sets, as they are measured.

A case is one operation at one size, direction, dtype and layout. Its variants compute the same from the same inputs:
eager PyTorch as its users write it (``fcn_fast.eager``), torch.compile of that, and fcn_fast.
"""

import math
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fcn_fast import eager, ops
from fcn_fast.bench import work
from fcn_fast.bench.timing import Call
from fcn_fast.grid import BilinearGrid
from fcn_fast.models.stages import Deconvolution
from fcn_fast.ops._common import IGNORED

__all__ = ["ADE20K", "CITYSCAPES", "OPERATIONS", "SIZES", "VOC", "Case", "Size", "compiled", "operation_cases"]

OPERATIONS = ("upsample_softmax_loss", "softmax_loss", "bilinear_upsample", "skip_fuse", "upsample_argmax")
# The ways to do an operation.
KINDS = {
    "bilinear_upsample": ("resize", "deconvolution"),
    "skip_fuse": ("resize", "deconvolution"),
    "upsample_argmax": ("smooth", "random"),
}
DTYPES, LAYOUTS = ("float32", "bfloat16", "float16"), ("contiguous", "channels_last")
LOSS_SCALE = 1024.0  # without one the gradients of a mean over a million pixels are zero in float16
CROP = 9  # of the skip that a deconvolution is fused with, at each side


@dataclass(frozen=True)
class Size:
    """Scores of a data set: batch, classes, height and width of the low-resolution map, its factor to the pixels."""

    name: str
    batch: int
    classes: int
    height: int
    width: int
    stride: int

    @property
    def title(self):
        return f"{self.name} {self.batch}x{self.classes}x{self.height}x{self.width}, x{self.stride}"


VOC = Size("VOC", 1, 21, 63, 63, 8)
CITYSCAPES = Size("Cityscapes", 1, 19, 128, 256, 8)
ADE20K = Size("ADE20K", 2, 150, 128, 128, 4)
SIZES = (VOC, CITYSCAPES, ADE20K)
FUSION = Size("FCN-8s", 1, 21, 34, 34, 2)  # its second fusion, 34x34 to 70x70: the call costs as much as the work


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Args:
        operation: name in :data:`OPERATIONS`.
        size: the scores.
        direction: ``"forward"``, without a graph; ``"backward"``, the gradients alone; ``"both"``.
        kind: which way, of those the operation has: upsampling as F.interpolate does it or by Caffe's deconvolution
            and crop; scores as smooth as a network's, where few classes can win a pixel, or random ones.
        dtype, layout: of the scores; ``"contiguous"`` or ``"channels_last"``.
    """

    operation: str
    size: Size
    direction: str = "forward"
    kind: str = ""
    dtype: str = "float32"
    layout: str = "contiguous"

    against = "float64"  # what its errors are measured against, in eager PyTorch

    @property
    def group(self):
        return " ".join([self.operation, *self.names])

    @property
    def names(self):
        """What tells the case from others of its operation."""
        unusual = [name for name in (self.dtype, self.layout) if name not in ("float32", "contiguous")]
        return [*([self.kind] if self.kind else []), self.size.name, *unusual, self.direction]

    @property
    def variants(self):
        """What is compared, the baseline first: where it is a deconvolution, PyTorch's grouped one, and at the
        published nets' sizes the dense one that they have."""
        if self.kind != "deconvolution":
            return ("eager", "compile", "fcn_fast")
        dense = ("dense",) if self.size in (VOC, FUSION) else ()
        return ("grouped", *dense, "compile", "fcn_fast")

    @property
    def facts(self):
        """What a record says of the case."""
        size = self.size
        return {
            "operation": self.operation,
            "kind": self.kind,
            "size": size.name,
            "shape": [size.batch, size.classes, size.height, size.width],
            "stride": size.stride,
            "direction": self.direction,
            "dtype": self.dtype,
            "layout": self.layout,
            "flop": work.flop(self),
            "bytes": work.transferred(self),
            "bytes_formula": work.formula(self),
        }

    @property
    def pixels(self):
        """(H, W) of the output."""
        size = self.size
        # A fusion takes all that the deconvolution gives.
        more = 1 if self.operation == "skip_fuse" and self.kind == "deconvolution" else 0
        return size.stride * (size.height + more), size.stride * (size.width + more)

    @property
    def low(self):
        """Shape of the low-resolution scores."""
        return self.size.batch, self.size.classes, self.size.height, self.size.width

    @property
    def high(self):
        """Shape of the scores at full resolution."""
        return self.size.batch, self.size.classes, *self.pixels

    @property
    def torch_dtype(self):
        return getattr(torch, self.dtype)

    @property
    def label_dtype(self):
        """int64 as F.cross_entropy wants it; of a label map the smallest that holds the classes."""
        if self.operation != "upsample_argmax":
            return torch.int64
        return torch.uint8 if self.size.classes <= 256 else torch.int16

    def needs(self, variants, check):
        """Bytes that these variants take at most, checked against float64 or not; a rough figure."""
        if set(variants) == {"fcn_fast"} and not check:
            maps = 0 if self.operation in ("upsample_argmax", "upsample_softmax_loss") else 1
        else:
            maps = {"upsample_argmax": 2, "bilinear_upsample": 2}.get(self.operation, 3)
            maps += 3 * (self.kind == "deconvolution")
        # In float64 there are twice the bytes, of the inputs too; and peak memory is measured on inputs of its own.
        return (1 + check) * (work.transferred(self) + 4 * maps * math.prod(self.high))

    def tolerance(self, device):
        """How large an error of fcn_fast may be, or which share of its labels may differ."""
        if self.operation == "upsample_argmax":
            return {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}[self.dtype]
        return {"float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}[self.dtype]

    def limit(self, rates):
        """What this machine takes at least; see :func:`fcn_fast.bench.work.limit`."""
        return work.limit(self, rates)

    def inputs(self, device):
        """The tensors that the functions take; the scores come first, in the case's dtype and layout."""
        if self.operation == "skip_fuse":
            margin = 2 * CROP if self.kind == "deconvolution" else 0
            return [self._scores(self.low, device), self._scores([n + margin for n in self.pixels], device)]
        if self.operation == "softmax_loss":
            return [self._scores(self.high, device), self._labels(device)]
        scores = self._scores(self.low, device, smooth=self.kind != "random")
        return [scores, self._labels(device)] if self.operation == "upsample_softmax_loss" else [scores]

    def grad_output(self, device):
        """What the gradients start from: of a loss 1 (None), in float16 as much as a scaler would have."""
        if self.direction == "forward":
            return None
        if self.operation.endswith("loss"):
            return torch.tensor(LOSS_SCALE, device=device) if self.dtype == "float16" else None
        return self._scores(self.high, device)

    def function(self, variant, device):
        """What a variant calls with :meth:`inputs`."""
        options = self._options()
        if variant == "dense":
            return self._dense(device, options)
        plain = getattr(ops if variant == "fcn_fast" else eager, self.operation)

        def call(*inputs):
            return plain(*inputs, **options)

        return compiled(call) if variant == "compile" else call

    def expected(self, device, inputs, grad):
        """The results in float64, one list as a :class:`Call` returns it."""
        inputs = [x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in inputs]
        grad = None if grad is None else grad.double()
        call = Call(self.function(self.variants[0], device), [(inputs, grad)], self.direction)
        return call(*call.prepare())

    def _options(self):
        low, stride = (self.size.height, self.size.width), self.size.stride
        if self.kind == "deconvolution" and self.operation == "skip_fuse":
            return {"grid": BilinearGrid.deconvolution(low, stride), "crop": CROP}
        if self.kind == "deconvolution":
            return {"grid": BilinearGrid.deconvolution(low, stride, crop=stride // 2, size=self.pixels)}
        if self.operation == "upsample_argmax":
            return {"size": self.pixels, "dtype": self.label_dtype}
        if self.operation.endswith("loss"):
            return {"ignore_index": IGNORED}  # there are up to a thousand classes
        return {"size": self.pixels} if self.operation == "bilinear_upsample" else {}

    def _dense(self, device, options):
        """Caffe's own: a filter for each pair of classes, of which only the diagonal is not zero."""
        size = self.size
        layer = Deconvolution(size.classes, 2 * size.stride, size.stride, grouped=False, border="zero")
        layer = layer.requires_grad_(False).to(device, self.torch_dtype)
        if self.operation == "bilinear_upsample":
            return lambda low: layer(low, size.stride // 2, self.pixels)
        top, (height, width) = options["crop"], self.pixels
        return lambda coarse, skip: layer(coarse, 0) + skip[:, :, top : top + height, top : top + width]

    def _scores(self, shape, device, smooth=False):
        """Random scores; smooth ones form regions, as a network's do: a random map of a 16th of the size, and noise."""
        shape = (self.size.batch, self.size.classes, *shape[-2:])
        if smooth:
            coarse = torch.randn(*shape[:2], *(math.ceil(n / 16) for n in shape[2:]), device=device)
            scores = F.interpolate(coarse, shape[2:], mode="bilinear") * 8
            scores += 0.5 * torch.randn_like(scores)
        else:
            scores = torch.randn(*shape, device=device)
        layout = torch.channels_last if self.layout == "channels_last" else torch.contiguous_format
        return scores.to(self.torch_dtype).contiguous(memory_format=layout)

    def _labels(self, device):
        """Labels in blocks of 16 pixels, a twentieth of them ignored; int64, as F.cross_entropy wants them."""
        blocks = torch.randint(self.size.classes, (self.size.batch, *(math.ceil(n / 16) for n in self.pixels)))
        ignored = torch.rand(blocks.shape) < 0.05
        ignored.view(-1)[0] = False  # a mean over nothing is NaN in PyTorch
        blocks[ignored] = IGNORED
        whole = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
        return whole[:, : self.pixels[0], : self.pixels[1]].contiguous().to(device)


def compiled(function):
    """torch.compile for these shapes, without its warning that it looks into eager's cache of filters."""
    function = torch.compile(function, dynamic=False)

    def call(*inputs):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
            return function(*inputs)

    return call


def operation_cases(sizes=SIZES, full=(VOC,), dtypes=DTYPES, layouts=LAYOUTS, operations=OPERATIONS):
    """The cases of these sizes.

    Args:
        sizes: of which at least the fused loss is measured, forward and backward.
        full: the sizes of which everything is.
        dtypes, layouts: other than float32 and contiguous ones have one case an operation and size.
        operations: names in :data:`OPERATIONS`.

    Returns:
        list of :class:`Case`, those of an operation together.
    """
    cases = []
    for operation in operations:
        kinds = KINDS.get(operation, ("",))
        trains = operation != "upsample_argmax"
        directions = ("forward", "backward", "both") if trains else ("forward",)
        for size in sizes:
            if size not in full:
                if operation == OPERATIONS[0]:
                    cases.append(Case(operation, size, "both"))
                continue
            cases += [Case(operation, size, direction, kind) for kind in kinds for direction in directions]
            for dtype in dtypes:
                for layout in layouts:
                    if (dtype == "float32") != (layout == "contiguous"):
                        cases.append(Case(operation, size, directions[-1], kinds[0], dtype, layout))
        if operation == "skip_fuse" and full:
            cases.append(Case(operation, FUSION, "forward", "deconvolution"))
    return cases
