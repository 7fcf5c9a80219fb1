"""Checkpoints: one safetensors file with the weights, the optimiser's state and what else training goes on from."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fcn_fast.command import InputError

__all__ = ["load", "save"]


def save(path, model, optimizer, facts):
    """Write a checkpoint: after a crash at any moment the file is the one before or this one, whole.

    Args:
        path: of the file.
        model: an FCN.
        optimizer: of its parameters.
        facts: what JSON can hold.

    Raises:
        OSError: the file cannot be written; one that was there before is still there.
    """
    path = Path(path)
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value.contiguous()
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(tensors, partial, metadata={"format": "pt", "facts": json.dumps(facts)})
        partial.chmod(mode)  # safetensors lets only the owner read
        _sync(partial)
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"{partial}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


def load(path, model, optimizer):
    """Load what :func:`save` wrote into a model and an optimiser of its parameters; returns the facts.

    Raises:
        InputError: the file cannot be read, is no checkpoint, or one of another net. Nothing was loaded.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            facts = json.loads(file.metadata()["facts"])
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"resume: expected a checkpoint that fcn-fast train wrote, got {path} ({error})") from error
    shapes = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    if shapes != {key: tensor.shape for key, tensor in tensors.items() if key.startswith("model.")}:
        raise InputError(
            f"resume: expected a checkpoint of {model.variant.name} of the same shape, got another's: {path}"
        )
    model.load_state_dict({key.removeprefix("model."): tensors[key] for key in shapes})
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            state, _, name = rest.partition(".")
            parameter = parameters[name]
            # What is as large as the parameter lies as it does; the count of AdamW's steps stays on the CPU.
            like = parameter if tensor.shape == parameter.shape else tensor
            optimizer.state[parameter][state] = torch.empty_like(like).copy_(tensor)
    return facts


def _sync(path):
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
