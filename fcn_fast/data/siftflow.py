"""SIFT Flow (Liu et al., with the labels of Tighe and Lazebnik, ECCV 2010): what things are, and how surfaces lie."""

from fcn_fast.data.labelled import LabelledImages, find_folder, read_mat, read_names
from fcn_fast.data.transforms import LABELS

__all__ = ["CLASSES", "SIFTFlow"]

CLASSES = {
    "sem": tuple(
        (
            "awning balcony bird boat bridge building bus car cow crosswalk desert door fence field grass moon "
            "mountain person plant pole river road rock sand sea sidewalk sign sky staircase streetlight sun tree "
            "window"
        ).split()
    ),
    "geo": ("sky", "horizontal", "vertical"),
}

_SET = "spatial_envelope_256x256_static_8outdoorcategories"
_FOLDERS = {"sem": "SemanticLabels", "geo": "GeoLabels"}
_RULES = {"sem": LABELS["siftflow-semantic"], "geo": LABELS["siftflow-geometric"]}


class SIFTFlow(LabelledImages):
    """Images/SET/NAME.jpg, with SemanticLabels/SET/NAME.mat and GeoLabels/SET/NAME.mat.

    A target is ``{"sem": 33 classes, "geo": 3 classes}``, as the heads of the published nets. Cow, desert and moon do
    not occur in the test images.

    Args:
        root: folder with Images and the lists.
        split: a list there: trainval or test.
        transform, broken: as in :class:`LabelledImages`.

    Raises:
        InputError: as :class:`LabelledImages`, or no such folder or list.
    """

    classes = CLASSES
    own_transform = "siftflow"

    def __init__(self, root, split=None, transform=None, broken="error"):
        self.root = find_folder(root, "SemanticLabels")
        self.split = split or "test"
        super().__init__(read_names(self.root / f"{self.split}.txt"), transform, broken)

    def image_path(self, part, name):
        return self.root / "Images" / _SET / f"{name}.jpg"

    def label_path(self, head, name):
        return self.root / _FOLDERS[head] / _SET / f"{name}.mat"

    def read_labels(self, head, path):
        return _RULES[head](read_mat(path, "S"))[0]
