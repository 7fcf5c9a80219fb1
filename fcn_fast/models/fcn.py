"""The FCN family, in the geometry of the published nets (shelhamer/fcn.berkeleyvision.org): one class for all."""

import math
from dataclasses import replace

import torch
from torch import nn

import fcn_fast.ops
from fcn_fast.models.stages import Head, Trunk
from fcn_fast.models.variants import VARIANTS
from fcn_fast.ops._common import check_map, check_same_device

__all__ = ["FCN", "build", "fcn8s", "fcn8s_atonce", "fcn16s", "fcn32s", "fcn_alexnet"]

_LEARNED = {False: False, True: "dense", "dense": "dense", "grouped": "grouped"}


class FCN(nn.Module):
    """A fully convolutional network: three stages, each a module of its own.

    On VGG-16, stage1 is conv1_1 to pool3, stage2 conv4_1 to pool4, each with the score layer of its pool where the net
    fuses it; stage3 is conv5_1 to fc7, score_fr, fusion and upsampling. Layers are called as in the published nets:
    ``stage1.conv1_1.weight``. :func:`build` makes one by the name of a published net.

    The input of every method is what the published nets take: float (N, C, H, W) images. C is 3 for most: channels in
    the order blue, green, red, values from 0 to 255 minus the mean (104.00699, 116.66877, 122.67892 for VOC). Further
    channels (``model.variant.channels``) follow them. ``fcn_fast.data.transforms`` makes such input.

    A net of several heads (SIFT Flow) has {head: result} where others have a result.

    Padding:
        ``"caffe"`` is the published geometry, exactly: the first convolution has a padding of 100, so that images of
        every size from 1x1 have scores, and the published crops cut off what is too much. The deconvolutions read
        zeros outside their input: at the image's border the deep scores fade to 0.609 of their value (a side; in a
        corner the square of it), and count whole from 13, 21 and 25 px inwards (32s, 16s, 8s).

        ``"lean"`` has a padding of 1 there and of 3 in fc6, so that each map covers the image and no more: 40 % fewer
        FLOPs at 500x500. Deep scores lie at the centres of 32x32 blocks that start at the image's corner, 3 px from
        where ``"caffe"`` has them, and upsampling repeats the edge: a constant score stays constant up to the border.
        Layers, names and weights are the same, and scores agree where the receptive field (404 px) stays inside the
        image, at pixels 3 px apart; elsewhere they differ, as convolutions see a border of zeros at another distance.
        Only nets on VGG-16 have it.

    Args:
        variant: which net, a :class:`fcn_fast.models.Variant`.
        num_classes: channels of the scores; {head: channels} for a net of several heads; as published unless given.
        width: multiplies the channels of the trunk and of fc6 and fc7 (rounded, at least 1).
        padding: ``"caffe"`` or ``"lean"``.
        learned_upsampling: False for fixed bilinear upsampling; ``"dense"`` or ``"grouped"`` for learned filters that
            start bilinear, one for each pair of classes or one a class; True is ``"dense"``, the published shape.
            Learned upsampling holds scores at full resolution in :meth:`loss` and :meth:`predict` too.
        zero_scores: whether score layers start with zeros, as in the published training.
        ops: where the operations come from, ``fcn_fast.ops`` or, to compare with, ``fcn_fast.eager``: then the layers
            are PyTorch's too.

    Attributes:
        class_names: {head: names by label} of what it was trained on, with ``""`` for the only head; saved with the
            weights, empty where nobody says.

    Raises:
        TypeError: num_classes no int (or dict of them), or width no number.
        ValueError: num_classes below 1 or for other heads, a width that is not positive and finite, another padding or
            learned_upsampling.
    """

    def __init__(
        self,
        variant,
        num_classes=None,
        width=1.0,
        *,
        padding="caffe",
        learned_upsampling=False,
        zero_scores=False,
        ops=fcn_fast.ops,
    ):
        super().__init__()
        heads = _check_classes(num_classes, variant.heads)
        _check_options(variant, width, padding, learned_upsampling)
        self.variant, self.heads, self.width, self.padding = variant, heads, width, padding
        self.learned_upsampling = _LEARNED[learned_upsampling]
        self.num_classes = heads if list(heads) != [""] else heads[""]
        self.class_names = {}

        architecture = _with_first_layer(variant, padding)
        fusion = architecture.fusions[variant.stride]
        options = {"streams": variant.streams, "heads": heads, "ops": ops, "zero_scores": zero_scores}
        skips = {"skip": "score_pool3", "skip_scale": variant.skip_scales[1]} if variant.stride <= 8 else {}
        in_channels = len(variant.channels) // len(variant.streams)
        self.stage1 = Trunk(architecture.stages[0], in_channels, width, **skips, **options)
        skips = {"skip": "score_pool4", "skip_scale": variant.skip_scales[0]} if variant.stride <= 16 else {}
        self.stage2 = Trunk(architecture.stages[1], self.stage1.out_channels, width, **skips, **options)
        if padding == "lean":
            fusion = fusion.lean()
        in_channels = self.stage2.out_channels
        self.stage3 = Head(architecture, in_channels, width, fusion, self.learned_upsampling, **options)

    @property
    def ops(self):
        """Where the operations come from; set it to compare: ``model.ops = fcn_fast.eager``."""
        return self.stage3.ops

    @ops.setter
    def ops(self, ops):
        for stage in (self.stage1, self.stage2, self.stage3):
            stage.ops = ops

    def forward(self, x):
        """(N, C, H, W) images to full-resolution scores (N, num_classes, H, W).

        Raises:
            TypeError: x is no floating-point tensor, or not of the parameters' dtype outside autocast.
            ValueError: x is not (N, C, H, W) with at least one pixel, has other channels, or is on another device.
        """
        scores = self.stage3.upsampled(self._low_resolution(x), x.shape[-2:])
        parts = self._by_head(scores)
        return parts if self._several else parts[""]

    def loss(self, x, target, **kwargs):
        """The softmax loss of the scores of x, which are never held at full resolution (unless upsampling is learned).

        Args:
            x: (N, C, H, W) images.
            target: (N, H, W) labels; {head: labels} for a net of several heads, whose losses are added.
            **kwargs: as in :func:`fcn_fast.ops.upsample_softmax_loss`: weight, ignore_index, reduction and so on; a
                dict has one for each head. The published nets were trained with ``reduction="sum"``.

        Raises:
            TypeError, ValueError: as :meth:`forward` and :func:`fcn_fast.ops.upsample_softmax_loss`.
        """
        scores, grid = self._final(x)
        targets = target if self._several else {"": target}
        if not isinstance(targets, dict) or set(targets) != set(self.heads):
            got = list(target) if isinstance(target, dict) else type(target).__name__
            raise ValueError(f"target: expected a dict with the labels of {list(self.heads)}, got {got}")
        losses = []
        for head, part in self._by_head(scores).items():
            options = {name: value[head] if isinstance(value, dict) else value for name, value in kwargs.items()}
            if grid is None:
                losses.append(self.ops.softmax_loss(part, targets[head], **options))
            else:
                losses.append(self.ops.upsample_softmax_loss(part, targets[head], grid=grid, **options))
        return sum(losses[1:], losses[0])

    @torch.no_grad()
    def predict(self, x, **kwargs):
        """The label map (N, H, W) of x: ``model(x).argmax(1)`` without the scores at full resolution.

        Args:
            x: (N, C, H, W) images. Call ``eval()`` first, or dropout is on.
            **kwargs: dtype, as in :func:`fcn_fast.ops.upsample_argmax`.

        Raises:
            TypeError, ValueError: as :meth:`forward` and :func:`fcn_fast.ops.upsample_argmax`.
        """
        scores, grid = self._final(x)
        where = {"size": scores.shape[-2:]} if grid is None else {"grid": grid}
        parts = self._by_head(scores)
        labels = {head: self.ops.upsample_argmax(part, **where, **kwargs) for head, part in parts.items()}
        return labels if self._several else labels[""]

    @property
    def _several(self):
        return list(self.heads) != [""]

    def _by_head(self, scores):
        return dict(zip(self.heads, scores.split(list(self.heads.values()), 1), strict=True))

    def _final(self, x):
        """The last scores that are held, and the grid from them to the pixels; None where they are at the pixels."""
        scores = self._low_resolution(x)
        if self.learned_upsampling:
            return self.stage3.upsampled(scores, x.shape[-2:]), None
        return scores, self.stage3.last_grid(scores, x.shape[-2:])

    def _low_resolution(self, x):
        """The fused scores of x."""
        self._check_image(x)
        pool3, score_pool3 = self.stage1(x)
        pool4, score_pool4 = self.stage2(pool3)
        skips = [score for score in (score_pool4, score_pool3) if score is not None]
        return self.stage3.fused(self.stage3.deepest(pool4), skips)

    def _check_image(self, x):
        check_map("x", x)
        channels = self.variant.channels
        if x.shape[1] != len(channels):
            raise ValueError(
                f"x: expected {len(channels)} channels ({', '.join(channels)}), got shape {tuple(x.shape)}"
            )
        weight = self.stage3.get_parameter("fc7" + self.variant.streams[0] + ".weight")
        check_same_device("x", x, "the model", weight)
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x: expected the dtype of the model, {weight.dtype}, got {x.dtype}")


def build(name, num_classes=None, width=1.0, **options):
    """The net of this name, with random weights.

    Args:
        name: of the published net: one of :data:`fcn_fast.models.VARIANTS`, such as ``"voc-fcn8s"``.
        num_classes, width, **options: as in :class:`FCN`.

    Raises:
        ValueError: another name; and as :class:`FCN`.
    """
    if name not in VARIANTS:
        raise ValueError(f"name: expected one of {', '.join(VARIANTS)}, got {name!r}")
    return FCN(VARIANTS[name], num_classes, width, **options)


def fcn32s(num_classes=21, width=1.0, **options):
    """FCN-32s, without skips; see :class:`FCN`. 134 million parameters at 21 classes."""
    return build("voc-fcn32s", num_classes, width, **options)


def fcn16s(num_classes=21, width=1.0, **options):
    """FCN-16s, with score_pool4; see :class:`FCN`."""
    return build("voc-fcn16s", num_classes, width, **options)


def fcn8s(num_classes=21, width=1.0, **options):
    """FCN-8s, with score_pool4 and score_pool3; see :class:`FCN`."""
    return build("voc-fcn8s", num_classes, width, **options)


def fcn8s_atonce(num_classes=21, width=1.0, **options):
    """FCN-8s whose skips' features are scaled by 0.01 and 0.0001, so that it trains at once; see :class:`FCN`."""
    return build("voc-fcn8s-atonce", num_classes, width, **options)


def fcn_alexnet(num_classes=21, width=1.0, **options):
    """FCN-32s on AlexNet (CaffeNet); see :class:`FCN`."""
    return build("voc-fcn-alexnet", num_classes, width, **options)


def _with_first_layer(variant, padding):
    """The variant's architecture, its first layer renamed and padded as asked."""
    architecture = variant.architecture
    first, *rest = architecture.stages[0]
    changes = {
        "name": variant.first or first.name,
        "padding": first.padding if padding == "caffe" else first.kernel // 2,
    }
    stage1 = (replace(first, **changes), *rest)
    return replace(architecture, stages=(stage1, *architecture.stages[1:]))


def _check_classes(num_classes, heads):
    """{head: classes} as num_classes says, for a net of these heads."""
    if num_classes is None:
        return dict(heads)
    if list(heads) == [""]:
        num_classes = {"": num_classes}
    elif not isinstance(num_classes, dict) or set(num_classes) != set(heads):
        raise ValueError(f"num_classes: expected a dict with the classes of {list(heads)}, got {num_classes!r}")
    for classes in num_classes.values():
        if isinstance(classes, bool) or not isinstance(classes, int):
            raise TypeError(f"num_classes: expected an int, got {classes!r}")
        if classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {classes}")
    return {head: num_classes[head] for head in heads}


def _check_options(variant, width, padding, learned_upsampling):
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        raise TypeError(f"width: expected a number, got {width!r}")
    if not 0 < width < math.inf:
        raise ValueError(f"width: expected a positive number, got {width}")
    if padding not in ("caffe", "lean"):
        raise ValueError(f"padding: expected 'caffe' or 'lean', got {padding!r}")
    if padding == "lean" and not variant.architecture.lean:
        raise ValueError(f"padding: expected 'caffe' for {variant.name}, as only nets on VGG-16 have 'lean'")
    if learned_upsampling not in _LEARNED:
        raise ValueError(f"learned_upsampling: expected a bool, 'dense' or 'grouped', got {learned_upsampling!r}")
