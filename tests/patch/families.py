"""Small models of every transformers family that patch is tested on."""

import pytest
import torch
from torch import nn

CLASSES = 5
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 64,
    "patch_size": 16,
}


def segformer(t, **options):
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
    return t.SegformerForSemanticSegmentation(t.SegformerConfig(**sizes, decoder_hidden_size=16, **options))


def upernet(t, **options):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = t.ConvNextConfig(hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], out_features=stages)
    sizes = {"hidden_size": 16, "auxiliary_channels": 8, "auxiliary_in_channels": 12, "pool_scales": [1, 2]}
    return t.UperNetForSemanticSegmentation(t.UperNetConfig(backbone_config=backbone, **sizes, **options))


def beit(t, **options):
    sizes = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "auxiliary_channels": 8}
    return t.BeitForSemanticSegmentation(t.BeitConfig(**_VIT, **sizes, **options))


def data2vec(t, **options):
    sizes = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "auxiliary_channels": 8}
    return t.Data2VecVisionForSemanticSegmentation(t.Data2VecVisionConfig(**_VIT, **sizes, **options))


def dpt(t, **options):
    sizes = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 12, 16], "fusion_hidden_size": 16}
    return t.DPTForSemanticSegmentation(t.DPTConfig(**_VIT, **sizes, **options))


def mobilevit(t, **options):
    sizes = {"hidden_sizes": [12, 16, 20], "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 40], "num_attention_heads": 2}
    return t.MobileViTForSemanticSegmentation(t.MobileViTConfig(**sizes, aspp_out_channels=16, **options))


def mobilevitv2(t, **options):
    sizes = {"width_multiplier": 0.25, "aspp_out_channels": 16}
    return t.MobileViTV2ForSemanticSegmentation(t.MobileViTV2Config(**sizes, **options))


def mobilenetv2(t, **options):
    return t.MobileNetV2ForSemanticSegmentation(t.MobileNetV2Config(depth_multiplier=0.25, **options))


FAMILIES = [segformer, upernet, beit, data2vec, dpt, mobilevit, mobilevitv2, mobilenetv2]


def build(family, **options):
    """A model of the family in which every parameter counts; the test is skipped where there is no transformers."""
    transformers = pytest.importorskip("transformers")
    model = family(transformers, **{"num_labels": CLASSES, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # a new head is zeros, and all its scores the same
    return smooth(model)


def smooth(model):
    """The model without kinks: a value within rounding of one has another gradient in each of two models."""
    for module in model.modules():
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            module.__class__ = nn.SiLU
    return model


def batch(size=(64, 64), classes=CLASSES, dtype=torch.float32, device="cpu", count=2):
    """Images and labels, some of them ignored."""
    images = torch.randn(count, 3, 64, 64, dtype=dtype, device=device)
    labels = torch.randint(0, classes, (count, *size), device=device)
    labels[torch.rand(labels.shape, device=device) < 0.2] = 255
    return images, labels
