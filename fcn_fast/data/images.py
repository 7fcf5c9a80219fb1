"""Photographs: from a file to what a net takes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from fcn_fast.command import InputError
from fcn_fast.data.voc import MEAN_BGR

__all__ = ["PHOTO", "fit", "read_image", "to_input"]

PHOTO = Path(__file__).with_name("astronaut.jpg")
"""A photograph in the public domain that ships with the package."""


def read_image(path):
    """The image in a file, upright and in RGB.

    Raises:
        InputError: there is no such file, or it is no image that Pillow reads.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"image: expected a file that can be read, got {path} ({error.strerror})") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"image: expected an image such as a JPEG or PNG, got {path}") from error


def fit(image, size):
    """``image`` resized to fit in ``size`` x ``size`` pixels and padded to it with the mean colour."""
    return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, tuple(round(value) for value in MEAN_BGR[::-1]))


def to_input(image, mean=MEAN_BGR):
    """An RGB image as the nets take it: float32 (1, 3, H, W), blue, green and red minus their mean.

    Args:
        image: an RGB PIL image or (H, W, 3) array from 0 to 255.
        mean: of blue, green and red.
    """
    bgr = torch.from_numpy(np.array(image)).flip(-1).float() - torch.tensor(mean)
    return bgr.permute(2, 0, 1).unsqueeze(0).contiguous()
