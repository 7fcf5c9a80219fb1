"""PASCAL VOC 2011 and 2012, segmentation: its classes, its colours and its files."""

from fcn_fast.data.images import MEAN_BGR, read_values
from fcn_fast.data.labelled import LabelledImages, find_folder, read_names
from fcn_fast.data.transforms import LABELS

__all__ = ["CLASSES", "MEAN_BGR", "VOC", "palette"]

CLASSES = tuple(
    (
        "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
        "pottedplant sheep sofa train tvmonitor"
    ).split()
)


class VOC(LabelledImages):
    """Images and classes of one year: JPEGImages/NAME.jpg and SegmentationClass/NAME.png.

    Args:
        root: the year's folder, such as VOCdevkit/VOC2012.
        split: a list in ImageSets/Segmentation: train, val, trainval, or one that is put there, such as the published
            seg11valid.
        transform, broken: as in :class:`LabelledImages`.
        without: names to leave out.

    Raises:
        InputError: as :class:`LabelledImages`, no such folder or list, or no name left.
    """

    classes = CLASSES
    own_transform = "voc"

    def __init__(self, root, split=None, transform=None, broken="error", without=()):
        self.root = find_folder(root, "ImageSets/Segmentation")
        self.split = split or "val"
        names = read_names(self.root / "ImageSets" / "Segmentation" / f"{self.split}.txt", without)
        super().__init__(names, transform, broken)

    def image_path(self, part, name):
        return self.root / "JPEGImages" / f"{name}.jpg"

    def label_path(self, head, name):
        return self.root / "SegmentationClass" / f"{name}.png"

    def read_labels(self, head, path):
        return LABELS["voc"](read_values(path))[0]


def palette():
    """The 256 colours of VOC's label images, (red, green, blue) each: the label's bits, dealt to the three in turn."""
    return [
        tuple(sum((label >> (3 * i + channel) & 1) << (7 - i) for i in range(3)) for channel in range(3))
        for label in range(256)
    ]
