"""Input and labels of each data set against values worked out by hand from the published data layers."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fcn_fast import models
from fcn_fast.data.transforms import LABELS, TRANSFORMS, hha, log_depth, to_input

# Of a pixel of red 10, green 20, blue 30: blue, green and red minus their mean.
COLOR = {
    "voc": (30 - 104.00699, 20 - 116.66877, 10 - 122.67892),
    "pascalcontext": (30 - 104.007, 20 - 116.669, 10 - 122.679),
    "siftflow": (30 - 114.578, 20 - 115.294, 10 - 108.353),
    "nyud-color": (30 - 116.190, 20 - 97.203, 10 - 92.318),
}
# Of an HHA pixel stored as (10, 20, 30): the order stays.
HHA = (10 - 132.431, 20 - 94.076, 30 - 118.477)


def image(width=4, height=3):
    """Pixels that differ, so that no axis can be swapped unseen; (10, 20, 30) at row 1, column 2."""
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3) * 5
    pixels[1, 2] = (10, 20, 30)
    return Image.fromarray(pixels)


def depth(width=4, height=3):
    """Millimetres in 16 bits, as NYUDv2's PNGs; 2718 at row 1, column 2."""
    values = 1000 + 100 * np.arange(height * width, dtype=np.uint16).reshape(height, width)
    values[1, 2] = 2718
    return Image.fromarray(values)


@pytest.mark.parametrize("name", COLOR)
def test_color(name):
    x = TRANSFORMS[name](image())
    assert x.shape == (1, 3, 3, 4) and x.dtype == torch.float32 and x.is_contiguous()
    assert x[0, :, 1, 2].tolist() == pytest.approx(COLOR[name], abs=1e-4)
    pixels = np.asarray(image()).astype(float)
    for channel, mean in enumerate(30 - np.array([COLOR[name][0]])):
        np.testing.assert_allclose(x[0, channel], pixels[:, :, 2 - channel] - mean, atol=1e-4)


def test_hha_keeps_its_order():
    x = TRANSFORMS["nyud-hha"](image())
    assert x.shape == (1, 3, 3, 4) and x[0, :, 1, 2].tolist() == pytest.approx(HHA, abs=1e-4)


def test_log_depth():
    x = log_depth(depth())
    assert x.shape == (1, 1, 3, 4) and x.dtype == torch.float32
    assert x[0, 0, 1, 2].item() == pytest.approx(math.log(2718) - 7.844, abs=1e-5)
    assert x[0, 0, 2, 0].item() == pytest.approx(math.log(1800) - 7.844, abs=1e-5)


def test_color_and_depth():
    x = TRANSFORMS["nyud-color-d"](image(), depth())
    assert x.shape == (1, 4, 3, 4)
    expected = (*COLOR["nyud-color"], math.log(2718) - 7.844)
    assert x[0, :, 1, 2].tolist() == pytest.approx(expected, abs=1e-4)


def test_color_and_hha():
    x = TRANSFORMS["nyud-color-hha"](image(), image())
    assert x[0, :, 1, 2].tolist() == pytest.approx((*COLOR["nyud-color"], *HHA), abs=1e-4)


@pytest.mark.parametrize("name", models.VARIANTS)
def test_every_net_has_a_transform_for_its_channels(name):
    variant = models.VARIANTS[name]
    transform = TRANSFORMS[variant.transform]
    makers = {"color": image, "hha": image, "depth": depth}
    x = transform(*(makers[part]() for part in transform.parts))
    assert x.shape == (1, len(variant.channels), 3, 4)


@pytest.mark.parametrize("name", ["voc", "pascalcontext"])
def test_labels_from_zero(name):
    labels = LABELS[name](np.array([[0, 1, 20], [255, 59, 2]], dtype=np.uint8))
    assert labels.dtype == torch.int64 and labels.tolist() == [[[0, 1, 20], [255, 59, 2]]]


@pytest.mark.parametrize("name", ["nyud", "siftflow-semantic", "siftflow-geometric"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_labels_from_one(name, dtype):
    stored = np.array([[0, 1, 3], [2, 40, 33]], dtype=dtype)
    assert LABELS[name](stored).tolist() == [[[255, 0, 2], [1, 39, 32]]]
    if dtype == np.int16:
        assert LABELS[name](np.array([[-1, 0, 1]], dtype=dtype)).tolist() == [[[255, 255, 0]]]


def test_labels_of_an_image():
    stored = Image.fromarray(np.array([[0, 15], [255, 3]], dtype=np.uint8)).convert("P")
    assert LABELS["voc"](stored).tolist() == [[[0, 15], [255, 3]]]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: hha(Image.new("L", (4, 3))), r"hha: expected an image of 3 channels, got shape \(3, 4\)"),
        (
            lambda: to_input(Image.new("L", (4, 3))),
            r'image: expected mode RGB, got L \(image.convert\("RGB"\) makes one',
        ),
        (lambda: to_input(Image.new("HSV", (4, 3))), "image: expected mode RGB, got HSV"),
        (lambda: to_input(np.zeros((4, 3))), r"image: expected shape \(H, W, 3\), got \(4, 3\)"),
        (lambda: to_input(np.zeros((3, 4, 5))), r"image: expected shape \(H, W, 3\), got \(3, 4, 5\)"),
        (lambda: log_depth(image()), r"depth: expected an image of 1 channel, got shape \(3, 4, 3\)"),
        (lambda: log_depth(np.array([[1, 0]])), "depth: expected values above 0, holes filled, got 0.0"),
        (lambda: log_depth(np.array([[1, np.nan]])), "depth: expected values above 0"),
        (lambda: TRANSFORMS["nyud-color-d"](image()), r"images: expected 2 \(color, depth\), got 1"),
        (lambda: TRANSFORMS["voc"](image(), image()), r"images: expected 1 \(color\), got 2"),
        (
            lambda: TRANSFORMS["nyud-color-d"](image(), depth(5)),
            r"images: expected images of one size, got \(H, W\) \(3, 4\), \(3, 5\)",
        ),
    ],
)
def test_what_is_no_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("thing", ["photo.jpg", torch.zeros(3, 4, 3), None])
def test_what_is_no_image(thing):
    with pytest.raises(TypeError, match=r"image: expected an RGB PIL image or \(H, W, 3\) array, got "):
        to_input(thing)
