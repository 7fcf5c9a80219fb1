"""Loads published, ported and pretrained weights into the nets, and saves them."""

import errno
import json
import os
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from fcn_fast.data.voc import MEAN_BGR
from fcn_fast.models import caffemodel
from fcn_fast.models.assign import WeightsError, assign, published_names, widen_first_layer
from fcn_fast.models.fcn import build
from fcn_fast.models.variants import VARIANTS, VGG16, ConvLayer

__all__ = [
    "WeightsError",
    "from_safetensors",
    "load_caffemodel",
    "load_safetensors",
    "load_torchfcn",
    "load_vgg16",
    "save_safetensors",
    "transplant",
]

# What torchvision's own VGG-16 was trained on: RGB from 0 to 1, minus this, over that.
_RGB_MEAN, _RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What a saved model must know beside its name to be built again.
_FACTS = ("num_classes", "width", "padding", "learned_upsampling")


def load_caffemodel(model, path, *, strict=True):
    """Load a ``.caffemodel`` of the published repository, or of a net that shares its layers' names.

    Args:
        model: an :class:`FCN`.
        path: of the file, in the current or in the V1 form; see :func:`fcn_fast.models.caffemodel.read`.
        strict: False to take what the file has of the model's layers and leave the rest as it is: from VGG-16 or
            CaffeNet for classification, whose fully connected layers go into fc6 and fc7, as published training
            starts. A fourth, depth channel of the first layer starts with the mean over blue, green and red.

    Returns:
        (missing, extra): the published names of the model's tensors that the file lacks, and the file's that it has
        more; both empty when strict.

    Raises:
        WeightsError: missing, extra or mis-shaped tensors, each listed with both shapes; upsampling filters that are
            not bilinear, for a model whose upsampling is; other scales than the at-once net's; or the file is no Caffe
            model. Nothing was loaded.
        OSError: the file cannot be read.
    """
    tensors = {}
    for layer, arrays in caffemodel.read(path).items():
        for i, array in enumerate(arrays):
            # Published layers have a weight and perhaps a bias; anything else is named as what it is.
            kind = ("weight", "bias")[i] if i < 2 else f"blobs[{i}]"
            tensors[f"{layer}.{kind}"] = torch.tensor(array)
    if not strict:
        tensors = widen_first_layer(model, tensors)
    return assign(model, tensors, path, strict=strict, scales=strict)


def load_torchfcn(model, path):
    """Load a state dict of wkentaro/pytorch-fcn (FCN32s, FCN16s, FCN8s, FCN8sAtOnce), or its trainer's checkpoint, or
    the state dict of an :class:`FCN` that torch.save wrote.

    The ported deconvolutions are dense; for a model whose upsampling is fixed they are checked to be bilinear. Nothing
    in the file tells FCN8sAtOnce from FCN8s, nor an FCN's padding: take a model that is built as the one it is from.

    Args:
        model: an :class:`FCN`; of a port, on VGG-16 with one head.
        path: of a file of torch.save, which is read without unpickling objects.

    Raises:
        WeightsError: as :func:`load_caffemodel`, or the file is no state dict. Nothing was loaded.
        OSError: the file cannot be read.
    """
    assign(model, _by_published_names(model, _read_pickle(path, "model_state_dict")), path)


def load_vgg16(model, path, *, pixels="bgr"):
    """Load VGG-16 for classification under torchvision's keys, as training starts; score layers stay as they are.

    ``features`` become conv1_1 to conv5_3, ``classifier.0`` and ``classifier.3`` are viewed into fc6 and fc7, and
    ``classifier.6`` is left out. A fourth, depth channel of the first layer starts with the mean over the others.

    Args:
        model: an :class:`FCN` on VGG-16 with one stream.
        path: of a file of torch.save, which is read without unpickling objects.
        pixels: what the weights were trained on. ``"bgr"``: Caffe's, as this package's input (torchvision's keys are
            also those of ports of the original). ``"rgb"``: torchvision's own, red, green and blue from 0 to 1,
            normalised; the first layer is converted so that it sees the same of this package's VOC input.

    Raises:
        ValueError: another pixels.
        WeightsError: as :func:`load_caffemodel`, or the file is no state dict. Nothing was loaded.
        OSError: the file cannot be read.
    """
    if pixels not in ("bgr", "rgb"):
        raise ValueError(f"pixels: expected 'bgr' or 'rgb', got {pixels!r}")
    layers = _torchvision_layers()
    tensors = {}
    for key, tensor in _read_pickle(path).items():
        layer, _, kind = key.rpartition(".")
        if layer != "classifier.6":
            tensors[f"{layers[layer]}.{kind}" if layer in layers else key] = tensor
    if pixels == "rgb" and all(f"conv1_1.{kind}" in tensors for kind in ("weight", "bias")):
        tensors |= _on_bgr(tensors["conv1_1.weight"], tensors["conv1_1.bias"])
    assign(model, widen_first_layer(model, tensors), path, optional=("score", "upscore"))


def transplant(model, source, *, stream=""):
    """Copy every tensor that source's and model's layers have in common: 32s to 16s to 8s, as in published training.

    Layers that only one of the two has stay as they are: build the model with ``zero_scores=True`` for new score
    layers as published. From a net on blue, green and red to one with depth, depth starts with their mean.

    Args:
        model: an :class:`FCN` that takes weights.
        source: the :class:`FCN` that has them.
        stream: the stream of a late fusion that takes them, ``"color"`` or ``"hha"``.

    Returns:
        (missing, extra): the published names of the tensors that only the model and only the source has.

    Raises:
        ValueError: a stream that the model does not have.
        WeightsError: nothing in common, or tensors of other shapes, each listed with both. Nothing was copied.
    """
    if stream not in model.variant.streams:
        raise ValueError(f"stream: expected one of {list(model.variant.streams)}, got {stream!r}")
    state = source.state_dict()
    tensors = {}
    for name, key in published_names(source).items():
        layer, _, kind = name.rpartition(".")
        tensors[f"{layer}{stream}.{kind}"] = state[key]
    return assign(model, widen_first_layer(model, tensors), source.variant.name, strict=False)


def save_safetensors(model, path):
    """Save the model's weights under the names of its state dict, and what :func:`from_safetensors` needs to build it.

    Raises:
        OSError: the file cannot be written; one that was there before is still there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    facts = {"model": model.variant.name, **{name: getattr(model, name) for name in _FACTS}}
    if model.class_names:
        facts["class_names"] = model.class_names
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()  # where it cannot be written, an OSError says why
        mode = partial.stat().st_mode
        save_file(state, partial, metadata={"format": "pt", "fcn_fast": json.dumps(facts)})
        partial.chmod(mode)  # safetensors lets only the owner read
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def load_safetensors(model, path):
    """Load what :func:`save_safetensors` saved.

    Raises:
        WeightsError: as :func:`load_caffemodel`; no safetensors file; or one of a net that scales its skips otherwise.
        OSError: the file cannot be read.
    """
    state, facts = _read_safetensors(path)
    variant = VARIANTS.get(facts.get("model"))
    if variant and variant.skip_scales != model.variant.skip_scales:
        raise WeightsError(f"{path}: expected the weights of {model.variant.name}, got those of {variant.name}")
    assign(model, _by_published_names(model, state), path)


def from_safetensors(path, **options):
    """The model that :func:`save_safetensors` saved, in evaluation mode.

    Args:
        path: of the file.
        **options: of :class:`FCN`, in place of what the file says: padding, ops.

    Raises:
        WeightsError: no safetensors file, or one that :func:`save_safetensors` did not write.
        OSError: the file cannot be read.
    """
    state, facts = _read_safetensors(path)
    name = facts.get("model")
    if not isinstance(name, str) or name not in VARIANTS:
        raise WeightsError(
            f"{path}: expected a file that fcn_fast.models.save_safetensors(model, path) wrote, "
            "got one that does not name its model"
        )
    settings = {name: facts[name] for name in _FACTS if name in facts}
    _check_settings(name, settings, state, path)
    model = build(name, **settings | options)
    load_safetensors(model, path)
    model.class_names = _class_names(facts.get("class_names", {}), model.heads, path)
    return model.eval()


def _by_published_names(model, state):
    """Tensors under the names of the model's state dict under the published ones; others keep theirs."""
    published = {key: name for name, key in published_names(model).items()}
    return {published.get(key, key): tensor for key, tensor in state.items()}


def _class_names(names, heads, path):
    """{head: names by label} of a file, as many as its classes."""
    try:
        found = {head: tuple(of_head) for head, of_head in names.items()}
        good = all(isinstance(name, str) and name.isprintable() for of_head in found.values() for name in of_head)
    except (AttributeError, TypeError):
        good = False
    if not good or found and {head: len(of_head) for head, of_head in found.items()} != heads:
        raise WeightsError(f"{path}: expected a name for each of {heads} classes, got {str(names)[:200]}")
    return found


def _check_settings(name, settings, state, path):
    """That a file's tensors are those of the model it names, before there is memory for what it only claims."""
    try:
        classes = settings.get("num_classes") or 0
        largest = max((max(tensor.shape) for tensor in state.values() if tensor.numel() and tensor.dim()), default=0)
        if max(classes.values() if isinstance(classes, dict) else [classes]) > largest:
            raise ValueError(f"num_classes: expected at most {largest}, as in the largest tensor, got {classes}")
        with torch.device("meta"), _Uninitialised():
            expected = build(name, **settings).state_dict()
    except Exception as error:  # whatever a setting of another type or size leads to
        raise WeightsError(f"{path}: expected the settings of {name}, got {settings} ({error})") from error
    shapes, found = ({key: tensor.shape for key, tensor in each.items()} for each in (expected, state))
    wrong = [key for key in sorted(shapes | found) if shapes.get(key) != found.get(key)]
    if wrong:
        pairs = (f"{key}: expected {_shape(shapes.get(key))}, got {_shape(found.get(key))}" for key in wrong)
        raise WeightsError("\n  ".join([f"{path}: expected the tensors of {name} with {settings}, got others", *pairs]))


class _Uninitialised(TorchFunctionMode):
    """Passes initialisation by, for which tensors of mere shapes would load half of PyTorch's compiler."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs or {})


def _shape(size):
    return "none" if size is None else tuple(size)


def _read_safetensors(path):
    """The tensors of a safetensors file, and the facts that :func:`save_safetensors` put beside them, or {}."""
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):
        pass  # a file that cannot be read is an OSError that names it, whatever safetensors makes of it
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata() or {}
            facts = json.loads(metadata.get("fcn_fast", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: expected a safetensors file, got something else ({error})") from error
    if "facts" in metadata:  # what fcn_fast.train.checkpoint writes beside the tensors
        raise WeightsError(
            f"{path}: expected weights, got a training checkpoint; use weights.safetensors beside it, "
            "which training writes at its end"
        )
    return state, facts if isinstance(facts, dict) else {}


def _read_pickle(path, part=None):
    """The dict in a file of torch.save, or this part of it if it has it; unpickles only tensors and plain values."""
    expected = f"{path}: expected a state dict that torch.save wrote"
    with open(path, "rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises nearly everything, by the file's content
            raise WeightsError(f"{expected}, got something else or one with other objects than tensors") from error
    if isinstance(state, dict):
        state = state.get(part, state)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise WeightsError(f"{expected}, got {type(state).__name__}")
    return state


def _torchvision_layers():
    """{torchvision's layer: published name} of VGG-16."""
    layers, i = {}, 0
    for layer in sum(VGG16.stages, ()):
        if isinstance(layer, ConvLayer):
            layers[f"features.{i}"] = layer.name
            i += 1  # its ReLU
        i += 1
    return layers | {"classifier.0": "fc6", "classifier.3": "fc7"}


def _on_bgr(weight, bias):
    """conv1_1 of torchvision's VGG-16 for input in blue, green, red from 0 to 255 minus VOC's mean."""
    scale = 255 * torch.tensor(_RGB_STD, dtype=torch.float64)
    shift = torch.tensor(MEAN_BGR[::-1], dtype=torch.float64) - 255 * torch.tensor(_RGB_MEAN, dtype=torch.float64)
    scaled = weight.double() / scale.view(1, 3, 1, 1)
    moved = bias.double() + (scaled * shift.view(1, 3, 1, 1)).sum((1, 2, 3))
    return {"conv1_1.weight": scaled.flip(1).to(weight.dtype), "conv1_1.bias": moved.to(bias.dtype)}
