"""What the commands share."""

import tempfile
from pathlib import Path

import torch

__all__ = ["InputError", "pick_device", "spare_inputs", "writable_folder"]


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line that says what was expected."""


def pick_device(name=None):
    """The device of this name; cuda where there is a GPU unless given.

    Raises:
        InputError: cuda, where there is no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected cpu, as PyTorch finds no GPU, got cuda")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def writable_folder(path):
    """The folder of this path, made where there is none.

    Raises:
        InputError: it cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise InputError(f"out: expected a folder that can be written, got {path} ({error.strerror})") from error


def spare_inputs(outputs, inputs):
    """Refuse to write over what is read.

    Args:
        outputs: paths of the files to write, which may exist.
        inputs: paths of the files to read.

    Raises:
        InputError: an output is one of the inputs, under whatever name.
    """
    read = {_identity(path): path for path in map(Path, inputs) if path.exists()}
    for path in outputs:
        if path.exists() and (source := read.get(_identity(path))):
            raise InputError(f"out: expected another folder, as {path} would be written over the input {source}")


def _identity(path):
    status = path.stat()
    return status.st_dev, status.st_ino
