"""``fcn-fast predict`` and ``fcn-fast convert``: label maps of images, and weights from one file into another."""

import sys
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from fcn_fast import models, pictures
from fcn_fast.command import InputError, pick_device, spare_inputs, writable_folder
from fcn_fast.data import class_names
from fcn_fast.data.images import is_image, read_image
from fcn_fast.data.transforms import TRANSFORMS

__all__ = ["convert", "find_images", "load_model", "run"]

DEFAULT_MODEL = "voc-fcn8s"
_OUTPUTS = ("_labels.png", "_overlay.png")
_LOADERS = {".caffemodel": models.load_caffemodel, ".pth": models.load_torchfcn, ".pt": models.load_torchfcn}


def run(images, weights, model=None, out=".", device=None, skip_broken=False):
    """Predict images: write their label maps and overlays, print each class's share of the pixels.

    Args:
        images: paths of images and of folders with images. Pictures of an earlier run are replaced, but no input.
        weights: path of a ``.caffemodel``, of a ``.pth`` or ``.pt`` of wkentaro/pytorch-fcn or with the state dict of
            an :class:`fcn_fast.models.FCN`, or of a ``.safetensors`` that :func:`convert` wrote.
        model: name of the published net; what the weights say, or voc-fcn8s, unless given.
        out: folder of the PNGs.
        device: ``"cpu"`` or ``"cuda"``; cuda where there is a GPU unless given.
        skip_broken: whether to leave out images whose files are missing or no good.

    Returns:
        0, or 2 where some of several images could not be used, with skip_broken none of them; a line on stderr for each
        says which and why.

    Raises:
        InputError: no image, weights, folder or device that can be used.
    """
    device = pick_device(device)
    found = find_images(images, skip_broken)
    out = writable_folder(out)
    model = load_model(weights, model)
    transform, names = TRANSFORMS[model.variant.transform], _names(model)
    if len(transform.parts) > 1:
        takes = " and ".join(transform.parts)
        raise InputError(f"model: expected one that takes one image, got {model.variant.name}, which takes {takes}")
    spare_inputs((file for name in found.values() for head in model.heads for file in _files(out, name, head)), found)
    model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    broken = 0
    with tqdm(found.items(), disable=None, leave=False, unit="image") as progress:
        for path, name in progress:
            progress.set_postfix_str(path.name)
            try:
                photo = read_image(path)
            except InputError as error:
                if len(found) == 1:
                    raise
                progress.write(f"fcn-fast: {error}", file=sys.stderr)
                broken += 1
                continue
            labels = _labels(model, transform(photo).to(device, memory_format=torch.channels_last))
            for head, part in labels.items():
                progress.write(_write(_files(out, name, head), path, photo, head, part, names.get(head, ())))
    return 2 if broken and (not skip_broken or broken == len(found)) else 0


def convert(source, target, model=DEFAULT_MODEL, learned_upsampling=False):
    """Read published or ported weights and write them as safetensors, which says what model it is for.

    Args:
        source: path of a ``.caffemodel``, or of a ``.pth`` or ``.pt`` of wkentaro/pytorch-fcn or with the state dict of
            an :class:`fcn_fast.models.FCN`.
        target: path of the ``.safetensors`` to write.
        model: name of the published net.
        learned_upsampling: whether to keep the upsampling filters; otherwise they must be bilinear and are left out.

    Returns:
        0.

    Raises:
        InputError: weights that cannot be used, or a file that cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise InputError(f"target: expected a file that ends in .safetensors, got {target}")
    if source.suffix == ".safetensors":
        raise InputError(f"source: expected one of {', '.join(_LOADERS)}, got {source}, which is safetensors already")
    net = _load(source, model or DEFAULT_MODEL, learned_upsampling=learned_upsampling)
    try:
        models.save_safetensors(net, target)
    except OSError as error:
        raise InputError(f"target: expected a file that can be written, got {target} ({error.strerror})") from error
    count = sum(parameter.numel() for parameter in net.parameters())
    print(f"{target}: {net.variant.name}, {count:,} parameters, {target.stat().st_size / 1e6:,.1f} MB")
    return 0


def load_model(weights, name=None):
    """The model of these weights.

    Raises:
        InputError: weights that cannot be used, or of another model than name.
    """
    weights = Path(weights)
    if weights.suffix != ".safetensors":
        return _load(weights, name or DEFAULT_MODEL)
    model = _reading(weights, models.from_safetensors, weights)
    if name and name != model.variant.name:
        raise InputError(f"model: expected {model.variant.name}, which {weights} is for, got {name}")
    return model


def find_images(paths, missing=False):
    """The files that these paths name: files as they are, and of folders the images in them, sorted by name.

    Args:
        paths: of images and of folders.
        missing: whether to name files too that are not there.

    Returns:
        {path: what its pictures are called after}: its name, with its ending where images differ only in that.

    Raises:
        InputError: nothing there, a folder without images, or two images of one name, whose results would be one.
    """
    found = []
    for path in map(Path, paths):
        if not path.exists() and not missing:
            raise InputError(f"image: expected a file or folder, got {path} (No such file or directory)")
        if not path.is_dir():
            found.append(path)
            continue
        images = [p for p in sorted(path.iterdir()) if is_image(p) and not _is_output(p)]
        if not images:
            raise InputError(f"image: expected a folder with images, got {path}")
        found += images
    found = list(dict.fromkeys(found))
    stems, names = Counter(path.stem for path in found), {}
    for path in found:
        name = path.stem if stems[path.stem] == 1 else path.name
        other = names.setdefault(name, path)
        if other is not path:
            raise InputError(f"image: expected images with different names, got {other} and {path}")
    return {path: name for name, path in names.items()}


def _load(weights, name, **options):
    load = _LOADERS.get(weights.suffix)
    if not load:
        kinds = ", ".join([*_LOADERS, ".safetensors"])
        raise InputError(f"weights: expected a file that ends in one of {kinds}, got {weights}")
    if name not in models.VARIANTS:
        raise InputError(f"model: expected one of {', '.join(models.VARIANTS)}, got {name}")
    model = models.build(name, **options)
    _reading(weights, load, model, weights)
    return model


def _reading(weights, function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        raise InputError(f"weights: expected a file that can be read, got {weights} ({error.strerror})") from error
    except models.WeightsError as error:
        raise InputError(f"weights: {error.in_one_line()}") from error


def _names(model):
    """{head: names by label}: those that the weights have, or of the published net's data, if there are as many."""
    published = class_names(model.variant.transform)
    fits = {head: len(names) for head, names in published.items()} == model.heads
    return model.class_names or (published if fits else {})


def _labels(model, x):
    """{head: (H, W) labels on the CPU}."""
    labels = model.predict(x)
    return {head: part[0].cpu() for head, part in (labels if isinstance(labels, dict) else {"": labels}).items()}


def _write(files, path, photo, head, labels, names):
    """Write the pictures of one image and head; what is in them and where they are, as text."""
    pictures.save_label_map(files[0], labels)
    pictures.save_overlay(files[1], photo, labels)
    counts = enumerate(labels.flatten().bincount().tolist())
    shares = sorted(((count, label) for label, count in counts if count), key=lambda pair: (-pair[0], pair[1]))
    named = [
        f"{names[label] if label < len(names) else f'class {label}'} {count / labels.numel():.1%}"
        for count, label in shares
    ]
    return f"{path}  {photo.width}x{photo.height}  {head or 'labels'}: {', '.join(named)}\n  {files[0]}  {files[1]}"


def _files(out, name, head):
    """Where the pictures of one image and head go, in the order of _OUTPUTS."""
    suffix = f"_{head}" if head else ""
    return [out / f"{name}{suffix}{output}" for output in _OUTPUTS]


def _is_output(path):
    return path.name.endswith(_OUTPUTS)
