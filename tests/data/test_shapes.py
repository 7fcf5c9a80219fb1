"""The generated data set: the same picture everywhere, labels that fit the picture, sizes and seeds."""

import numpy as np
import pytest
import torch

from fcn_fast.command import InputError
from fcn_fast.data import open_data
from fcn_fast.data.shapes import CLASSES, Shapes
from fcn_fast.data.transforms import VOID
from fcn_fast.data.voc import MEAN_BGR


def test_an_item_depends_on_its_number_and_the_seed_alone(seed):
    index = seed % 100
    picture, labels = Shapes(64, "train", seed=seed).picture(index)
    again = Shapes(64, "train", seed=seed, length=200)
    again.picture(3)
    for one, other in zip((picture, labels), again.picture(index), strict=True):
        assert (one == other).all()
    for other in (Shapes(64, "val", seed=seed), Shapes(64, "train", seed=seed + 1)):
        assert (other.picture(index)[0] != picture).any()
    assert (Shapes(64, "train", seed=seed).picture(index + 1)[0] != picture).any()


def test_labels_are_the_same_on_every_machine():
    labels = np.stack([Shapes("64x96", "val").picture(index)[1] for index in range(3)])
    assert labels.shape == (3, 64, 96)
    # Sines differ in their last bit from one processor to the next, so that a pixel at an outline may.
    found = {label: count for label, count in enumerate(np.bincount(labels.ravel())) if count}
    assert found == pytest.approx({0: 16718, 10: 209, 15: 846, 20: 362, 255: 297}, abs=5)


def test_an_item_is_what_a_net_takes(seed):
    data = open_data("shapes:40x64")
    picture, labels = data.picture(5)
    x, target = data[5]
    assert x.shape == (3, 40, 64) and x.dtype == torch.float32 and target.dtype == torch.int64
    assert (target.numpy() == labels).all()
    rgb = x.flip(0).permute(1, 2, 0).numpy() + np.float32(MEAN_BGR[::-1])
    assert abs(rgb - picture).max() < 1e-3
    assert len(data) == 200 and len(open_data("shapes", "train")) == 8000 and open_data("shapes").size == (128, 128)


def test_pictures_hold_all_classes_and_void_around_them(seed):
    data = Shapes(128, "train", seed=seed)
    counts, bordering = np.zeros(256, int), 0
    for index in range(80):
        labels = data.picture(index)[1]
        counts += np.bincount(labels.ravel(), minlength=256)
        objects = (labels > 0) & (labels < VOID)
        bordering += ((labels[1:] == 0) & objects[:-1]).sum() + ((labels[:-1] == 0) & objects[1:]).sum()
    assert (counts[: len(CLASSES)] > 0).all() and not counts[len(CLASSES) : VOID].any()
    shares = counts / counts.sum()
    assert 0.6 < shares[0] < 0.9 and 0.01 < shares[VOID] < 0.1
    # An outline's function is a distance only nearly, so a few objects touch the background.
    assert bordering < counts[1 : len(CLASSES)].sum() / 100


def test_objects_have_the_colours_of_their_class(seed):
    """Hues turn with the class: the mean colour of a class's pixels is nearer to its own hue than to the opposite."""
    data = Shapes(128, "train", seed=seed)
    sums = np.zeros((len(CLASSES), 3))
    for index in range(80):
        picture, labels = data.picture(index)
        for label in np.unique(labels[(labels > 0) & (labels < VOID)]):
            sums[label] += picture[labels == label].sum(0)
    hues = 2 * np.pi * np.arange(20) / 20
    wanted = np.stack([np.cos(hues - turn) for turn in 2 * np.pi * np.arange(3) / 3], 1)
    centred = sums[1:] - sums[1:].mean(1, keepdims=True)
    cosine = (centred * wanted).sum(1) / np.linalg.norm(centred, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() > 0.9


@pytest.mark.parametrize("arguments", [{"size": "31"}, {"size": "64x"}, {"size": "wide"}, {"size": (64, 64, 3)},
                                       {"split": "test"}, {"length": 0}, {"seed": -1}, {"largest": 2}])  # fmt: skip
def test_what_is_none(arguments):
    with pytest.raises(InputError, match=f"^{next(iter(arguments))}: expected .*, got "):
        Shapes(**arguments)


def test_an_index_that_is_none():
    with pytest.raises(IndexError, match="index: expected one from 0 to 199, got 200"):
        Shapes()[200]
