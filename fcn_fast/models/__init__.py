"""The FCN family: the published nets and their weights."""

from fcn_fast.models.canvas import freeze_canvas
from fcn_fast.models.convolutionalize import convolutionalize
from fcn_fast.models.fcn import FCN, build, fcn8s, fcn8s_atonce, fcn16s, fcn32s, fcn_alexnet
from fcn_fast.models.variants import VARIANTS, Variant
from fcn_fast.models.weights import (
    WeightsError,
    from_safetensors,
    load_caffemodel,
    load_safetensors,
    load_torchfcn,
    load_vgg16,
    save_safetensors,
    transplant,
)

__all__ = [
    "FCN",
    "VARIANTS",
    "Variant",
    "WeightsError",
    "build",
    "convolutionalize",
    "fcn16s",
    "fcn32s",
    "fcn8s",
    "fcn8s_atonce",
    "fcn_alexnet",
    "freeze_canvas",
    "from_safetensors",
    "load_caffemodel",
    "load_safetensors",
    "load_torchfcn",
    "load_vgg16",
    "save_safetensors",
    "transplant",
]
