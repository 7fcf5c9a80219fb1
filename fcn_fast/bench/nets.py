"""FCN-8s as it is measured: its three stages, where the paper has times to compare with, and whole."""

import functools
import math
from dataclasses import dataclass, replace

import torch

from fcn_fast import eager, models, ops
from fcn_fast.bench.cases import compiled
from fcn_fast.bench.timing import Call
from fcn_fast.bench.work import Limit

__all__ = ["PADDINGS", "PAPER", "STAGES", "Layer", "NetCase", "layers", "predict_cases", "stage_cases"]

CLASSES = 21
STAGES = ("stage1", "stage2", "stage3")
PADDINGS = ("caffe", "lean")
# "A Fuller Understanding of Fully Convolutional Networks", 500x500 pixels on a Maxwell Titan X, in ms.
PAPER = {"stage1": 60.0, "stage2": 18.7, "stage3": 23.0, "forward": 101.7}


@dataclass(frozen=True)
class NetCase:
    """A part of FCN-8s on one image of 21 classes, in channels_last, where PyTorch's convolutions are fastest.

    Args:
        part: a stage; ``"forward"``, the whole net to scores at full resolution; ``"predict"``, to its label map;
            ``"labels"``, what is left of that without the convolutions: fusion and label map.
        padding: as in :class:`fcn_fast.models.FCN`.
        height, width: of the image.
        dtype: of weights and image.
    """

    part: str
    padding: str = "caffe"
    height: int = 500
    width: int = 500
    dtype: str = "float32"

    direction = "forward"
    against = "float64"  # in eager PyTorch

    @property
    def group(self):
        return " ".join(["FCN-8s", *self.names])

    @property
    def names(self):
        """What tells the case from others."""
        unusual = [self.dtype] if self.dtype != "float32" else []
        return [self.part, f"{self.height}x{self.width}", self.padding, *unusual]

    @property
    def variants(self):
        """What is compared, the baseline first; of the whole net in the published geometry what
        :func:`fcn_fast.models.freeze_canvas` makes of it too."""
        freezes = ["canvas"] if self.part in ("forward", "predict") and self.padding == "caffe" else []
        return ("eager", "compile", "fcn_fast", *freezes)

    @property
    def facts(self):
        """What a record says of the case."""
        found = {
            "operation": f"FCN-8s {self.part}",
            "kind": self.padding,
            "size": f"{self.height}x{self.width}",
            "direction": self.direction,
            "dtype": self.dtype,
            "layout": "channels_last",
        }
        if self.part == "labels":
            return found
        done = self._layers()
        found |= {
            "flop": sum(layer.flop for layer in done),
            "bytes": sum(layer.numbers for layer in done) * self.torch_dtype.itemsize,
            "bytes_formula": "input, weights and output of each convolution",
        }
        return found

    @property
    def torch_dtype(self):
        return getattr(torch, self.dtype)

    def needs(self, variants, check):
        """Bytes that it takes at most, a rough figure: weights twice, and the largest maps."""
        margin = 200 if self.padding == "caffe" else 0
        weights, largest = 134_500_000, 64 * (self.height + margin) * (self.width + margin)
        if check and self.part != "labels":
            # In float64 PyTorch's convolutions write each input nine times, once for every tap of a filter.
            return (2 * 4 + 8) * weights + 8 * (9 + 3) * largest
        return 2 * 4 * weights + 8 * 4 * largest

    def tolerance(self, device):
        """As of an operation's case. On a GPU convolutions round float32 to TF32, and not always in the same way."""
        if device.type == "cuda":
            return 1e-2 if self.dtype == "float32" else 5e-2
        return 1e-3 if self.part in ("predict", "labels") else 1e-4

    def limit(self, rates):
        """What this machine takes at least, a convolution after another; see :class:`fcn_fast.bench.work.Limit`.

        Each takes the longer of computing at the rate of a matrix product and of moving its input, weights and output
        at the rate of a copy.
        """
        if self.part == "labels":
            return None
        computing = [layer.flop / rates[self.dtype] for layer in self._layers()]
        memory = [layer.numbers * self.torch_dtype.itemsize / rates["copy"] for layer in self._layers()]
        return Limit(sum(map(max, computing, memory)), sum(memory), sum(computing))

    def inputs(self, device):
        """The tensors that the functions take."""
        given = _features(self.padding, self.height, self.width, self.dtype, device)
        if self.part == "labels":
            net = _net("eager", self.padding, self.dtype, device)
            with torch.no_grad():
                return [net.stage3.deepest(given["stage3"][0]), *given["stage3"][1:]]
        return given[self.part if self.part in STAGES else "stage1"]

    def grad_output(self, device):
        return None

    def function(self, variant, device):
        """What a variant calls with :meth:`inputs`."""
        net = _net("fcn_fast" if variant in ("fcn_fast", "canvas") else "eager", self.padding, self.dtype, device)
        call = self._part(models.freeze_canvas(net, (self.height, self.width)) if variant == "canvas" else net)
        return compiled(call) if variant == "compile" else call

    def expected(self, device, inputs, grad):
        """The results in float64, as a :class:`Call` returns them."""
        exact = replace(self, dtype="float64").function("eager", device)
        call = Call(exact, [([x.double() for x in inputs], grad)], self.direction)
        return call(*call.prepare())

    def _part(self, net):
        size = (self.height, self.width)
        if self.part == "stage3":
            return lambda pool4, *skips: net.stage3(pool4, skips, size)
        if self.part == "labels":

            def labels(score_fr, *skips):
                scores = net.stage3.fused(score_fr, skips)
                return net.ops.upsample_argmax(scores, grid=net.stage3.last_grid(scores, size))

            return labels
        return {"forward": net, "predict": net.predict}.get(self.part) or getattr(net, self.part)

    def _layers(self):
        by_stage = layers(self.padding, self.height, self.width)
        return by_stage[self.part] if self.part in STAGES else [layer for stage in STAGES for layer in by_stage[stage]]


def stage_cases(device):
    """The stages and the whole of FCN-8s at 500x500 with both paddings, on a GPU in bfloat16 too."""
    dtypes = ("float32", "bfloat16") if device.type == "cuda" else ("float32",)
    parts = (*STAGES, "forward")
    return [NetCase(part, padding, dtype=dtype) for dtype in dtypes for padding in PADDINGS for part in parts]


def predict_cases(sizes):
    """From an image to its label map, and that without the convolutions, at sizes of (height, width)."""
    return [NetCase(part, height=height, width=width) for height, width in sizes for part in ("predict", "labels")]


@dataclass(frozen=True)
class Layer:
    """A convolution: its name, FLOP (twice the multiply-adds) and the numbers that it reads and writes."""

    name: str
    flop: int
    numbers: int


@functools.cache
def layers(padding, height=500, width=500):
    """{stage: [Layer, ...]} of FCN-8s on one image of this size, counted as it runs without numbers."""
    with torch.device("meta"):
        net = models.fcn8s(CLASSES, padding=padding).eval()
        image = torch.empty(1, 3, height, width)
    found = {stage: [] for stage in STAGES}

    def count(name, conv, inputs, output):
        stage, _, layer = name.partition(".")
        flop = 2 * output.numel() * math.prod(conv.weight.shape[1:])
        found[stage].append(Layer(layer, flop, inputs[0].numel() + conv.weight.numel() + output.numel()))

    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(functools.partial(count, name))
    with torch.no_grad():
        net(image)
    return found


@functools.cache
def _weights(device):
    torch.manual_seed(0)
    net = models.fcn8s(CLASSES).requires_grad_(False).to(device, memory_format=torch.channels_last)
    return net.state_dict()


@functools.lru_cache(maxsize=4)
def _net(side, padding, dtype, device):
    """FCN-8s with the operations of a side; all of them have the same weights."""
    with torch.device("meta"):
        net = models.fcn8s(CLASSES, padding=padding, ops={"eager": eager, "fcn_fast": ops}[side])
    weights = {name: weight.to(getattr(torch, dtype)) for name, weight in _weights(device).items()}
    net.load_state_dict(weights, assign=True)
    return net.eval().requires_grad_(False)


@functools.lru_cache(maxsize=1)
def _features(padding, height, width, dtype, device):
    """{stage: its inputs} for a random image."""
    net = _net("eager", padding, dtype, device)
    image = 50 * torch.randn(1, 3, height, width, device=device)
    image = image.to(getattr(torch, dtype)).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        pool3, score_pool3 = net.stage1(image)
        pool4, score_pool4 = net.stage2(pool3)
    return {"stage1": [image], "stage2": [pool3], "stage3": [pool4, score_pool4, score_pool3]}
