"""FCN-32s, FCN-16s and FCN-8s on VGG-16, in the geometry of the published nets (shelhamer/fcn.berkeleyvision.org)."""

import importlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import fcn_fast.ops
from fcn_fast.grid import BilinearGrid
from fcn_fast.ops._common import check_map, check_same_device

__all__ = ["FCN", "fcn16s", "fcn32s", "fcn8s"]

# Number of the block, its channels, how many 3x3 convolutions it has; each block ends in a pool.
_STAGE1 = ((1, 64, 2), (2, 128, 2), (3, 256, 3))
_STAGE2 = ((4, 512, 3),)
_STAGE3 = ((5, 512, 3),)


@dataclass(frozen=True)
class Fusion:
    """How scores return to full resolution: the Crop offsets of a net.

    Args:
        stride: of the last deconvolution, whose kernel is twice that.
        skip_crops: offset of each fused skip, score_pool4 first; its deconvolution has stride 2 and kernel 4.
        crop: offset of the last crop, which cuts the scores to the image.
    """

    stride: int
    skip_crops: tuple[int, ...]
    crop: int


FCN32S = Fusion(stride=32, skip_crops=(), crop=19)
FCN16S = Fusion(stride=16, skip_crops=(5,), crop=27)
FCN8S = Fusion(stride=8, skip_crops=(5, 9), crop=31)


class Conv(nn.Conv2d):
    """A convolution that starts with Kaiming normal weights, which keep activations in range, and no bias."""

    def reset_parameters(self):
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)


class Trunk(nn.Module):
    """Blocks of 3x3 convolutions, each with ReLUs and a pool, and a 1x1 score layer on the last pool if it is a skip.

    Args:
        blocks: number, channels and convolutions of each block.
        in_channels: channels of the input.
        width: multiplies the channels of the blocks.
        padding: of the first convolution; all others have 1.
        num_classes: channels of the score layer; None for no score layer.
    """

    def __init__(self, blocks, in_channels, width, *, padding=1, num_classes=None):
        super().__init__()
        self.blocks = [[f"conv{block}_{i + 1}" for i in range(convs)] for block, _, convs in blocks]
        for names, (_, channels, _) in zip(self.blocks, blocks, strict=True):
            for name in names:
                out_channels = _scaled(channels, width)
                setattr(self, name, Conv(in_channels, out_channels, 3, padding=padding))
                in_channels, padding = out_channels, 1
        self.out_channels = in_channels
        self.score = f"score_pool{blocks[-1][0]}" if num_classes is not None else None
        if self.score:
            setattr(self, self.score, Conv(in_channels, num_classes, 1))

    def forward(self, x):
        """(N, C, h, w) features to the last pool (N, C', h', w') and its scores (N, num_classes, h', w') or None."""
        for names in self.blocks:
            for name in names:
                x = F.relu(getattr(self, name)(x), inplace=True)
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        return x, getattr(self, self.score)(x) if self.score else None


class Head(Trunk):
    """Stage 3: conv5_1 to fc7, score_fr, the fusion with the skips and the last upsampling.

    Attributes:
        ops: where :func:`skip_fuse`, :func:`bilinear_upsample` and the rest come from: ``fcn_fast.ops`` or
            ``fcn_fast.eager``.
    """

    def __init__(self, in_channels, fusion, num_classes, width, ops):
        super().__init__(_STAGE3, in_channels, width)
        self.fusion = fusion
        self.ops = ops
        hidden = _scaled(4096, width)
        self.fc6 = Conv(self.out_channels, hidden, 7)
        self.fc7 = Conv(hidden, hidden, 1)
        self.dropout = nn.Dropout(0.5)
        self.score_fr = Conv(hidden, num_classes, 1)

    def forward(self, pool4, skips, size):
        """Full-resolution scores.

        Args:
            pool4: (N, C, h, w), what stage 2 made.
            skips: the scores to fuse, score_pool4 first, as many as the net has.
            size: (H, W) of the image.

        Returns:
            (N, num_classes, H, W).
        """
        scores = self.fused(self.deepest(pool4), skips)
        return self.ops.bilinear_upsample(scores, grid=self.last_grid(scores, size))

    def deepest(self, pool4):
        """score_fr: the scores of the deepest layer, 32 px apart."""
        x, _ = super().forward(pool4)
        x = self.dropout(F.relu(self.fc6(x), inplace=True))
        x = self.dropout(F.relu(self.fc7(x), inplace=True))
        return self.score_fr(x)

    def fused(self, scores, skips):
        """The scores with every skip added, ``fusion.stride`` px apart."""
        for skip, crop in zip(skips, self.fusion.skip_crops, strict=True):
            grid = BilinearGrid.deconvolution(scores.shape[-2:], 2)
            scores = self.ops.skip_fuse(scores, skip, grid=grid, crop=crop)
        return scores

    def last_grid(self, scores, size):
        """The grid from the fused scores to an image of this (H, W)."""
        return BilinearGrid.deconvolution(scores.shape[-2:], self.fusion.stride, crop=self.fusion.crop, size=size)

    def __getstate__(self):
        # A Python module can be neither copied nor pickled; its name can.
        return {**self.__dict__, "ops": self.ops.__name__}

    def __setstate__(self, state):
        super().__setstate__({**state, "ops": importlib.import_module(state["ops"])})


class FCN(nn.Module):
    """A fully convolutional network: three stages, each a module of its own.

    stage1 is conv1_1 to pool3, stage2 conv4_1 to pool4, each with the score layer of its pool where the net fuses it;
    stage3 is conv5_1 to fc7, score_fr, fusion and upsampling. conv1_1 has a padding of 100 and pools round up, so that
    images of every size from 1x1 have scores. Layers are called as in the published nets: ``stage1.conv1_1.weight``.

    The input of every method is what the published nets take: float (N, 3, H, W) images, channels in the order blue,
    green, red, values from 0 to 255 minus the mean (104.00699, 116.66877, 122.67892 for VOC).

    Args:
        fusion: the Crop offsets.
        num_classes: channels of the scores.
        width: multiplies the channels of the trunk and of fc6 and fc7 (rounded, at least 1).
        ops: where the operations come from, ``fcn_fast.ops`` or, to compare with, ``fcn_fast.eager``.

    Raises:
        TypeError: num_classes no int, or width no number.
        ValueError: num_classes below 1, or a width that is not positive and finite.
    """

    def __init__(self, fusion, num_classes=21, width=1.0, ops=fcn_fast.ops):
        super().__init__()
        _check_sizes(num_classes, width)
        skips = len(fusion.skip_crops)
        self.stage1 = Trunk(_STAGE1, 3, width, padding=100, num_classes=num_classes if skips > 1 else None)
        self.stage2 = Trunk(_STAGE2, self.stage1.out_channels, width, num_classes=num_classes if skips > 0 else None)
        self.stage3 = Head(self.stage2.out_channels, fusion, num_classes, width, ops)

    @property
    def ops(self):
        """Where the operations come from; set it to compare: ``model.ops = fcn_fast.eager``."""
        return self.stage3.ops

    @ops.setter
    def ops(self, ops):
        self.stage3.ops = ops

    def forward(self, x):
        """(N, 3, H, W) images to full-resolution scores (N, num_classes, H, W).

        Raises:
            TypeError: x is no floating-point tensor, or not of the parameters' dtype outside autocast.
            ValueError: x is not (N, 3, H, W) with at least one pixel, or on another device.
        """
        scores, grid = self._low_resolution(x)
        return self.ops.bilinear_upsample(scores, grid=grid)

    def loss(self, x, target, **kwargs):
        """The softmax loss of the scores of x, which are never held at full resolution.

        Args:
            x: (N, 3, H, W) images.
            target: (N, H, W) labels.
            **kwargs: as in :func:`fcn_fast.ops.upsample_softmax_loss`: weight, ignore_index, reduction and so on. The
                published nets were trained with ``reduction="sum"``.

        Raises:
            TypeError, ValueError: as :meth:`forward` and :func:`fcn_fast.ops.upsample_softmax_loss`.
        """
        scores, grid = self._low_resolution(x)
        return self.ops.upsample_softmax_loss(scores, target, grid=grid, **kwargs)

    @torch.no_grad()
    def predict(self, x, **kwargs):
        """The label map (N, H, W) of x: ``model(x).argmax(1)`` without the scores at full resolution.

        Args:
            x: (N, 3, H, W) images. Call ``eval()`` first, or dropout is on.
            **kwargs: dtype, as in :func:`fcn_fast.ops.upsample_argmax`.

        Raises:
            TypeError, ValueError: as :meth:`forward` and :func:`fcn_fast.ops.upsample_argmax`.
        """
        scores, grid = self._low_resolution(x)
        return self.ops.upsample_argmax(scores, grid=grid, **kwargs)

    def _low_resolution(self, x):
        """The fused scores of x and the grid from them to its pixels."""
        self._check_image(x)
        pool3, score_pool3 = self.stage1(x)
        pool4, score_pool4 = self.stage2(pool3)
        skips = [score for score in (score_pool4, score_pool3) if score is not None]
        scores = self.stage3.fused(self.stage3.deepest(pool4), skips)
        return scores, self.stage3.last_grid(scores, x.shape[-2:])

    def _check_image(self, x):
        check_map("x", x)
        if x.shape[1] != 3:
            raise ValueError(f"x: expected 3 channels (blue, green, red), got shape {tuple(x.shape)}")
        weight = self.stage1.conv1_1.weight
        check_same_device("x", x, "the model", weight)
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x: expected the dtype of the model, {weight.dtype}, got {x.dtype}")


def fcn32s(num_classes=21, width=1.0, *, ops=fcn_fast.ops):
    """FCN-32s, without skips; see :class:`FCN`. 134 million parameters at 21 classes."""
    return FCN(FCN32S, num_classes, width, ops)


def fcn16s(num_classes=21, width=1.0, *, ops=fcn_fast.ops):
    """FCN-16s, with score_pool4; see :class:`FCN`."""
    return FCN(FCN16S, num_classes, width, ops)


def fcn8s(num_classes=21, width=1.0, *, ops=fcn_fast.ops):
    """FCN-8s, with score_pool4 and score_pool3; see :class:`FCN`."""
    return FCN(FCN8S, num_classes, width, ops)


def _scaled(channels, width):
    return max(1, round(channels * width))


def _check_sizes(num_classes, width):
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"num_classes: expected an int, got {num_classes!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        raise TypeError(f"width: expected a number, got {width!r}")
    if not 0 < width < math.inf:
        raise ValueError(f"width: expected a positive number, got {width}")
