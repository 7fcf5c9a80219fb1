"""Photographs: from a file to what a net takes."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from fcn_fast.command import InputError

__all__ = ["MEAN_BGR", "PHOTO", "fit", "is_image", "read_image", "read_values", "to_input"]

MEAN_BGR = (104.00699, 116.66877, 122.67892)
"""The mean blue, green and red that the published nets for VOC subtract, of values from 0 to 255."""

PHOTO = Path(__file__).with_name("astronaut.jpg")
"""A photograph in the public domain that ships with the package."""

# Those that Pillow decodes by itself: for EPS and the like it would start other programs on a stranger's file.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")


def is_image(path):
    """Whether a file's name ends as that of an image that :func:`read_image` reads."""
    return Image.registered_extensions().get(Path(path).suffix.lower()) in _FORMATS


def read_image(path, upright=True):
    """The image in a file, in RGB with 8 bits a channel; the first of an animation, without its transparency.

    Args:
        path: of the file.
        upright: whether to turn it as its EXIF data say; label maps are of the pixels as they are stored.

    Raises:
        InputError: there is no such file, it is no image that Pillow reads, or one of floating-point values.
    """
    with _opened(path) as image:
        if upright:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # grey in 16 bits, which Pillow's conversion would cut off at 255
            image = Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
        if image.mode == "F":
            raise InputError(f"image: expected 8 or 16 bits a channel, got floating-point values: {path}")
        # By way of RGBA, or Pillow warns of what it leaves out.
        return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def read_values(path):
    """The numbers in an image of one channel: (H, W) array of its grey values, or of its palette's indices.

    Raises:
        InputError: as :func:`read_image`, or another number of channels.
    """
    with _opened(path) as image:
        values = np.array(image)
    if values.ndim != 2 or values.dtype == bool:
        raise InputError(f"image: expected grey values or palette indices, got mode {image.mode}: {path}")
    return values


@contextmanager
def _opened(path):
    Image.init()
    try:
        with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            yield image
    except InputError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
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

    Raises:
        TypeError: neither an image nor an array.
        ValueError: an image of another mode than RGB, or an array of another shape.
    """
    if not isinstance(image, (Image.Image, np.ndarray)):
        raise TypeError(f"image: expected an RGB PIL image or (H, W, 3) array, got {type(image).__name__}")
    if isinstance(image, Image.Image) and image.mode != "RGB":
        raise ValueError(f'image: expected mode RGB, got {image.mode} (image.convert("RGB") makes one)')
    if isinstance(image, np.ndarray) and (image.ndim != 3 or image.shape[2] != 3):
        raise ValueError(f"image: expected shape (H, W, 3), got {image.shape}")
    bgr = torch.from_numpy(np.array(image)).flip(-1).float() - torch.tensor(mean)
    return bgr.permute(2, 0, 1).unsqueeze(0).contiguous()
