"""From images and label maps as the data sets store them to what the nets take (shelhamer/fcn.berkeleyvision.org)."""

from dataclasses import dataclass

import numpy as np
import torch

from fcn_fast.data.images import MEAN_BGR, to_input

__all__ = ["LABELS", "TRANSFORMS", "VOID", "Transform", "hha", "labels_from_one", "labels_from_zero", "log_depth"]

VOID = 255
"""The label of pixels that count for nothing."""

MEAN_BGR_PASCALCONTEXT = (104.007, 116.669, 122.679)
MEAN_BGR_NYUD = (116.190, 97.203, 92.318)
MEAN_BGR_SIFTFLOW = (114.578, 115.294, 108.353)
MEAN_HHA_NYUD = (132.431, 94.076, 118.477)
MEAN_LOG_DEPTH_NYUD = 7.844


def hha(image, mean=MEAN_HHA_NYUD):
    """An HHA image (horizontal disparity, height above ground, angle with gravity) as the nets take it.

    Its three channels are no colours and keep their order.

    Args:
        image: as Gupta et al. (ECCV 2014) store it, an RGB PIL image or (H, W, 3) array from 0 to 255.
        mean: of the channels.

    Returns:
        float32 (1, 3, H, W), the values minus their mean.

    Raises:
        ValueError: other than three channels.
    """
    values = torch.from_numpy(np.array(image)).float()
    if values.dim() != 3 or values.shape[2] != 3:
        raise ValueError(f"hha: expected an image of 3 channels, got shape {tuple(values.shape)}")
    return (values - torch.tensor(mean)).permute(2, 0, 1).unsqueeze(0).contiguous()


def log_depth(depth, mean=MEAN_LOG_DEPTH_NYUD):
    """A depth map as the nets take it: float32 (1, 1, H, W), log(depth) minus its mean.

    Args:
        depth: PIL image or (H, W) array, in the unit of NYUDv2's PNGs (mm), without holes: values above 0.
        mean: of the logarithm.

    Raises:
        ValueError: other than (H, W), or a depth that is not above 0.
    """
    values = torch.from_numpy(np.array(depth, dtype=np.float32))
    if values.dim() != 2:
        raise ValueError(f"depth: expected an image of 1 channel, got shape {tuple(values.shape)}")
    if not (values > 0).all():
        raise ValueError(f"depth: expected values above 0, holes filled, got {values.min().item()}")
    return (values.log() - mean)[None, None]


@dataclass(frozen=True)
class Transform:
    """Makes the input of a net.

    Args:
        parts: {what an image shows: (function to (1, C, H, W), its mean)}, in the order of the channels.
    """

    parts: dict

    def __call__(self, *images):
        """float32 (1, C, H, W) of one image a part.

        Raises:
            ValueError: another number of images, or images of different sizes.
        """
        if len(images) != len(self.parts):
            raise ValueError(f"images: expected {len(self.parts)} ({', '.join(self.parts)}), got {len(images)}")
        inputs = [function(image, mean) for image, (function, mean) in zip(images, self.parts.values(), strict=True)]
        sizes = [tuple(x.shape[-2:]) for x in inputs]
        if len(set(sizes)) > 1:
            raise ValueError(f"images: expected images of one size, got (H, W) {', '.join(map(str, sizes))}")
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)


_NYUD_COLOR = {"color": (to_input, MEAN_BGR_NYUD)}
_NYUD_HHA = {"hha": (hha, MEAN_HHA_NYUD)}

TRANSFORMS = {
    "voc": Transform({"color": (to_input, MEAN_BGR)}),
    "pascalcontext": Transform({"color": (to_input, MEAN_BGR_PASCALCONTEXT)}),
    "siftflow": Transform({"color": (to_input, MEAN_BGR_SIFTFLOW)}),
    "nyud-color": Transform(_NYUD_COLOR),
    "nyud-hha": Transform(_NYUD_HHA),
    "nyud-color-d": Transform(_NYUD_COLOR | {"depth": (log_depth, MEAN_LOG_DEPTH_NYUD)}),
    "nyud-color-hha": Transform(_NYUD_COLOR | _NYUD_HHA),
}
"""How each data set's images become the input of its nets; a net's is ``TRANSFORMS[model.variant.transform]``."""


def labels_from_zero(labels):
    """Labels as VOC and PASCAL-Context store them, 255 for void: int64 (1, H, W)."""
    return torch.from_numpy(np.array(labels)).long()[None]


def labels_from_one(labels):
    """Labels as NYUDv2 and SIFT Flow store them, from 1, 0 (and -1 in SIFT Flow's geometry) for void.

    Returns:
        int64 (1, H, W), from 0, 255 for void.
    """
    labels = labels_from_zero(labels)
    return torch.where(labels <= 0, VOID, labels - 1)


LABELS = {
    "voc": labels_from_zero,
    "pascalcontext": labels_from_zero,
    "nyud": labels_from_one,
    "siftflow-semantic": labels_from_one,
    "siftflow-geometric": labels_from_one,
}
"""How each data set's label maps become targets."""
