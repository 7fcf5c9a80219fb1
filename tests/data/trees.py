"""Small trees in the layout of each data set, with random images and labels."""

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from fcn_fast.data.pascalcontext import CLASSES
from fcn_fast.data.voc import palette

SIZES = ((7, 5), (12, 9), (4, 16))
SIFT_SET = "spatial_envelope_256x256_static_8outdoorcategories"
FULL_NAMES = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}


def labels(generator, size, values):
    width, height = size
    return generator.choice(np.array(values), (height, width))


def save_image(path, generator, size, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = generator.integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **({"quality": 95, "subsampling": 0} | options if path.suffix == ".jpg" else {}))


def save_palette(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8)).convert("P")
    image.putpalette([value for colour in palette() for value in colour])
    image.save(path)


def save_mat(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, values, do_compression=True)


def save_list(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def voc(root, generator, names=("2007_000033", "2008_000123", "2011_003256"), split="val"):
    """A year's folder; {name: stored labels}."""
    stored = {}
    for name, size in zip(names, SIZES, strict=False):
        save_image(root / "JPEGImages" / f"{name}.jpg", generator, size)
        stored[name] = labels(generator, size, [*range(21), 255])
        save_palette(root / "SegmentationClass" / f"{name}.png", stored[name])
    save_list(root / "ImageSets" / "Segmentation" / f"{split}.txt", stored)
    return stored


def sbd(root, generator, names=("2008_000002", "2008_000123", "2010_000001"), split="val"):
    """benchmark_RELEASE; {name: stored labels}."""
    stored = {}
    for name, size in zip(names, SIZES, strict=False):
        save_image(root / "dataset" / "img" / f"{name}.jpg", generator, size)
        stored[name] = labels(generator, size, range(21))
        boundaries = np.empty((20, 1), object)
        boundaries[:, 0] = [csc_matrix(generator.random(stored[name].shape) < 0.1) for _ in range(20)]
        fields = {
            "Boundaries": boundaries,
            "Segmentation": stored[name].astype(np.uint8),
            "CategoriesPresent": np.unique(stored[name]),
        }
        save_mat(root / "dataset" / "cls" / f"{name}.mat", {"GTcls": fields})
    save_list(root / "dataset" / f"{split}.txt", stored)
    return stored


def nyud(root, generator, names=("5001", "5002", "6140"), split="test", suffix=".mat"):
    """Colour, depth in millimetres, HHA and labels; {name: stored labels}."""
    stored = {}
    for name, size in zip(names, SIZES, strict=False):
        for part in ("images", "hha"):
            save_image(root / "data" / part / f"img_{name}.png", generator, size)
        depth = root / "data" / "depth" / f"img_{name}.png"
        depth.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels(generator, size, range(700, 9000)).astype(np.uint16)).save(depth)
        stored[name] = labels(generator, size, range(41))
        path = root / "segmentation" / f"img_{name}{suffix}"
        if suffix == ".mat":
            save_mat(path, {"segmentation": stored[name].astype(np.uint8)})
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(stored[name].astype(np.uint8)).save(path)
    save_list(root / f"{split}.txt", stored)
    return stored


def siftflow(root, generator, names=("coast_natu975", "insidecity_art947", "street_urb1"), split="test"):
    """{name: {head: stored labels}}."""
    stored = {}
    for name, size in zip(names, SIZES, strict=False):
        save_image(root / "Images" / SIFT_SET / f"{name}.jpg", generator, size)
        stored[name] = {"sem": labels(generator, size, range(34)), "geo": labels(generator, size, range(-1, 4))}
        for head, folder in (("sem", "SemanticLabels"), ("geo", "GeoLabels")):
            values = stored[name][head].astype(np.float64 if head == "sem" else np.int16)
            save_mat(root / folder / SIFT_SET / f"{name}.mat", {"S": values, "names": np.array(["x", "y"], object)})
    save_list(root / f"{split}.txt", stored)
    return stored


def pascalcontext(root, generator, names=("2008_000002", "2009_000123", "2010_000001"), split="val"):
    """59 classes at random numbers of a list of 459; {name: stored labels}, and {number: class}."""
    numbers = generator.permutation(np.arange(1, 460))
    full = [FULL_NAMES.get(name, name) for name in CLASSES[1:]] + [f"thing {i}" for i in range(400)]
    named = dict(zip(numbers.tolist(), full, strict=True))
    save_list(root / "labels.txt", [f"{number}: {named[number]}" for number in sorted(named)])
    stored = {}
    for name, size in zip(names, SIZES, strict=False):
        save_image(root / "VOC2010" / "JPEGImages" / f"{name}.jpg", generator, size)
        stored[name] = labels(generator, size, [0, *numbers[:59], *numbers[300:320]])
        save_mat(root / "trainval" / f"{name}.mat", {"LabelMap": stored[name].astype(np.uint16)})
    save_list(root / "VOC2010" / "ImageSets" / "Main" / f"{split}.txt", stored)
    return stored, dict(zip(numbers[:59].tolist(), range(1, 60), strict=True))
