"""The Semantic Boundaries Dataset (Hariharan et al., ICCV 2011): further labels of VOC's images and classes."""

from fcn_fast.command import InputError
from fcn_fast.data.labelled import LabelledImages, find_folder, read_mat, read_names
from fcn_fast.data.transforms import LABELS
from fcn_fast.data.voc import CLASSES, VOC

__all__ = ["SBD", "voc_sbd"]

_SBD = ("", "dataset", "benchmark_RELEASE/dataset")
_VOC2011 = ("VOC2011", "VOCdevkit/VOC2011", "TrainVal/VOCdevkit/VOC2011")


class SBD(LabelledImages):
    """SBD's own split: img/NAME.jpg and cls/NAME.mat.

    Its train images are in part VOC's val images: :func:`voc_sbd` keeps them apart.

    Args:
        root: benchmark_RELEASE, the folder with it, or dataset in it.
        split: train, val, or another list beside these two.
        transform, broken: as in :class:`LabelledImages`.

    Raises:
        InputError: as :class:`LabelledImages`, or no such folder or list.
    """

    classes = CLASSES
    own_transform = "voc"

    def __init__(self, root, split=None, transform=None, broken="error"):
        self.root = find_folder(root, "cls", _SBD)
        self.split = split or "val"
        super().__init__(read_names(self.root / f"{self.split}.txt"), transform, broken)

    def image_path(self, part, name):
        return self.root / "img" / f"{name}.jpg"

    def label_path(self, head, name):
        return self.root / "cls" / f"{name}.mat"

    def read_labels(self, head, path):
        return LABELS["voc"](read_mat(path, "GTcls", "Segmentation"))[0]


def voc_sbd(root, split=None, transform=None, broken="error"):
    """What the published nets for VOC were trained and tested on.

    Args:
        root: folder with benchmark_RELEASE (SBD) and VOCdevkit/VOC2011 (or TrainVal/VOCdevkit/VOC2011, or VOC2011).
        split: train, which is SBD's train, or val, which is seg11valid: VOC 2011's val without SBD's train.
        transform, broken: as in :class:`LabelledImages`.

    Raises:
        InputError: as :class:`SBD` and :class:`VOC`, or another split.
    """
    if split == "train":
        return SBD(root, "train", transform, broken)
    if split not in (None, "val"):
        raise InputError(f"split: expected train or val, got {split}")
    voc = find_folder(root, "ImageSets/Segmentation", _VOC2011)
    train = read_names(find_folder(root, "cls", _SBD) / "train.txt")
    return VOC(voc, "val", transform, broken, without=frozenset(train))
