"""What the readers of data sets on disk share: lists of names, one file an image and one a label map."""

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from fcn_fast.command import InputError
from fcn_fast.data.images import read_image, read_values
from fcn_fast.data.transforms import TRANSFORMS, VOID

__all__ = ["LabelledImages", "find_folder", "read_mat", "read_names"]


def _as_stored(path):
    return read_image(path, upright=False)


_READERS = {"color": _as_stored, "hha": _as_stored, "depth": read_values}


class LabelledImages(Dataset):
    """Images and their label maps in a folder, as :mod:`fcn_fast.data` says, read when they are asked for.

    A reader sets :attr:`split`, :attr:`classes`, :attr:`own_transform` and :attr:`parts`, and says where files are and
    what labels are in them (:meth:`image_path`, :meth:`label_path`, :meth:`read_labels`).

    Args:
        names: of the items, in order.
        transform: of :data:`fcn_fast.data.transforms.TRANSFORMS`; the data set's own unless given.
        broken: what to do with items whose files are missing or no good: ``"error"`` raises, here for the missing and
            when one is read for the others; ``"skip"`` reads all items here once and leaves the broken ones out.

    Attributes:
        names: of the items that are left.
        skipped: {name: what is wrong with it}.

    Raises:
        InputError: a transform of parts that the data set does not have, a missing file, or only broken items.
        ValueError: another ``broken``.
    """

    split: str
    classes: tuple | dict
    own_transform: str
    parts = ("color",)
    ignore_index = VOID

    def __init__(self, names, transform=None, broken="error"):
        if broken not in ("error", "skip"):
            raise ValueError(f"broken: expected error or skip, got {broken}")
        self.transform = transform or TRANSFORMS[self.own_transform]
        absent = [part for part in self.transform.parts if part not in self.parts]
        if absent:
            has = " and ".join(self.parts)
            raise InputError(f"data: expected a data set with {' and '.join(absent)}, got one with {has}")
        self.names = list(names)
        self.skipped = {}
        if broken == "skip":
            self._leave_out_broken()
        else:
            self._check_files()

    def image_path(self, part, name):
        """Where the image of a part (``"color"``, ``"hha"`` or ``"depth"``) is."""
        raise NotImplementedError

    def label_path(self, head, name):
        """Where the labels for a head are; ``""`` where there is only one."""
        raise NotImplementedError

    def read_labels(self, head, path):
        """int64 (H, W) labels in a file, from 0, 255 for void."""
        raise NotImplementedError

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        """(image, target) of an item.

        Raises:
            InputError: a file is missing or is not what it should be; the message has its path.
        """
        name = self.names[index]
        paths = [self.image_path(part, name) for part in self.transform.parts]
        images = [_READERS[part](path) for part, path in zip(self.transform.parts, paths, strict=True)]
        try:
            image = self.transform(*images)[0]
        except ValueError as error:
            raise InputError(f"{error}: {' '.join(map(str, paths))}") from error
        target = {head: self._target(head, name, image.shape[-2:]) for head in self._heads}
        return image, target if isinstance(self.classes, dict) else target[""]

    @property
    def _heads(self):
        return self.classes if isinstance(self.classes, dict) else {"": self.classes}

    def _target(self, head, name, size):
        path = self.label_path(head, name)
        target = self.read_labels(head, path)
        if target.shape != size:
            size, got = (f"{width}x{height}" for height, width in (size, target.shape))
            raise InputError(f"labels: expected {size}, as the image is, got {got}: {path}")
        last = len(self._heads[head]) - 1
        wrong = target[((target < 0) | (target > last)) & (target != self.ignore_index)]
        if wrong.numel():
            raise InputError(f"labels: expected classes from 0 to {last} or void, got {wrong[0].item()}: {path}")
        return target

    def _files(self, name):
        yield from (self.image_path(part, name) for part in self.transform.parts)
        yield from (self.label_path(head, name) for head in self._heads)

    def _check_files(self):
        missing = [path for name in self.names for path in self._files(name) if not path.is_file()]
        if missing:
            more = f" (and {len(missing) - 1} more are missing)" * (len(missing) > 1)
            raise InputError(f"data: expected a file, got none at {missing[0]}{more}")

    def _leave_out_broken(self):
        for index in tqdm(range(len(self)), desc="reading", disable=None, leave=False, unit="image"):
            try:
                self[index]
            except InputError as error:
                self.skipped[self.names[index]] = str(error)
        self.names = [name for name in self.names if name not in self.skipped]
        if not self.names:
            first = next(iter(self.skipped.values()))
            raise InputError(f"data: expected images with labels, got only broken ones, the first: {first}")


def find_folder(root, marker, places=("",)):
    """The first of ``root``'s places that has ``marker`` in it.

    Raises:
        InputError: none has.
    """
    for place in places:
        if Path(root, place, marker).exists():
            return Path(root, place)
    names = " or ".join(str(Path(place, marker)) for place in places)
    raise InputError(f"data: expected a folder with {names}, got {root}")


def read_names(path, without=()):
    """The names in a split's list, the first word of each line, without some of them.

    Raises:
        InputError: there is no such list, or no name left.
    """
    try:
        names = [line.split()[0] for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        splits = ", ".join(sorted(other.stem for other in Path(path).parent.glob("*.txt")))
        raise InputError(f"split: expected one of the lists ({splits or 'none'}), got {path} ({reason})") from error
    names = [name for name in names if name not in without]
    if not names:
        raise InputError(f"split: expected a list with names{' besides those of train' * bool(without)}, got {path}")
    return names


def read_mat(path, *keys):
    """The int64 (H, W) array under ``keys`` in a MATLAB file (before 7.3): a variable, and the field of a structure.

    Raises:
        InputError: scipy is not installed, no such file, or other contents.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise InputError("data: expected scipy, which reads .mat files (pip install scipy), got none") from error
    try:
        value = loadmat(path)
    except FileNotFoundError as error:
        raise InputError(f"labels: expected a file that can be read, got {path} ({error.strerror})") from error
    except Exception as error:  # what scipy raises on damaged files is of many kinds
        raise InputError(f"labels: expected a .mat file, got {path}") from error
    try:
        value = value[keys[0]]
        for key in keys[1:]:
            value = value[key][0, 0]
        with np.errstate(invalid="ignore"):  # what is no whole number differs below
            labels = np.asarray(value).astype(np.int64)
        if labels.ndim == 2 and (labels == value).all():
            return labels
    except (KeyError, IndexError, TypeError, ValueError):
        pass
    raise InputError(f"labels: expected whole numbers (H, W) in {'.'.join(keys)}, got none: {path}")
