"""PASCAL-Context (Mottaghi et al., CVPR 2014): whole scenes of VOC 2010, with its 59 classes and background."""

import numpy as np

from fcn_fast.command import InputError
from fcn_fast.data.labelled import LabelledImages, find_folder, read_mat, read_names
from fcn_fast.data.transforms import LABELS

__all__ = ["CLASSES", "PASCALContext"]

CLASSES = tuple(
    (
        "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
        "pottedplant sheep sofa train tvmonitor bag bed bench book building cabinet ceiling clothes computer cup door "
        "fence floor flower food grass ground keyboard light mountain mouse curtain platform sign plate road rock "
        "shelves sidewalk sky snow bedcloth track tree truck wall water window wood"
    ).split()
)

_IN_THE_FULL_LIST = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
_VOC2010 = ("VOC2010", "VOCdevkit/VOC2010", "pascal/VOC2010")


class PASCALContext(LabelledImages):
    """VOC2010/JPEGImages/NAME.jpg and trainval/NAME.mat, whose labels labels.txt names; all but the 59 are background.

    Args:
        root: folder with trainval and labels.txt, or with pascal-context, which has them; and with VOC2010, or with
            VOCdevkit or pascal, which has it.
        split: a list in VOC2010/ImageSets/Main: train or val.
        transform, broken: as in :class:`LabelledImages`.

    Raises:
        InputError: as :class:`LabelledImages`, no such folder or list, or a labels.txt without one of the classes.
    """

    classes = CLASSES
    own_transform = "pascalcontext"

    def __init__(self, root, split=None, transform=None, broken="error"):
        self.root = find_folder(root, "trainval", ("", "pascal-context"))
        self.voc = find_folder(root, "ImageSets/Main", _VOC2010)
        self.to_class = _to_class(self.root / "labels.txt")
        self.split = split or "val"
        names = read_names(self.voc / "ImageSets" / "Main" / f"{self.split}.txt")
        super().__init__(names, transform, broken)

    def image_path(self, part, name):
        return self.voc / "JPEGImages" / f"{name}.jpg"

    def label_path(self, head, name):
        return self.root / "trainval" / f"{name}.mat"

    def read_labels(self, head, path):
        labels = read_mat(path, "LabelMap")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.to_class):
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise InputError(f"labels: expected numbers from 0 to {len(self.to_class) - 1}, got {wrong}: {path}")
        return LABELS["pascalcontext"](self.to_class[labels])[0]


def _to_class(path):
    """int64 array: the class of each number in the full list, whose lines are ``number: name``."""
    try:
        lines = [line.split(":") for line in path.read_text().splitlines() if line.strip()]
        numbers = {name.replace(" ", ""): int(number) for number, name in lines}
    except OSError as error:
        raise InputError(f"data: expected a file that can be read, got {path} ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"data: expected lines such as 2: aeroplane, got {path}") from error
    classes = np.zeros(max(numbers.values(), default=0) + 1, np.int64)
    for label, name in enumerate(CLASSES[1:], 1):
        name = _IN_THE_FULL_LIST.get(name, name)
        if name not in numbers:
            raise InputError(f"data: expected a list with {name}, got {path}")
        classes[numbers[name]] = label
    return classes
