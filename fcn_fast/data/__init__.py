"""Images with their label maps: the data sets of the published nets, and one that is generated.

A data set is a map-style :class:`torch.utils.data.Dataset`. Its item is ``(image, target)``:

- image: float32 (C, H, W), made by ``transform``, one of :data:`fcn_fast.data.transforms.TRANSFORMS`, at native size;
- target: int64 (H, W), 255 where a pixel is void; where a net has several heads, {head: target}.

Its attributes ``classes`` (names by label, a tuple; {head: names} where there are several) and ``ignore_index`` (255)
say what the labels mean, and ``split`` which of its images these are. ``KINDS[kind](path, split, transform)`` opens
one; None for split or transform means the data set's own, and for the split that is the one it is evaluated on.
"""

from fcn_fast.command import InputError
from fcn_fast.data.nyud import NYUD
from fcn_fast.data.pascalcontext import PASCALContext
from fcn_fast.data.sbd import SBD, voc_sbd
from fcn_fast.data.shapes import Shapes
from fcn_fast.data.siftflow import SIFTFlow
from fcn_fast.data.voc import VOC

__all__ = ["KINDS", "NYUD", "PASCALContext", "SBD", "SIFTFlow", "Shapes", "VOC", "class_names", "open_data", "voc_sbd"]

KINDS = {
    "nyud": NYUD,
    "pascalcontext": PASCALContext,
    "sbd": SBD,
    "shapes": Shapes,
    "siftflow": SIFTFlow,
    "voc": VOC,
    "voc-sbd": voc_sbd,
}
"""{kind of data set: what opens one}."""


def open_data(spec, split=None, transform=None, broken="error"):
    """The data set that ``KIND:PATH`` names; where the kind needs no path, ``KIND``.

    Args:
        spec: one of :data:`KINDS`, a colon, and where the data are.
        split, transform: as in :data:`KINDS`.
        broken: ``"error"``, or ``"skip"`` to leave out what has missing or broken files; Shapes has no files.

    Raises:
        InputError: no such kind, or as the kind's own.
    """
    kind, _, path = str(spec).partition(":")
    if kind not in KINDS:
        raise InputError(f"data: expected KIND:PATH with one of {', '.join(KINDS)}, got {spec}")
    options = {} if KINDS[kind] is Shapes else {"broken": broken}
    return KINDS[kind](path, split, transform, **options)


def class_names(transform):
    """{head: names by label} of the data set that a transform is for, whose kind its name begins with; {} for no kind.

    Args:
        transform: name in :data:`fcn_fast.data.transforms.TRANSFORMS`.
    """
    classes = getattr(KINDS.get(transform.partition("-")[0]), "classes", {})
    return classes if isinstance(classes, dict) else {"": classes}
