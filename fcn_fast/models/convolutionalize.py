"""Classification networks cast into fully convolutional ones, as in the paper (Long, Shelhamer and Darrell, 2015)."""

import copy
import math
from collections import OrderedDict

from torch import nn

__all__ = ["convolutionalize"]


def convolutionalize(classifier):
    """A classification network that takes images of any size, its fully connected layers turned into convolutions.

    The first becomes a convolution over all the features that it saw of a training image, the others become 1x1. An
    image of the training size gets the same scores, as a 1x1 map; a larger one a map of what the network says of each
    window, for little more than the cost of one.

    Args:
        classifier: a module built as torchvision's VGG and AlexNet: ``features`` (convolutions and pools), perhaps
            ``avgpool`` (an ``AdaptiveAvgPool2d`` to the size that the training images have anyway, which is left out),
            and ``classifier`` (a ``Sequential`` of ``Linear`` and layers that work on each element). It stays as it is.

    Returns:
        ``nn.Sequential`` with the children ``features`` and ``classifier``: (N, 3, H, W) to (N, classes, h, w).

    Raises:
        TypeError: no such module, or a layer of ``classifier`` that is none of these.
        ValueError: features whose channels and size do not make up what the first fully connected layer takes.
    """
    features, layers = getattr(classifier, "features", None), getattr(classifier, "classifier", None)
    if not isinstance(features, nn.Module) or not isinstance(layers, nn.Sequential):
        raise TypeError(
            "classifier: expected a module with features and a Sequential classifier, as torchvision's VGG and AlexNet "
            f"are, got {type(classifier).__name__}"
        )
    channels = [layer.out_channels for layer in features.modules() if isinstance(layer, nn.Conv2d)]
    if not channels:
        raise ValueError("classifier: expected convolutions in its features, got none")
    converted = []
    size = _pooled_size(getattr(classifier, "avgpool", None))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            size = size or _square(layer.in_features, channels[-1])
            converted.append(_as_convolution(layer, channels[-1], size))
            channels, size = [layer.out_features], (1, 1)
        elif not isinstance(layer, nn.Flatten):
            converted.append(_elementwise(layer))
    children = {"features": copy.deepcopy(features), "classifier": nn.Sequential(*converted)}
    return nn.Sequential(OrderedDict(children)).train(classifier.training)


_ELEMENTWISE = (nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.SiLU, nn.GELU, nn.Identity)


def _elementwise(layer):
    if not isinstance(layer, _ELEMENTWISE):
        raise TypeError(f"classifier: expected Linear, Dropout and activations in it, got {type(layer).__name__}")
    return copy.deepcopy(layer)


def _as_convolution(linear, channels, size):
    if linear.in_features != channels * size[0] * size[1]:
        raise ValueError(
            f"classifier: expected a Linear that takes {channels} channels of {size[0]}x{size[1]} features, "
            f"got one that takes {linear.in_features} numbers"
        )
    weight = linear.weight
    # Built without memory or random numbers, both of which the parameters below replace.
    conv = nn.Conv2d(channels, linear.out_features, size, bias=linear.bias is not None, device="meta")
    conv.weight = nn.Parameter(weight.detach().clone().view(linear.out_features, channels, *size), weight.requires_grad)
    if linear.bias is not None:
        conv.bias = nn.Parameter(linear.bias.detach().clone(), linear.bias.requires_grad)
    return conv


def _pooled_size(pool):
    """(height, width) of the features that the classifier takes, or None where no pool says so."""
    if not isinstance(pool, nn.AdaptiveAvgPool2d):
        return None
    size = pool.output_size
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def _square(in_features, channels):
    side = math.isqrt(in_features // channels)
    return side, side
