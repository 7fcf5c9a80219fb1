"""A generated data set: textured objects of 20 classes over cluttered backgrounds, with thin parts and void borders."""

import colorsys
from pathlib import Path

import numpy as np
import torch

from fcn_fast.command import InputError
from fcn_fast.data.transforms import TRANSFORMS, VOID

__all__ = ["CLASSES", "TRAINED", "Shapes"]

TRAINED = Path(__file__).with_name("shapes-fcn8s.safetensors")
"""Weights of a narrow FCN-8s trained on these pictures, as :func:`fcn_fast.models.from_safetensors` reads them."""


def _disc(u, v):
    return np.hypot(u, v) - 0.8


def _triangle(u, v):
    return np.maximum(v, np.abs(u) * 0.866 - v * 0.5) - 0.48


def _ring(u, v):
    return np.abs(np.hypot(u, v) - 0.78) - 0.18


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 0.95, v - 0.18), np.maximum(u - 0.18, v - 0.95))


def _star(u, v):
    return np.hypot(u, v) - (0.6 + 0.35 * np.cos(5 * np.arctan2(v, u)))


def _striped(u, v):
    return np.sin(u) > 0


def _checked(u, v):
    return np.sin(u) * np.sin(v) > 0


def _dotted(u, v):
    return np.cos(u) + np.cos(v) > 0.7


def _ringed(u, v):
    return np.sin(np.hypot(u, v)) > 0


# Outlines are negative inside, in units of the radius; textures take radians.
_OUTLINES = {"disc": _disc, "triangle": _triangle, "ring": _ring, "cross": _cross, "star": _star}
_TEXTURES = {"striped": _striped, "checked": _checked, "dotted": _dotted, "ringed": _ringed}

CLASSES = ("background", *(f"{texture} {outline}" for texture in _TEXTURES for outline in _OUTLINES))
"""A class is an outline and a texture, in colours around a hue of its own."""

_SPLITS = {"train": 8000, "val": 200}  # with their lengths
_SCENES = len(_TEXTURES)
_HUE_JITTER = 0.025  # neighbours in hue are 1 / 20 apart, so that colour alone does not tell them


class Shapes(torch.utils.data.Dataset):
    """Pictures made on the fly: item i is the same whenever and wherever it is made.

    Each shows objects in several sizes that may hide one another, 1 for every 72x72 pixels on average, and is one of
    four scenes, whose colour says which classes are likely: a net can learn from an object's surroundings too. A band
    of one to two pixels around each object is void.

    Args:
        size: (H, W), or a side, in pixels, at least 32; also as text, ``"96"`` or ``"96x128"``.
        split: ``"train"`` or ``"val"``, which share no picture; the latter unless given.
        transform: from (H, W, 3) RGB to the net's input (1, C, H, W); VOC's unless given.
        length: number of pictures; 8000 of train and 200 of val unless given.
        seed: of another set of pictures.
        largest: radius of the largest objects, as a share of the shorter side.

    Raises:
        InputError: another size or split, a length below 1, a negative seed, or largest not from 0.05 to 1.
    """

    classes = CLASSES
    ignore_index = VOID

    def __init__(self, size=128, split=None, transform=None, *, length=None, seed=0, largest=0.4):
        split = split or "val"
        if split not in _SPLITS:
            raise InputError(f"split: expected one of {', '.join(_SPLITS)}, got {split}")
        length = _SPLITS[split] if length is None else length
        if length < 1:
            raise InputError(f"length: expected at least 1, got {length}")
        if seed < 0:
            raise InputError(f"seed: expected a whole number from 0, got {seed}")
        if not 0.05 <= largest <= 1:
            raise InputError(f"largest: expected a number from 0.05 to 1, got {largest}")
        self.transform = transform or TRANSFORMS["voc"]
        self.length, self.size, self.largest = length, _size(size or 128), largest
        self.split = split
        self.key = [seed, list(_SPLITS).index(split)]

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        """float32 (C, H, W) image and int64 (H, W) target."""
        picture, labels = self.picture(index)
        return self.transform(picture)[0], torch.from_numpy(labels).long()

    def picture(self, index):
        """uint8 (H, W, 3) RGB picture and uint8 (H, W) labels.

        Raises:
            IndexError: index is not from 0 to length - 1.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected one from 0 to {self.length - 1}, got {index}")
        random = np.random.default_rng([*self.key, index])
        scene = random.integers(_SCENES)
        picture = _background(random, self.size, scene)
        labels = np.zeros(self.size, np.uint8)
        for _ in range(max(1, round(random.uniform(0.5, 1.5) * labels.size / 72**2))):
            _draw(random, picture, labels, scene, self.largest)
        picture += 8 * random.standard_normal((*self.size, 1), np.float32)
        return picture.clip(0, 255).astype(np.uint8), labels


def _size(size):
    """(H, W) of what a size means."""
    try:
        sides = size.split("x") if isinstance(size, str) else np.atleast_1d(size)
        height, width = [int(side) for side in sides] * (2 if len(sides) == 1 else 1)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 32:
        raise InputError(f"size: expected a side or HxW of at least 32 pixels, got {size}")
    return height, width


def _draw(random, picture, labels, scene, largest):
    """Add an object of a class that the scene makes likely."""
    outline = random.integers(len(_OUTLINES))
    texture = scene if random.random() < 0.7 else random.integers(len(_TEXTURES))
    label = 1 + texture * len(_OUTLINES) + outline
    radius = np.exp(random.uniform(np.log(12), np.log(max(13, largest * min(labels.shape)))))
    box, u, v = _box(random, labels.shape, radius)
    if u.size == 0:
        return
    # In pixels, as far as an outline's function grows like the distance.
    distance = radius * list(_OUTLINES.values())[outline](u / radius, v / radius)
    inside = distance < 0
    frequency = 2 * np.pi / random.uniform(5, 8)
    dark = list(_TEXTURES.values())[texture](frequency * u, frequency * v)
    hue = (label - 1) / (len(CLASSES) - 1) + random.uniform(-_HUE_JITTER, _HUE_JITTER)
    colours = np.array([_rgb(hue, random.uniform(0.6, 1), value) for value in (random.uniform(0.75, 1), 0.4)])
    picture[box][inside] = colours.astype(np.float32)[dark[inside].astype(np.intp)]
    labels[box][(distance >= 0) & (distance < 1.5)] = VOID
    labels[box][inside] = label


def _background(random, size, scene):
    """float32 (H, W, 3): the scene's colour, unevenly lit, with clutter in dull colours."""
    base = np.array(_rgb((scene + random.uniform(-0.3, 0.3)) / _SCENES, random.uniform(0.1, 0.3), 0.55), np.float32)
    picture = base + _smooth(random, size, 48, 30) + _smooth(random, size, 6, 18)
    for _ in range(max(1, round(random.uniform(0.5, 1.5) * size[0] * size[1] / 50**2))):
        radius = random.uniform(6, 40)
        box, u, v = _box(random, size, radius)
        inside = (u / radius) ** 2 + (v / (radius * random.uniform(0.1, 0.6))) ** 2 < 1
        colour = _rgb(random.random(), random.uniform(0, 0.35), random.uniform(0.2, 0.9))
        picture[box][inside] = 0.3 * picture[box][inside] + 0.7 * np.array(colour, np.float32)
    return picture


def _box(random, size, radius):
    """Slices of a square around a random place, cut to the picture, and each pixel's place in a turned frame."""
    centre = random.uniform(0, size)
    reach = radius + 2
    low = np.maximum(np.ceil(centre - reach), 0).astype(int)
    high = np.minimum(np.floor(centre + reach) + 1, size).astype(int)
    y = np.arange(low[0], high[0], dtype=np.float32)[:, None] - np.float32(centre[0])
    x = np.arange(low[1], high[1], dtype=np.float32) - np.float32(centre[1])
    angle = random.uniform(0, 2 * np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return (slice(low[0], high[0]), slice(low[1], high[1])), cosine * x + sine * y, cosine * y - sine * x


def _smooth(random, size, cell, deviation):
    """float32 (H, W, 3): random colours ``cell`` pixels apart, linear between them."""
    rows, columns = (_lines(length, cell) for length in size)
    values = random.normal(0, deviation, (3, rows.shape[1], columns.shape[1])).astype(np.float32)
    return (rows @ values @ columns.T).transpose(1, 2, 0)


def _lines(length, cell):
    """(length, n) weights of n values ``cell`` pixels apart."""
    place = np.arange(length, dtype=np.float32)[:, None] / cell
    return np.maximum(0, 1 - np.abs(place - np.arange(np.ceil(length / cell) + 1, dtype=np.float32)))


def _rgb(hue, saturation, value):
    return [255 * channel for channel in colorsys.hsv_to_rgb(hue % 1, saturation, value)]
