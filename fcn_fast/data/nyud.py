"""NYUDv2 with the 40 classes of Gupta et al. (CVPR 2013): colour, depth and HHA."""

from fcn_fast.data.images import read_values
from fcn_fast.data.labelled import LabelledImages, find_folder, read_mat, read_names
from fcn_fast.data.transforms import LABELS

__all__ = ["CLASSES", "NYUD"]

CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat"),
    *("clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain", "box"),
    *("whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag"),
    *("otherstructure", "otherfurniture", "otherprop"),
)


class NYUD(LabelledImages):
    """The layout of the published nets: data/{images,depth,hha}/img_NAME.png and segmentation/img_NAME.mat or .png.

    Only what the transform takes is read: colour, HHA, colour with depth, or colour with HHA.

    Args:
        root: folder with data, segmentation and the lists.
        split: a list there: train, val, trainval or test.
        transform, broken: as in :class:`LabelledImages`.

    Raises:
        InputError: as :class:`LabelledImages`, or no such folder or list.
    """

    classes = CLASSES
    own_transform = "nyud-color"
    parts = ("color", "depth", "hha")

    def __init__(self, root, split=None, transform=None, broken="error"):
        self.root = find_folder(root, "segmentation")
        self.split = split or "test"
        super().__init__(read_names(self.root / f"{self.split}.txt"), transform, broken)

    def image_path(self, part, name):
        folder = "images" if part == "color" else part
        return self.root / "data" / folder / f"img_{name}.png"

    def label_path(self, head, name):
        path = self.root / "segmentation" / f"img_{name}.png"
        return path if path.exists() else path.with_suffix(".mat")

    def read_labels(self, head, path):
        return LABELS["nyud"](read_values(path) if path.suffix == ".png" else read_mat(path, "segmentation"))[0]
