"""The three stages of a fully convolutional network, as modules whose layers are called as in the published nets."""

import functools
import importlib
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from fcn_fast import eager, kernels
from fcn_fast.models.variants import ConvLayer, Pool
from fcn_fast.ops._common import _is_seen
from fcn_fast.reference import memory_format

__all__ = ["Conv", "Deconvolution", "Head", "Trunk", "bilinear_filter", "head_suffix"]

# Numbers: a GPU pools fewer in less time than Python takes to launch a kernel of ours, if not from a CUDA graph.
LARGE = 1 << 24
_LOADED = set()  # kernels that pool, each of its dtype, device and so on


class Conv(nn.Conv2d):
    """A convolution that starts with Kaiming normal weights, which keep activations in range, and no bias."""

    def reset_parameters(self):
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)


def bilinear_filter(kernel):
    """Caffe's bilinear filler: (kernel, kernel), float64."""
    factor = (kernel + 1) // 2
    centre = (kernel - 1) / (2 * factor)
    line = 1 - (torch.arange(kernel, dtype=torch.float64) / factor - centre).abs()
    return line[:, None] * line


class Deconvolution(nn.Module):
    """Learned upsampling without a bias, which starts bilinear.

    Args:
        channels: of input and output.
        kernel, stride: as in ``torch.nn.ConvTranspose2d``.
        grouped: one filter a channel, (C, 1, k, k), instead of one for each pair of them, (C, C, k, k).
        border: ``"clamp"`` repeats the edge of the input, so that a constant stays one under the bilinear filter.
    """

    def __init__(self, channels, kernel, stride, grouped, border):
        super().__init__()
        self.stride, self.border = stride, border
        self.groups = channels if grouped else 1
        weight = torch.zeros(channels, channels // self.groups, kernel, kernel)
        diagonal = range(channels)
        weight[diagonal, 0 if grouped else diagonal] = bilinear_filter(kernel).to(weight)
        self.weight = nn.Parameter(weight)

    def forward(self, x, crop, size=None):
        """(N, C, h, w) to (N, C, H, W): ``size``, or everything after the crop at the top and left."""
        if self.border == "clamp":
            x = F.pad(x, (1, 1, 1, 1), "replicate")
            # The added pixel, and the half stride by which a deconvolution's output exceeds the input's cells.
            crop += self.stride + self.stride // 2
        x = F.conv_transpose2d(x, self.weight, stride=self.stride, groups=self.groups)[:, :, crop:, crop:]
        return x if size is None else x[:, :, : size[0], : size[1]]


class Trunk(nn.Module):
    """Convolutions with ReLUs, pools and norms, and the score layers on the last pool if it is a skip.

    A net of several streams has these layers for each, on its share of the channels.

    Args:
        layers: the :class:`ConvLayer`, :class:`Pool` and :class:`Norm` in order.
        in_channels: channels of the input, of one stream.
        width: multiplies the channels of the layers.
        streams: names of the streams; they end the names of the layers.
        heads: {head: classes}.
        ops: where the operations come from: ``fcn_fast.ops``, or ``fcn_fast.eager`` for layers that are PyTorch's too.
        skip: name of the score layers; None for no score layers.
        skip_scale: what the features are multiplied by for the score layers.
        zero_scores: whether score layers start with zeros.
    """

    def __init__(
        self, layers, in_channels, width, *, streams, heads, ops, skip=None, skip_scale=1.0, zero_scores=False
    ):
        super().__init__()
        self.ops = ops
        self.layers, self.streams, self.heads = layers, streams, heads
        self.skip, self.skip_scale, self.zero_scores = skip, skip_scale, zero_scores
        # Every layer may feed a grouped one.
        multiple = max(layer.groups for layer in layers if isinstance(layer, ConvLayer))
        for stream in streams:
            self.out_channels = in_channels
            for layer in layers:
                if isinstance(layer, ConvLayer):
                    conv = _conv(layer, self.out_channels, width, multiple)
                    setattr(self, layer.name + stream, conv)
                    self.out_channels = conv.out_channels
        if skip:
            self.add_scores(skip, self.out_channels)

    def forward(self, x):
        """(N, C, h, w) features to the last pool (N, C', h', w') and its scores (N, classes, h', w') or None."""
        parts = self.features(x)
        scores = self.scores(self.skip, parts, self.skip_scale) if self.skip else None
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1), scores

    def features(self, x):
        """What the layers make of each stream's share of x."""
        return [
            self._run(part, stream) for part, stream in zip(x.chunk(len(self.streams), 1), self.streams, strict=True)
        ]

    def apply(self, layer, x, stream):
        """One of the layers, of one stream."""
        if isinstance(layer, ConvLayer):
            return self.conv_relu(layer.name + stream, x)
        if isinstance(layer, Pool):
            return self.max_pool(layer.kernel, x)
        return F.local_response_norm(x, 5, 1e-4, 0.75)

    def conv_relu(self, name, x, zeros=None):
        """ReLU of the convolution of this name, with these zeros around x, ((top, bottom), (left, right)), or its own.

        In inference on a GPU both are one kernel of cuDNN, which adds the bias before it rounds. It need not pass NaN
        on: docs/reliability.md.
        """
        conv = getattr(self, name)
        fuses = self.ops is not eager and _fuses(conv, x)
        if zeros is None and not fuses:
            return F.relu(conv(x), inplace=True)  # a call, for whoever has put hooks there
        (top, bottom), (left, right) = zeros or [(zeros, zeros) for zeros in conv.padding]
        weight, around, channels = conv.weight, [0, 0, 0, 0], 0
        if top != bottom or left != right:
            around, top, left = [left, right, top, bottom], 0, 0
        if fuses:
            # Tensor cores take 16 bytes of channels: zeros next to the few of an image.
            channels = max(0, 16 // x.itemsize - x.shape[1])
            weight = F.pad(weight, (0, 0, 0, 0, 0, channels)) if channels else weight
        if any(around) or channels:
            x = F.pad(x, (*around, 0, channels))
        rest = weight, conv.bias, conv.stride, (top, left), conv.dilation, conv.groups
        return torch.cudnn_convolution_relu(x, *rest) if fuses else F.relu(F.conv2d(x, *rest), inplace=True)

    def max_pool(self, kernel, x, frame=None, corner=(0, 0)):
        """A pool; in inference on a GPU also its window of a frame, (1, C, H, W), all of which is then returned."""
        if kernel == 2 and self.ops is not eager and _is_inference(x) and memory_format(x) == torch.channels_last:
            if _is_worth_it(x, frame):
                return kernels.max_pool(x, frame, corner)
        return F.max_pool2d(x, kernel, 2, ceil_mode=True)

    def _run(self, x, stream):
        for layer in self.layers:
            x = self.apply(layer, x, stream)
        return x

    def __getstate__(self):
        # A Python module can be neither copied nor pickled; its name can.
        return {**self.__dict__, "ops": self.ops.__name__}

    def __setstate__(self, state):
        super().__setstate__({**state, "ops": importlib.import_module(state["ops"])})

    def add_scores(self, name, in_channels):
        """Add the 1x1 score layers of this name: one a head and stream."""
        for stream in self.streams:
            for head, classes in self.heads.items():
                conv = Conv(in_channels, classes, 1)
                if self.zero_scores:
                    nn.init.zeros_(conv.weight)
                setattr(self, name + head_suffix(head) + stream, conv)

    def scores(self, name, parts, scale=1.0):
        """The scores of ``parts``, the features of each stream: the heads' classes in turn, the mean of the streams."""
        by_stream = []
        for part, stream in zip(parts, self.streams, strict=True):
            layers = [getattr(self, name + head_suffix(head) + stream) for head in self.heads]
            # Scaling the small weight is scaling the features, without another copy of them.
            heads = [layer(part) if scale == 1 else _scaled_conv(layer, part, scale) for layer in layers]
            by_stream.append(heads[0] if len(heads) == 1 else torch.cat(heads, 1))
        return by_stream[0] if len(by_stream) == 1 else sum(scores / len(by_stream) for scores in by_stream)


class Head(Trunk):
    """Stage 3: the last convolutions to fc7, score_fr, the fusion with the skips and the last upsampling.

    Args:
        architecture: the trunk, an :class:`Architecture`.
        in_channels, width, streams, heads, ops, zero_scores: as in :class:`Trunk`.
        fusion: how scores return to full resolution.
        learned: False, or how the filters of learned upsampling are made, ``"dense"`` or ``"grouped"``.
    """

    def __init__(self, architecture, in_channels, width, fusion, learned, **options):
        super().__init__(architecture.stages[2], in_channels, width, **options)
        self.fusion, self.learned = fusion, learned
        fc6 = ConvLayer("fc6", 4096, architecture.fc6, padding=architecture.fc6 // 2 if fusion.border == "clamp" else 0)
        for stream in self.streams:
            conv = _conv(fc6, self.out_channels, width)
            setattr(self, "fc6" + stream, conv)
            setattr(self, "fc7" + stream, Conv(conv.out_channels, conv.out_channels, 1))
        self.dropout = nn.Dropout(0.5)
        self.add_scores("score_fr", conv.out_channels)
        if learned:
            for name in fusion.names:
                kernel, stride = (fusion.kernel, fusion.stride) if name == fusion.names[-1] else (4, 2)
                for head, classes in self.heads.items():
                    layer = Deconvolution(classes, kernel, stride, learned == "grouped", fusion.border)
                    setattr(self, name + head_suffix(head), layer)

    def forward(self, pool4, skips, size):
        """Full-resolution scores.

        Args:
            pool4: (N, C, h, w), what stage 2 made.
            skips: the scores to fuse, score_pool4 first, as many as the net has.
            size: (H, W) of the image.

        Returns:
            (N, classes, H, W).
        """
        return self.upsampled(self.fused(self.deepest(pool4), skips), size)

    def deepest(self, pool4):
        """score_fr: the scores of the deepest layer, 32 px apart."""
        parts = self.features(pool4)
        for i, stream in enumerate(self.streams):
            for name in ("fc6", "fc7"):
                parts[i] = self.dropout(self.conv_relu(name + stream, parts[i]))
        return self.scores("score_fr", parts)

    def fused(self, scores, skips):
        """The scores with every skip added, ``fusion.stride`` px apart."""
        for name, skip, crop in zip(self.fusion.names[:-1], skips, self.fusion.skip_crops, strict=True):
            if self.learned:
                size = skip.shape[-2:] if self.fusion.border == "clamp" else None
                up = self._deconvolve(name, scores, 0, size)
                scores = up + skip[:, :, crop : crop + up.shape[2], crop : crop + up.shape[3]]
            else:
                grid = self.fusion.skip_grid(scores.shape[-2:], skip.shape[-2:])
                scores = self.ops.skip_fuse(scores, skip, grid=grid, crop=crop)
        return scores

    def upsampled(self, scores, size):
        """The fused scores at the pixels of an image of this (H, W)."""
        if self.learned:
            return self._deconvolve(self.fusion.names[-1], scores, self.fusion.crop, size)
        return self.ops.bilinear_upsample(scores, grid=self.last_grid(scores, size))

    def last_grid(self, scores, size):
        """The grid from the fused scores to an image of this (H, W), where upsampling is not learned."""
        return self.fusion.last_grid(scores.shape[-2:], size)

    def _deconvolve(self, name, scores, crop, size):
        parts = scores.split(list(self.heads.values()), 1)
        parts = [
            getattr(self, name + head_suffix(head))(part, crop, size)
            for head, part in zip(self.heads, parts, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def head_suffix(head):
    """What the names of a head's layers end in."""
    return f"_{head}" if head else ""


def _conv(layer, in_channels, width, multiple=1):
    channels = max(1, round(layer.channels * width / multiple)) * multiple
    return Conv(in_channels, channels, layer.kernel, layer.stride, layer.padding, groups=layer.groups)


def _scaled_conv(conv, x, scale):
    return F.conv2d(x, conv.weight * scale, conv.bias)


def _fuses(conv, x):
    """Whether cuDNN is to add the bias and make the ReLU of a convolution too."""
    if _is_changed(conv):
        return False
    weight, bias = conv.weight, conv.bias
    # It takes what it is given, without a check. Of filters larger than 3x3 it may have nothing but slow ones with a
    # ReLU: fc6 took 3.7 ms on an H200, and 0.17 ms without.
    return (
        _is_inference(x, weight, bias)
        and x.dim() == 4
        and x.shape[1] == weight.shape[1]
        and conv.groups == 1
        and max(conv.kernel_size) <= 3
        and len(x) * len(weight) * math.prod(n + 2 * p for n, p in zip(x.shape[2:], conv.padding, strict=True)) < 2**31
        and torch.backends.cudnn.is_available()
        and torch.backends.cudnn.enabled
        and not (torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
        and not torch.is_autocast_enabled("cuda")
    )


def _is_worth_it(x, frame):
    """Whether to pool by our kernel: a large map, or in a CUDA graph; once outside of one, where it can be loaded."""
    kernel = x.dtype, x.device, x.shape[1], frame is None
    capturing = torch.cuda.is_current_stream_capturing()
    if kernel in _LOADED:
        return capturing or x.numel() >= LARGE
    if not capturing:
        _LOADED.add(kernel)
    return not capturing


def _is_changed(conv):
    """Whether a call of the convolution would do more than convolve."""
    hooks = conv._forward_hooks, conv._forward_pre_hooks, conv._backward_hooks, conv._backward_pre_hooks
    return type(conv) is not Conv or "forward" in vars(conv) or any(hooks) or nn.modules.module._has_any_global_hook()


def _is_inference(*tensors):
    """Whether these are plain tensors on one NVIDIA GPU, and nobody differentiates or looks at what becomes of them."""
    return (
        not torch.compiler.is_compiling()
        and all(type(tensor) in (torch.Tensor, nn.Parameter) and _on_gpu(tensor) for tensor in tensors)
        and len({(tensor.device, tensor.dtype) for tensor in tensors}) == 1
        and tensors[0].dtype in (torch.bfloat16, torch.float16, torch.float32)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not (forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled())
        and not torch._C._len_torch_dispatch_stack()
        and not _is_seen(tensors)
    )


def _on_gpu(tensor):
    return tensor.is_cuda and torch.version.hip is None and _knows_bfloat16(tensor.get_device())


@functools.cache
def _knows_bfloat16(index):
    return torch.cuda.get_device_capability(index) >= (8, 0)
