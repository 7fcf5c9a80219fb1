"""Caffe nets written from the published net.py files: prototxt, and weights as a caffemodel, byte by byte.

Nothing here comes from fcn_fast: it is what the package's nets and its reader are held against.
"""

import struct
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

VGG = ((1, 64, 2), (2, 128, 2), (3, 256, 3), (4, 512, 3), (5, 512, 3))


@dataclass
class Net:
    """A net under construction: prototxt and layers so far, {layer: arrays}, and the channels of each top.

    Without a seed its convolutions have no arrays.
    """

    height: int
    width: int
    narrow: float
    seed: int | None = 0
    text: list[str] = field(default_factory=list)
    layers: list[tuple] = field(default_factory=list)
    blobs: dict[str, list[np.ndarray]] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        self.random = np.random.default_rng(self.seed)

    def input(self, name, channels):
        shape = f"dim: 1 dim: {channels} dim: {self.height} dim: {self.width}"
        self.text.append(
            f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {shape} }} }} }}'
        )
        self.channels[name] = channels
        return name

    def layer(self, name, kind, bottoms, parameters="", channels=None, in_place=False, **settings):
        top = bottoms[0] if in_place else name
        wires = " ".join(f'bottom: "{bottom}"' for bottom in bottoms) + f' top: "{top}"'
        self.text.append(f'layer {{ name: "{name}" type: "{kind}" {wires} {parameters} }}')
        self.channels[top] = channels or self.channels[bottoms[0]]
        self.layers.append((name, kind, bottoms, top, settings))
        return top

    def scaled(self, channels, group=1):
        return max(1, round(channels * self.narrow / group)) * group

    def conv(self, bottom, name, out, kernel, stride=1, pad=0, group=1, relu=True):
        if self.seed is not None:
            shape = (out, self.channels[bottom] // group, kernel, kernel)
            deviation = (2 / np.prod(shape[1:])) ** 0.5
            self.blobs[name] = [self.random.normal(0, deviation, shape), self.random.normal(0, 0.1, out)]
        parameters = f"num_output: {out} kernel_size: {kernel} stride: {stride} pad: {pad} group: {group}"
        settings = {"stride": stride, "padding": pad, "groups": group}
        top = self.layer(name, "Convolution", [bottom], f"convolution_param {{ {parameters} }}", out, **settings)
        return self.layer(name + "_relu", "ReLU", [top], in_place=True) if relu else top

    def pool(self, bottom, name, kernel=2):
        parameters = f"pooling_param {{ pool: MAX kernel_size: {kernel} stride: 2 }}"
        return self.layer(name, "Pooling", [bottom], parameters, kernel=kernel)

    def norm(self, bottom, name):
        return self.layer(name, "LRN", [bottom], "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")

    def scale(self, bottom, name, value):
        self.blobs[name] = [np.full(self.channels[bottom], value)]
        return self.layer(name, "Scale", [bottom], f"scale_param {{ filler {{ value: {value} }} }}", value=value)

    def deconvolution(self, bottom, name, kernel, stride):
        count = self.channels[bottom]
        centre = kernel / 2 - 0.5
        line = 1 - abs(np.arange(kernel) - centre) / ((kernel + 1) // 2)
        self.blobs[name] = [np.einsum("ab,k,l->abkl", np.eye(count), line, line)]
        parameters = f"num_output: {count} kernel_size: {kernel} stride: {stride} bias_term: false"
        return self.layer(name, "Deconvolution", [bottom], f"convolution_param {{ {parameters} }}", stride=stride)

    def crop(self, bottom, reference, name, offset):
        return self.layer(
            name, "Crop", [bottom, reference], f"crop_param {{ axis: 2 offset: {offset} }}", offset=offset
        )

    def add(self, name, bottoms, coefficients=""):
        shares = [float(word) for word in coefficients.split() if word != "coeff:"] or [1.0] * len(bottoms)
        return self.layer(name, "Eltwise", bottoms, f"eltwise_param {{ operation: SUM {coefficients} }}", shares=shares)

    def prototxt(self):
        return "\n".join(self.text)


def trunk(net, data, suffix="", first="conv1_1"):
    """VGG-16 to fc7; the tops of pool3, pool4 and fc7."""
    top, pools = data, []
    for block, channels, convs in VGG:
        for i in range(1, convs + 1):
            name = (first if block == i == 1 else f"conv{block}_{i}") + suffix
            top = net.conv(top, name, net.scaled(channels), 3, pad=100 if block == i == 1 else 1)
        top = net.pool(top, f"pool{block}{suffix}")
        pools.append(top)
    top = net.conv(top, "fc6" + suffix, net.scaled(4096), 7)
    return pools[2], pools[3], net.conv(top, "fc7" + suffix, net.scaled(4096), 1)


def fuse(net, data, pool3, pool4, fc7, classes, stride, suffix="", scales=None):
    """The scores of one head at full resolution."""
    top = net.conv(fc7, "score_fr" + suffix, classes, 1, relu=False)
    if stride == 32:
        return net.crop(net.deconvolution(top, "upscore" + suffix, 64, 32), data, "score" + suffix, 19)
    up = net.deconvolution(top, "upscore2" + suffix, 4, 2)
    pool4 = net.scale(pool4, "scale_pool4", scales[0]) if scales else pool4
    skip = net.conv(pool4, "score_pool4" + suffix, classes, 1, relu=False)
    top = net.add("fuse_pool4" + suffix, [up, net.crop(skip, up, f"score_pool4{suffix}c", 5)])
    if stride == 16:
        return net.crop(net.deconvolution(top, "upscore16" + suffix, 32, 16), data, "score" + suffix, 27)
    up = net.deconvolution(top, "upscore_pool4" + suffix, 4, 2)
    pool3 = net.scale(pool3, "scale_pool3", scales[1]) if scales else pool3
    skip = net.conv(pool3, "score_pool3" + suffix, classes, 1, relu=False)
    top = net.add("fuse_pool3" + suffix, [up, net.crop(skip, up, f"score_pool3{suffix}c", 9)])
    return net.crop(net.deconvolution(top, "upscore8" + suffix, 16, 8), data, "score" + suffix, 31)


def vgg_net(net, classes=21, stride=32, scales=None, channels=3, first="conv1_1"):
    data = net.input("data", channels)
    fuse(net, data, *trunk(net, data, first=first), classes, stride, scales=scales)
    for name, scale in zip(("score_pool4", "score_pool3"), (net.seed is not None and scales) or (), strict=False):
        net.blobs[name][0] /= scale  # or the skips would be too small to see


def siftflow_net(net, stride):
    data = net.input("data", 3)
    tops = trunk(net, data)
    for suffix, classes in (("_sem", 33), ("_geo", 3)):
        fuse(net, data, *tops, classes, stride, suffix)


def color_hha_net(net):
    inputs = [net.input(name, 3) for name in ("color", "hha")]
    fc7 = [trunk(net, name, name)[2] for name in inputs]
    scores = [net.conv(top, "score_fr" + name, 40, 1, relu=False) for name, top in zip(inputs, fc7, strict=True)]
    top = net.add("score_fused", scores, "coeff: 0.5 coeff: 0.5")
    net.crop(net.deconvolution(top, "upscore", 64, 32), "color", "score", 19)


def alexnet_net(net):
    data = net.input("data", 3)
    top = net.pool(net.conv(data, "conv1", net.scaled(96, 2), 11, stride=4, pad=100), "pool1", 3)
    top = net.conv(net.norm(top, "norm1"), "conv2", net.scaled(256, 2), 5, pad=2, group=2)
    top = net.conv(net.norm(net.pool(top, "pool2", 3), "norm2"), "conv3", net.scaled(384, 2), 3, pad=1)
    top = net.conv(top, "conv4", net.scaled(384, 2), 3, pad=1, group=2)
    top = net.pool(net.conv(top, "conv5", net.scaled(256, 2), 3, pad=1, group=2), "pool5", 3)
    top = net.conv(net.conv(top, "fc6", net.scaled(4096), 6), "fc7", net.scaled(4096), 1)
    top = net.conv(top, "score_fr", 21, 1, relu=False)
    net.crop(net.deconvolution(top, "upscore", 63, 32), data, "score", 18)


NETS = {
    "voc-fcn32s": lambda net: vgg_net(net),
    "voc-fcn16s": lambda net: vgg_net(net, stride=16),
    "voc-fcn8s": lambda net: vgg_net(net, stride=8),
    "voc-fcn8s-atonce": lambda net: vgg_net(net, stride=8, scales=(0.01, 0.0001)),
    "voc-fcn-alexnet": alexnet_net,
    "nyud-fcn32s-color": lambda net: vgg_net(net, 40),
    "nyud-fcn32s-hha": lambda net: vgg_net(net, 40),
    "nyud-fcn32s-color-d": lambda net: vgg_net(net, 40, channels=4, first="conv1_1_bgrd"),
    "nyud-fcn32s-color-hha": color_hha_net,
    "siftflow-fcn32s": lambda net: siftflow_net(net, 32),
    "siftflow-fcn16s": lambda net: siftflow_net(net, 16),
    "siftflow-fcn8s": lambda net: siftflow_net(net, 8),
    "pascalcontext-fcn32s": lambda net: vgg_net(net, 60),
    "pascalcontext-fcn16s": lambda net: vgg_net(net, 60, 16),
    "pascalcontext-fcn8s": lambda net: vgg_net(net, 60, 8),
}


def build(name, height, width, narrow, seed=0):
    """The :class:`Net` of this published name."""
    net = Net(height, width, narrow, seed)
    NETS[name](net)
    return net


def run(net, params, x):
    """Every top of the net in plain PyTorch, {name: tensor}.

    Args:
        params: {published name: tensor}, the weights of the convolutions.
        x: (N, C, H, W), the channels of all inputs in turn.
    """
    names = [name for name in ("data", "color", "hha") if name in net.channels]
    tops = dict(zip(names, x.split([net.channels[name] for name in names], 1), strict=True))
    for name, kind, bottoms, top, settings in net.layers:
        inputs = [tops[bottom] for bottom in bottoms]
        tops[top] = _run_layer(kind, inputs, settings, name, net.blobs, params)
    return tops


def _run_layer(kind, inputs, settings, name, blobs, params):
    x = inputs[0]
    if kind == "Convolution":
        return F.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], **settings)
    if kind == "ReLU":
        return x.relu()
    if kind == "Pooling":
        return F.max_pool2d(x, settings["kernel"], 2, ceil_mode=True)
    if kind == "LRN":
        return torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)(x)
    if kind == "Scale":
        return x * settings["value"]
    if kind == "Deconvolution":
        diagonal = range(x.shape[1])  # all that is not zero; the dense filter takes minutes in float64
        weight = torch.from_numpy(blobs[name][0][diagonal, diagonal]).unsqueeze(1).to(x)
        return F.conv_transpose2d(x, weight, stride=settings["stride"], groups=x.shape[1])
    if kind == "Crop":
        offset, (height, width) = settings["offset"], inputs[1].shape[-2:]
        cropped = x[:, :, offset : offset + height, offset : offset + width]
        assert cropped.shape[-2:] == (height, width)  # Caffe checks that, a slice does not
        return cropped
    return sum(share * part for share, part in zip(settings["shares"], inputs, strict=True))


def caffemodel(blobs, form="layer", shapes="new", dtype="<f4"):
    """{layer: arrays} as the bytes of a NetParameter.

    Args:
        form: ``"layer"``, or ``"layers"`` for the V1 form.
        shapes: ``"new"`` BlobShape, or ``"old"`` num, channels, height and width.
        dtype: ``"<f4"`` as Caffe writes, or ``"<f8"``.
    """
    net = _bytes(1, b"a net") + b"".join(
        _bytes(100, _bytes(1, name.encode()) + _bytes(2, b"Some") + _blobs(7, arrays, shapes, dtype))
        if form == "layer"
        else _bytes(2, _bytes(4, name.encode()) + _number(5, 4) + _blobs(6, arrays, shapes, dtype))
        for name, arrays in blobs.items()
    )
    return net


def _blobs(field_number, arrays, shapes, dtype):
    return b"".join(_bytes(field_number, _blob(array, shapes, dtype)) for array in arrays)


def _blob(array, shapes, dtype):
    values = _bytes({"<f4": 5, "<f8": 8}[dtype], array.astype(dtype).tobytes())
    if shapes == "new":
        return values + _bytes(7, _bytes(1, b"".join(_varint(n) for n in array.shape)))
    four = (1,) * (4 - array.ndim) + array.shape
    return b"".join(_number(i, n) for i, n in enumerate(four, 1)) + values


def _varint(value):
    out = b""
    while value > 127:
        out += struct.pack("B", value & 127 | 128)
        value >>= 7
    return out + struct.pack("B", value)


def _number(field_number, value):
    return _varint(field_number << 3) + _varint(value)


def _bytes(field_number, value):
    return _varint(field_number << 3 | 2) + _varint(len(value)) + value
