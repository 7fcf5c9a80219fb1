"""The readers on small trees: items against OpenCV's pixels and labels worked out by hand; splits; broken files."""

import pickle
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fcn_fast import data, models
from fcn_fast.command import InputError
from fcn_fast.data import labelled
from fcn_fast.data.transforms import TRANSFORMS

from . import trees

MEAN = {
    "voc": (104.00699, 116.66877, 122.67892),
    "sbd": (104.00699, 116.66877, 122.67892),
    "nyud": (116.190, 97.203, 92.318),
    "siftflow": (114.578, 115.294, 108.353),
    "pascalcontext": (104.007, 116.669, 122.679),
}
KINDS = tuple(MEAN)


@pytest.fixture
def generator(seed):
    return np.random.default_rng(seed)


def grow(kind, root, generator):
    """A tree; {name: (path of the image, {head: path of the labels}, {head: target})}."""
    stored = getattr(trees, kind)(root, generator)
    if kind == "pascalcontext":
        stored, classes = stored
        stored = {name: np.vectorize(lambda number: classes.get(number, 0))(s) for name, s in stored.items()}
    if kind == "nyud":
        stored = {name: np.where(s == 0, 255, s - 1) for name, s in stored.items()}
    if kind == "siftflow":
        stored = {name: {h: np.where(s <= 0, 255, s - 1) for h, s in both.items()} for name, both in stored.items()}
    image, label = {
        "voc": ("JPEGImages/{}.jpg", {"": "SegmentationClass/{}.png"}),
        "sbd": ("dataset/img/{}.jpg", {"": "dataset/cls/{}.mat"}),
        "nyud": ("data/images/img_{}.png", {"": "segmentation/img_{}.mat"}),
        "siftflow": (
            f"Images/{trees.SIFT_SET}/{{}}.jpg",
            {"sem": f"SemanticLabels/{trees.SIFT_SET}/{{}}.mat", "geo": f"GeoLabels/{trees.SIFT_SET}/{{}}.mat"},
        ),
        "pascalcontext": ("VOC2010/JPEGImages/{}.jpg", {"": "trainval/{}.mat"}),
    }[kind]
    return {
        name: (
            root / image.format(name),
            {head: root / path.format(name) for head, path in label.items()},
            target if isinstance(target, dict) else {"": target},
        )
        for name, target in stored.items()
    }


def same(item, expected, mean):
    image, target = item
    path, _, targets = expected
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION).astype(np.float32)
    assert image.dtype == torch.float32 and image.shape == (3, *pixels.shape[:2])
    np.testing.assert_allclose(image, (pixels - np.float32(mean)).transpose(2, 0, 1), atol=2.01, rtol=0)
    target = target if isinstance(target, dict) else {"": target}
    assert target.keys() == targets.keys()
    for head, labels in targets.items():
        assert target[head].dtype == torch.int64
        np.testing.assert_array_equal(target[head], labels)


def refused(match, function, *arguments, **options):
    with pytest.raises(InputError, match=match) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_items(kind, tmp_path, generator):
    tree = grow(kind, tmp_path, generator)
    dataset = data.open_data(f"{kind}:{tmp_path}")
    assert len(dataset) == 3 and dataset.ignore_index == 255 and not dataset.skipped
    copy = pickle.loads(pickle.dumps(dataset))  # as a worker process gets it
    for item, again, expected in zip(DataLoader(dataset, batch_size=None), copy, tree.values(), strict=True):
        same(item, expected, MEAN[kind])
        same(again, expected, MEAN[kind])
    with pytest.raises(IndexError):
        dataset[3]


@pytest.mark.parametrize("kind", KINDS)
def test_other_splits(kind, tmp_path, generator):
    tree = grow(kind, tmp_path, generator)
    lists = next(path for path in tmp_path.rglob("*.txt") if path.stem in ("val", "test"))
    trees.save_list(lists.with_name("few.txt"), ["", f"{list(tree)[1]} -1"])
    dataset = data.KINDS[kind](tmp_path, "few")
    assert len(dataset) == 1
    same(dataset[0], list(tree.values())[1], MEAN[kind])
    refused(
        rf"split: expected one of the lists \(few, .*{lists.stem}\), got .*none.txt", data.KINDS[kind], tmp_path, "none"
    )
    lists.write_text("\n \n")
    refused(f"split: expected a list with names, got {lists}", data.KINDS[kind], tmp_path)


def test_voc_sbd_keeps_train_and_val_apart(tmp_path, generator):
    voc = tmp_path / "TrainVal" / "VOCdevkit" / "VOC2011"
    stored = trees.voc(voc, generator)
    trees.sbd(tmp_path / "benchmark_RELEASE", generator, ("2010_000009",))
    trained = trees.sbd(tmp_path / "benchmark_RELEASE", generator, split="train")
    shared = set(stored) & set(trained)
    assert len(shared) == 1
    train, val = (data.open_data(f"voc-sbd:{tmp_path}", split) for split in ("train", None))
    assert set(train.names) == set(trained) and val.names == [name for name in stored if name not in shared]
    for dataset, labels in ((train, trained), (val, stored)):
        for name, (_, target) in zip(dataset.names, dataset, strict=True):
            np.testing.assert_array_equal(target, labels[name])
    assert data.open_data(f"sbd:{tmp_path}").names == ["2010_000009"]
    refused("split: expected train or val, got test", data.voc_sbd, tmp_path, "test")
    trees.save_list(tmp_path / "benchmark_RELEASE" / "dataset" / "train.txt", stored)
    refused("expected a list with names besides those of train, got", data.voc_sbd, tmp_path)
    (voc / "ImageSets").rename(voc / "Other")
    refused("data: expected a folder with VOC2011/ImageSets/Segmentation or ", data.voc_sbd, tmp_path)


@pytest.mark.parametrize("suffix", [".mat", ".png"])
@pytest.mark.parametrize("name", ["nyud-color", "nyud-hha", "nyud-color-d", "nyud-color-hha"])
def test_nyud_reads_what_the_net_takes(tmp_path, generator, name, suffix):
    stored = trees.nyud(tmp_path, generator, suffix=suffix)
    files = {"color": "images", "depth": "depth", "hha": "hha"}
    for part in set(files) - set(TRANSFORMS[name].parts):
        for path in (tmp_path / "data" / files[part]).iterdir():
            path.unlink()
    dataset = data.NYUD(tmp_path, transform=TRANSFORMS[name])
    for number, (image, target) in zip(stored, dataset, strict=True):
        channels = []
        for part in TRANSFORMS[name].parts:
            path = str(tmp_path / "data" / files[part] / f"img_{number}.png")
            pixels = cv2.imread(path, cv2.IMREAD_UNCHANGED).astype(np.float64)
            if part == "depth":
                channels.append(np.log(pixels)[None] - 7.844)
            elif part == "hha":  # OpenCV turns the channels round
                channels.append((pixels[..., ::-1] - (132.431, 94.076, 118.477)).transpose(2, 0, 1))
            else:
                channels.append((pixels - MEAN["nyud"]).transpose(2, 0, 1))
        np.testing.assert_allclose(image, np.concatenate(channels), atol=1e-4)
        np.testing.assert_array_equal(target, np.where(stored[number] == 0, 255, stored[number] - 1))


def test_images_stay_as_their_labels_are(tmp_path, generator):
    trees.voc(tmp_path, generator)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    trees.save_image(tmp_path / "JPEGImages" / "2007_000033.jpg", generator, trees.SIZES[0], exif=exif)
    assert data.VOC(tmp_path)[0][0].shape == (3, 5, 7)


def test_context_finds_its_folders(tmp_path, generator):
    trees.pascalcontext(tmp_path / "pascal-context", generator)
    (tmp_path / "pascal-context" / "VOC2010").rename(tmp_path / "VOC2010")
    assert len(data.PASCALContext(tmp_path)) == 3


def test_names_of_classes():
    assert len(data.SIFTFlow.classes["sem"]) == 33 and data.SIFTFlow.classes["sem"][11] == "door"
    assert data.NYUD.classes[0] == "wall" and data.NYUD.classes[39] == "otherprop"
    assert data.PASCALContext.classes[0] == "background" and data.PASCALContext.classes[59] == "wood"
    assert data.PASCALContext.classes[:21] == data.VOC.classes
    for variant in models.VARIANTS.values():
        names = data.class_names(variant.transform)
        assert {head: len(of_head) for head, of_head in names.items()} == variant.heads
        assert all(isinstance(of_head, tuple) and len(set(of_head)) == len(of_head) for of_head in names.values())
    assert data.class_names("mine") == {}


def spoil(path, how):
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "text":
        path.write_text("nothing of use, but long enough to look at: " * 20)
    elif path.suffix == ".mat":
        key = {"segmentation": "segmentation", "trainval": "LabelMap", "cls": "GTcls"}.get(path.parent.name, "S")
        size = np.ones((5, 7))
        value = {"size": size[:4], "class": size * 500, "fraction": size / 2, "key": size}[how]
        trees.save_mat(path, {"other" if how == "key" else key: {"Segmentation": value} if key == "GTcls" else value})
    else:
        value = {"size": np.ones((4, 7)), "class": np.full((5, 7), 30)}[how]
        trees.save_palette(path, value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "text", "size", "class", "fraction", "key"])
def test_broken_files(kind, how, tmp_path, generator):
    tree = grow(kind, tmp_path, generator)
    first = next(iter(tree.values()))
    labels = list(first[1].values())[-1]
    spoil(labels, how if labels.suffix == ".mat" or how not in ("fraction", "key") else "cut")
    if how == "missing":
        assert refused("data: expected a file, got none at ", data.KINDS[kind], tmp_path).endswith(str(labels))
    else:
        assert str(labels) in refused(r"^(labels|image): expected ", data.KINDS[kind](tmp_path).__getitem__, 0)
    dataset = data.KINDS[kind](tmp_path, broken="skip")
    assert len(dataset) == 2 and list(dataset.skipped) == [next(iter(tree))]
    assert str(labels) in dataset.skipped[next(iter(tree))]
    for item, expected in zip(dataset, list(tree.values())[1:], strict=True):
        same(item, expected, MEAN[kind])


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "text"])
def test_broken_images(how, tmp_path, generator):
    path = list(grow("voc", tmp_path, generator).values())[1][0]
    spoil(path, how)
    if how == "missing":
        path.with_name("2011_003256.jpg").unlink()
        assert refused("got none at ", data.VOC, tmp_path).endswith(f"{path} (and 1 more are missing)")
        return
    assert str(path) in refused("image: expected ", data.VOC(tmp_path).__getitem__, 1)
    assert list(data.VOC(tmp_path, broken="skip").skipped) == ["2008_000123"]
    for other in path.parent.iterdir():
        spoil(other, how)
    refused(
        "data: expected images with labels, got only broken ones, the first: image: ", data.VOC, tmp_path, broken="skip"
    )


def test_labels_in_colour(tmp_path, generator):
    trees.voc(tmp_path, generator)
    path = tmp_path / "SegmentationClass" / "2007_000033.png"
    Image.open(path).convert("RGB").save(path)
    assert str(path) in refused(
        "expected grey values or palette indices, got mode RGB", data.VOC(tmp_path).__getitem__, 0
    )


def test_depth_with_holes(tmp_path, generator):
    trees.nyud(tmp_path, generator)
    path = tmp_path / "data" / "depth" / "img_5001.png"
    Image.fromarray(np.zeros((5, 7), np.uint16)).save(path)
    dataset = data.NYUD(tmp_path, transform=TRANSFORMS["nyud-color-d"])
    assert str(path) in refused("depth: expected values above 0, holes filled, got 0.0", dataset.__getitem__, 0)


def test_a_list_without_a_class(tmp_path, generator):
    trees.pascalcontext(tmp_path, generator)
    path = tmp_path / "labels.txt"
    text = path.read_text()
    path.write_text(text.replace(": bedclothes\n", ": sheets\n"))
    refused(f"data: expected a list with bedclothes, got {path}", data.PASCALContext, tmp_path)
    path.write_text(text.replace(": bedclothes", " bedclothes"))
    refused(f"data: expected lines such as 2: aeroplane, got {path}", data.PASCALContext, tmp_path)
    path.unlink()
    refused(f"data: expected a file that can be read, got {path}", data.PASCALContext, tmp_path)


def test_what_cannot_be_opened(tmp_path, generator, monkeypatch):
    refused("data: expected KIND:PATH with one of nyud, .*, got voc2012:here", data.open_data, "voc2012:here")
    for kind in data.KINDS:
        if kind != "shapes":
            refused(f"data: expected a folder with .*, got {tmp_path}/none", data.open_data, f"{kind}:{tmp_path}/none")
    trees.siftflow(tmp_path, generator)
    hha = TRANSFORMS["nyud-color-hha"]
    refused("expected a data set with hha, got one with color", data.SIFTFlow, tmp_path, transform=hha)
    with pytest.raises(ValueError, match="broken: expected error or skip, got never"):
        data.SIFTFlow(tmp_path, broken="never")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    refused("data: expected scipy, which reads .mat files", data.SIFTFlow(tmp_path).__getitem__, 0)


def test_mat_files_of_other_shapes(tmp_path):
    for value in (np.ones((2, 2, 2)), np.full((2, 2), np.nan), np.full((2, 2), 1e30), "text", {"a": 1}):
        trees.save_mat(tmp_path / "a.mat", {"S": value})
        for keys in (["S"], ["S", "Segmentation"]):
            refused(r"labels: expected whole numbers \(H, W\) in S", labelled.read_mat, tmp_path / "a.mat", *keys)
