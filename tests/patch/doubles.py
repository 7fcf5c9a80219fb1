"""Doubles of the models of libraries that do not import beside a CPU build of torch, with their modules' names.

They have the structure that patch goes by: attributes, the methods' upsamplings and calls, and the names of the
classes. ``resize`` stands for mmsegmentation's.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F


def named(module, name=None):
    """Decorates a class or function so that it seems to come from a module."""

    def decorate(thing):
        thing.__module__ = module
        thing.__qualname__ = thing.__name__ = name or thing.__name__
        return thing

    return decorate


class Trunk(nn.Module):
    """Feature maps at 1/4 and 1/8 under the names that torchvision's heads read."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        self.fine = nn.Conv2d(3, 8, 3, 4, 1)
        self.coarse = nn.Conv2d(8, 12, 3, 2, 1)

    def forward(self, x):
        fine = self.fine(x).relu()
        return dict(zip(self.names, (fine, self.coarse(fine).relu()), strict=True))


@named("torchvision.models.segmentation._utils")
class _SimpleSegmentationModel(nn.Module):
    def __init__(self, classes, aux=True):
        super().__init__()
        self.backbone = Trunk(("aux", "out"))
        self.classifier = nn.Sequential(Pooled(12), nn.Conv2d(24, classes, 1))
        self.aux_classifier = nn.Conv2d(8, classes, 1) if aux else None

    def forward(self, x):
        size, features, result = x.shape[-2:], self.backbone(x), OrderedDict()
        scores = self.classifier(features["out"])
        result["out"] = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        if self.aux_classifier is not None:
            scores = self.aux_classifier(features["aux"])
            result["aux"] = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        return result


class Pooled(nn.Module):
    """The pooling branch of an ASPP."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        pooled = self.layers(x)
        return torch.cat([x, F.interpolate(pooled, size=x.shape[-2:], mode="bilinear", align_corners=False)], 1)


@named("torchvision.models.segmentation.fcn")
class FCN(_SimpleSegmentationModel):
    pass


@named("torchvision.models.segmentation.deeplabv3")
class DeepLabV3(_SimpleSegmentationModel):
    pass


@named("torchvision.models.segmentation.lraspp")
class LRASPP(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.backbone = Trunk(("low", "high"))
        self.classifier = LRASPPHead(classes)

    def forward(self, input):
        scores = self.classifier(self.backbone(input))
        scores = F.interpolate(scores, size=input.shape[-2:], mode="bilinear", align_corners=False)
        return OrderedDict(out=scores)


class LRASPPHead(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.low = nn.Conv2d(8, classes, 1)
        self.high = nn.Conv2d(12, classes, 1)

    def forward(self, features):
        x = F.interpolate(features["high"], size=features["low"].shape[-2:], mode="bilinear", align_corners=False)
        return self.low(features["low"]) + self.high(x)


class Activation(nn.Module):
    def __init__(self, activation=None):
        super().__init__()
        self.activation = activation or nn.Identity()

    def forward(self, x):
        return self.activation(x)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.top = nn.Conv2d(12, 8, 1)

    def forward(self, features):
        top = F.interpolate(self.top(features[1]), scale_factor=2.0, mode="bilinear", align_corners=True)
        return features[0] + top


class OldDecoder(Decoder):
    def forward(self, *features):
        return Decoder.forward(self, features)


@named("segmentation_models_pytorch.base.model")
class SegmentationModel(nn.Module):
    def __init__(self, classes, upsampling=4, activation=None, decoder=None, classification_head=None):
        super().__init__()
        self.encoder = nn.Sequential(Trunk(("fine", "coarse")), Values())
        self.decoder = decoder or Decoder()
        up = nn.Upsample(scale_factor=upsampling, mode="bilinear", align_corners=True)
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(8, classes, 3, padding=1), up if upsampling > 1 else nn.Identity(), Activation(activation)
        )
        self.classification_head = classification_head

    def check_input_shape(self, x):
        if x.shape[-2] % 8 or x.shape[-1] % 8:
            raise RuntimeError("Wrong input shape")

    def forward(self, x):
        self.check_input_shape(x)
        features = self.encoder(x)
        decoder_output = self.decoder(features)
        masks = self.segmentation_head(decoder_output)
        if self.classification_head is not None:
            return masks, self.classification_head(features[-1])
        return masks

    def predict(self, x):
        return self(x)


class Values(nn.Module):
    def forward(self, features):
        return list(features.values())


@named("segmentation_models_pytorch.base.model", "SegmentationModel")
class OldSegmentationModel(SegmentationModel):
    def forward(self, x):
        features = self.encoder(x)
        return self.segmentation_head(self.decoder(*features))


@named("mmseg.models.utils.wrappers")
def resize(input, size=None, scale_factor=None, mode="nearest", align_corners=None, warning=True):
    return F.interpolate(input, size, scale_factor, mode, align_corners)


@named("mmseg.models.losses.accuracy")
def accuracy(pred, target, topk=1, thresh=None, ignore_index=None):
    """Per cent of right pixels."""
    right = pred.topk(topk, dim=1)[1].eq(target.unsqueeze(1)).any(1)
    valid = target != ignore_index
    tiny = torch.finfo(torch.float32).eps
    return ((right & valid).sum().float().view(1) + tiny) * (100.0 / (valid.sum() + tiny))


@named("mmseg.models.losses.cross_entropy_loss")
class CrossEntropyLoss(nn.Module):
    loss_name = "loss_ce"

    def __init__(self, class_weight=None, loss_weight=1.0, avg_non_ignore=False, reduction="mean", sigmoid=False):
        super().__init__()
        self.class_weight = class_weight
        self.loss_weight = loss_weight
        self.avg_non_ignore = avg_non_ignore
        self.reduction = reduction
        self.cls_criterion = binary_cross_entropy if sigmoid else cross_entropy

    def forward(self, cls_score, label, weight=None, avg_factor=None, reduction_override=None, ignore_index=-100):
        class_weight = None if self.class_weight is None else cls_score.new_tensor(self.class_weight)
        return self.loss_weight * self.cls_criterion(
            cls_score,
            label,
            weight,
            class_weight=class_weight,
            reduction=reduction_override or self.reduction,
            avg_factor=avg_factor,
            avg_non_ignore=self.avg_non_ignore,
            ignore_index=ignore_index,
        )


def cross_entropy(pred, label, weight, class_weight, reduction, avg_factor, avg_non_ignore, ignore_index):
    """The pixels' losses, and their mean over all pixels, or over those that are not ignored."""
    loss = F.cross_entropy(pred, label, weight=class_weight, reduction="none", ignore_index=ignore_index)
    if avg_factor is None and reduction == "mean":
        counted = label != ignore_index if avg_non_ignore else torch.ones_like(label, dtype=torch.bool)
        weights = torch.ones_like(loss) if class_weight is None else class_weight[label.clamp(0, len(class_weight) - 1)]
        avg_factor = weights[counted].sum()
    loss = loss if weight is None else loss * weight
    if reduction == "none":
        return loss
    return loss.sum() / (avg_factor + torch.finfo(torch.float32).eps) if reduction == "mean" else loss.sum()


def binary_cross_entropy(pred, label, weight, ignore_index, **_):
    one_hot = F.one_hot(label.clamp(max=pred.shape[1] - 1), pred.shape[1]).permute(0, 3, 1, 2).to(pred)
    return F.binary_cross_entropy_with_logits(pred, one_hot)


class DecodeHead(nn.Module):
    """mmsegmentation's BaseDecodeHead, with a pyramid's top-down path."""

    def __init__(self, classes, losses, sampler=None, align_corners=False):
        super().__init__()
        self.top = nn.Conv2d(12, 8, 1)
        self.conv_seg = nn.Conv2d(8, classes, 1)
        self.loss_decode = losses
        self.sampler = sampler
        self.align_corners = align_corners
        self.ignore_index = 255

    def forward(self, features):
        laterals = [features["fine"], self.top(features["coarse"])]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + resize(
                laterals[i], size=laterals[i - 1].shape[2:], mode="bilinear", align_corners=self.align_corners
            )
        return self.conv_seg(laterals[0])

    def loss_by_feat(self, seg_logits, seg_label):
        loss = dict()
        seg_logits = resize(
            input=seg_logits, size=seg_label.shape[2:], mode="bilinear", align_corners=self.align_corners
        )
        if self.sampler is not None:
            seg_weight = self.sampler.sample(seg_logits, seg_label)
        else:
            seg_weight = None
        seg_label = seg_label.squeeze(1)
        for loss_decode in self.loss_decode:
            name = loss_decode.loss_name
            value = loss_decode(seg_logits, seg_label, weight=seg_weight, ignore_index=self.ignore_index)
            loss[name] = loss[name] + value if name in loss else value
        loss["acc_seg"] = accuracy(seg_logits, seg_label, ignore_index=self.ignore_index)
        return loss


class Sampler:
    """Keeps the pixels whose largest score is below its mean."""

    def sample(self, seg_logit, seg_label):
        largest = seg_logit.detach().amax(1)
        return (largest < largest.mean()).to(seg_logit)
