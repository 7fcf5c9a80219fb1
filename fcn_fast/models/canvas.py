"""What the published padding computes around an image depends on the weights alone: compute it once."""

import copy
from dataclasses import dataclass

import torch

from fcn_fast.grid import _by, _pair
from fcn_fast.models.stages import Trunk
from fcn_fast.models.variants import ConvLayer, Norm, Pool
from fcn_fast.reference import memory_format

__all__ = ["freeze_canvas"]


def freeze_canvas(model, size):
    """A copy of a model, with the same weights, that computes only what an image of this size reaches.

    With a padding of 100 before the first layer most of a map's border, and of the early maps much more, never sees the
    image. The copy keeps these parts and computes the windows inside them: at 500x500 265 of FCN-8s's 362 GFLOP. Its
    results are those of ``model`` up to the order of sums. Where weights change, or device or dtype, it computes the
    parts anew at the next call. It is for inference: nothing that it returns requires a gradient.

    Args:
        model: a :class:`fcn_fast.models.FCN`, in eval mode when the copy is called.
        size: (H, W) of the images, or one number for both.

    Returns:
        A :class:`fcn_fast.models.FCN` whose ``forward``, ``predict`` and ``loss`` take images of that size only.

    Raises:
        ValueError: a size below 1x1; when called, images of another size, or a model in training mode.
    """
    size = _pair("size", size)
    if min(size) < 1:
        raise ValueError(f"size: expected at least 1x1, got {_by(size)}")
    frozen = copy.copy(model)
    frozen._low_resolution = _Canvas(model, size)
    return frozen


@dataclass(frozen=True)
class _Axis:
    """A layer's part along an axis: the inputs that it reads, how many zeros before and after, the outputs it gives."""

    reads: tuple[int, int]
    zeros: tuple[int, int]
    gives: tuple[int, int]


@dataclass(frozen=True)
class _Step:
    """A layer on windows of its input and output."""

    stage: Trunk
    layer: ConvLayer | Norm | Pool
    rows: _Axis
    columns: _Axis

    def __call__(self, x, stream):
        if isinstance(self.layer, ConvLayer):
            return self.stage.conv_relu(self.layer.name + stream, x, (self.rows.zeros, self.columns.zeros))
        return self.stage.apply(self.layer, x, stream)

    @property
    def ends_skip(self):
        return self.stage.skip is not None and self.layer is self.stage.layers[-1]


class _Canvas:
    """What takes the place of a model's ``_low_resolution``.

    The layers go by blocks, each up to a pool. Within a block every layer reads as far around what the image has
    reached as those after it need; between blocks the window is put into a frame of what lies around it.
    """

    def __init__(self, model, size):
        self.model, self.size = model, size
        layers = _layers(model)
        rows, columns = (_along([layer for _, layer in layers], length) for length in size)
        steps = [_Step(*layer, *axes) for layer, *axes in zip(layers, rows, columns, strict=True)]
        ends = [i + 1 for i, step in enumerate(steps) if isinstance(step.layer, Pool)]
        self.blocks = [steps[i:j] for i, j in zip([0, *ends], [*ends, len(steps)], strict=True)]
        self.made_for = None

    @torch.no_grad()
    def __call__(self, x):
        self.model._check_image(x)
        if tuple(x.shape[-2:]) != self.size:
            raise ValueError(f"x: expected images of {_by(self.size)}, got shape {tuple(x.shape)}")
        if self.model.stage3.training:
            raise ValueError("model: expected one in eval mode, got one in training mode")
        made_for = _fingerprint(self.model, x)
        if made_for != self.made_for:
            self.frames, self.score_frames = self._compute_frames(torch.zeros_like(x[:1]))
            self.made_for = made_for

        streams, stage3 = self.model.variant.streams, self.model.stage3
        parts, window, scores = list(x.chunk(len(streams), 1)), ((0, self.size[0]), (0, self.size[1])), []
        for i, (block, frames) in enumerate(zip(self.blocks, self.frames, strict=True)):
            region = block[0].rows.reads, block[0].columns.reads
            parts = [_framed(*pair, window, region) for pair in zip(frames, parts, strict=True)]
            *steps, last = block
            for step in steps:
                parts = [step(part, stream) for part, stream in zip(parts, streams, strict=True)]
            window = last.rows.gives, last.columns.gives
            if last.ends_skip or i + 1 == len(self.blocks):
                parts = [last(part, stream) for part, stream in zip(parts, streams, strict=True)]
            else:  # a pool, which may write into the next frame itself
                following = self.blocks[i + 1][0]
                corner = window[0][0] - following.rows.reads[0], window[1][0] - following.columns.reads[0]
                pairs = zip(parts, self.frames[i + 1], strict=True)
                parts = [last.stage.max_pool(last.layer.kernel, part, frame, corner) for part, frame in pairs]
            if last.ends_skip:
                scores.append((_skip_scores(last.stage, parts), window))
        scores.append((stage3.scores("score_fr", parts), window))
        *skips, deepest = [_framed(f, *pair) for f, pair in zip(self.score_frames, scores, strict=True)]
        return stage3.fused(deepest, skips[::-1])

    def _compute_frames(self, nothing):
        """What each block reads, a list a stream, and the score maps, all of an empty image."""
        streams = self.model.variant.streams
        parts, frames, scores = list(nothing.chunk(len(streams), 1)), [], []
        for block in self.blocks:
            (top, bottom), (left, right) = block[0].rows.reads, block[0].columns.reads
            frames.append([part[:, :, top:bottom, left:right].clone() for part in parts])
            for step in block:
                parts = [step.stage.apply(step.layer, x, stream) for x, stream in zip(parts, streams, strict=True)]
            if block[-1].ends_skip:
                scores.append(_skip_scores(block[-1].stage, parts))
        return frames, [*scores, self.model.stage3.scores("score_fr", parts)]


def _layers(model):
    """[(stage, layer), ...] from the image to fc7."""
    layers = [(stage, layer) for stage in (model.stage1, model.stage2, model.stage3) for layer in stage.layers]
    for name in ("fc6", "fc7"):
        conv = getattr(model.stage3, name + model.variant.streams[0])
        layer = ConvLayer(name, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.padding[0])
        layers.append((model.stage3, layer))
    return layers


def _along(layers, length):
    """The :class:`_Axis` of each layer along an axis of the image."""
    lengths, reached = [length], [(0, length)]
    for layer in layers:
        kernel, stride, padding = _geometry(layer)
        first, end = reached[-1]
        if isinstance(layer, Pool):
            length = -(-(length - kernel) // stride) + 1
            length -= (length - 1) * stride >= lengths[-1]  # no window starts behind the end
        else:
            length = (length + 2 * padding - kernel) // stride + 1
        # Outputs that read at least one of the reached inputs.
        reached.append(
            (max(0, -((kernel - 1 - padding - first) // stride)), min(length, (end - 1 + padding) // stride + 1))
        )
        lengths.append(length)

    axes = []
    for i, layer in reversed(list(enumerate(layers))):
        kernel, stride, padding = _geometry(layer)
        ends_block = i + 1 == len(layers) or isinstance(layer, Pool)
        gives = reached[i + 1] if ends_block else axes[-1].reads
        first, end = gives[0] * stride - padding, (gives[1] - 1) * stride - padding + kernel
        zeros = max(0, -first), max(0, end - lengths[i])
        axes.append(_Axis((max(0, first), min(lengths[i], end)), zeros, gives))
    return axes[::-1]


def _geometry(layer):
    """(kernel, stride, padding)."""
    if isinstance(layer, ConvLayer):
        return layer.kernel, layer.stride, layer.padding
    return (layer.kernel, 2, 0) if isinstance(layer, Pool) else (1, 1, 0)


def _framed(frame, part, window, region=((0, None), (0, None))):
    """A batch's window of a map, in the frame of the region around it."""
    if part.shape[2:] == frame.shape[2:]:
        return part
    shape = (part.shape[0], *frame.shape[1:])
    whole = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=memory_format(part))
    whole.copy_(frame)
    (top, bottom), (left, right) = ((a - first, b - first) for (a, b), (first, _) in zip(window, region, strict=True))
    whole[:, :, top:bottom, left:right] = part
    return whole


def _skip_scores(stage, parts):
    return stage.scores(stage.skip, parts, stage.skip_scale)


def _fingerprint(model, x):
    """What the frames depend on: every weight as it is now, and how it is computed with."""
    weights = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]
    device, autocast = x.device.type, None
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        autocast = torch.get_autocast_dtype(device)
    return x.dtype, x.device, memory_format(x), autocast, *weights
