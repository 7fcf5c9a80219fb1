"""Puts tensors under published names into a model: all of them, or none and one error that lists what does not fit."""

from typing import NamedTuple

import torch

from fcn_fast.models.stages import bilinear_filter, head_suffix

__all__ = ["Assigned", "WeightsError", "assign", "published_names", "widen_first_layer"]

_TOLERANCE = 1e-5  # of a fixed filter, whose values are up to 1: float32 rounding, in whatever order it was made


class WeightsError(ValueError):
    """Weights do not fit a model, or are none; the message lists each tensor with what was expected and what came."""

    def in_one_line(self, count=3):
        """The message with its first ``count`` tensors, on one line."""
        summary, *problems = str(self).splitlines()
        more = [f"and {len(problems) - count} more"] if len(problems) > count else []
        return "; ".join([summary, *(problem.strip() for problem in problems[:count]), *more])


class Assigned(NamedTuple):
    """What :func:`assign` left out.

    Attributes:
        missing: published names of the model's tensors that were not there.
        extra: names that the model does not have.
    """

    missing: list[str]
    extra: list[str]


def published_names(model):
    """{published name: name in the state dict}, such as ``{"conv1_1.weight": "stage1.conv1_1.weight"}``."""
    return {key.partition(".")[2]: key for key in model.state_dict()}


def assign(model, tensors, source, *, strict=True, scales=False, optional=()):
    """Copy tensors into the model.

    A fully connected layer's matrix goes into a convolution that has as many weights. Filters of fixed upsampling, and
    the scale layers of the at-once net where the file has them, are no parameters of the model: they are checked to be
    what it computes.

    Args:
        model: an FCN.
        tensors: {published name: tensor}.
        source: what the error message calls them.
        strict: whether every tensor of the model, and no other, must be there.
        scales: whether an at-once net's scale layers must be there too.
        optional: what the published names start with of layers that may be missing.

    Returns:
        The names that were missing and extra, which strict does not allow.

    Raises:
        WeightsError: tensors are missing, extra, of another shape or no tensors, or a fixed filter is not the model's;
            nothing was copied.
    """
    names, state = published_names(model), model.state_dict()
    fixed, scaled = _fixed_filters(model), _scales(model)
    copies, problems = {}, []
    missing = set(names) - set(tensors) | (set(scaled) - set(tensors) if scales else set())
    missing = {name for name in missing if not name.startswith(tuple(optional))}
    extra = set(tensors) - set(names) - set(fixed) - set(scaled)
    if strict:
        shapes = {name: tuple(state[names[name]].shape) if name in names else "one a channel" for name in missing}
        problems += [("missing", name, f"expected {shapes[name]}, got none") for name in missing]
        problems += [("extra", name, f"expected none, got {_describe(tensors[name])}") for name in extra]
    elif not set(names) & set(tensors):
        problems.append(
            ("missing", "everything", f"expected some of {', '.join(list(names)[:3])}, ..., got none of them")
        )
    for name, tensor in tensors.items():
        if name in extra:
            continue
        if not _is_dense(tensor):
            problems.append(("no tensor", name, f"expected a dense floating-point tensor, got {_describe(tensor)}"))
        elif name in names:
            shape = state[names[name]].shape
            copies[name] = _reshaped(tensor, shape)
            if copies[name] is None:
                problems.append(("shape", name, f"expected {tuple(shape)}, got {tuple(tensor.shape)}"))
        elif name in fixed:
            problems += _check_bilinear(name, tensor, *fixed[name])
        elif not torch.allclose(tensor, torch.full_like(tensor, scaled[name]), rtol=_TOLERANCE, atol=0):
            problems.append(("other value", name, f"expected {scaled[name]} everywhere, got {_range(tensor)}"))
    if problems:
        order = ("missing", "extra", "shape", "no tensor", "not bilinear", "other value")
        problems.sort(key=lambda problem: (order.index(problem[0]), problem[1]))
        lines = "\n".join(f"  {kind}: {name}: {text}" for kind, name, text in problems)
        raise WeightsError(
            f"{source}: expected the weights of {model.variant.name}, got others; none were loaded\n{lines}"
        )
    with torch.no_grad():
        for name, tensor in copies.items():
            state[names[name]].copy_(tensor)
    return Assigned(sorted(missing), sorted(extra))


def widen_first_layer(model, tensors):
    """Weights of a first layer on blue, green and red become those of one that also sees depth.

    As published, depth starts with the mean over the three. Other tensors, and those for other models, stay.
    """
    first, original = model.variant.first, model.variant.architecture.stages[0][0].name
    if not first or f"{original}.weight" not in tensors:
        return tensors
    tensors = dict(tensors)
    weight = tensors.pop(f"{original}.weight")
    tensors[f"{first}.weight"] = torch.cat([weight, weight.mean(1, keepdim=True)], 1)
    if f"{original}.bias" in tensors:
        tensors[f"{first}.bias"] = tensors.pop(f"{original}.bias")
    return tensors


def _fixed_filters(model):
    """{published name: (classes, kernel)} of the deconvolutions that the model has no parameters for."""
    fusion = model.stage3.fusion
    if model.learned_upsampling:
        return {}
    kernels = {name: fusion.kernel if name == fusion.names[-1] else 4 for name in fusion.names}
    return {
        f"{name}{head_suffix(head)}.weight": (classes, kernel)
        for name, kernel in kernels.items()
        for head, classes in model.heads.items()
    }


def _scales(model):
    """{published name: value} of the scale layers of an at-once net."""
    named = zip(("scale_pool4.weight", "scale_pool3.weight"), model.variant.skip_scales, strict=True)
    return {name: value for name, value in named if value != 1}


def _check_bilinear(name, tensor, classes, kernel):
    """The problem with what should be a dense or grouped bilinear filter, in a list."""
    shapes = [(classes, classes, kernel, kernel), (classes, 1, kernel, kernel)]
    if tuple(tensor.shape) not in shapes:
        return [("shape", name, f"expected {shapes[0]} or {shapes[1]}, got {tuple(tensor.shape)}")]
    expected = torch.zeros_like(tensor, device="cpu")
    diagonal = range(classes)
    expected[diagonal, 0 if tensor.shape[1] == 1 else diagonal] = bilinear_filter(kernel).to(expected)
    difference = (tensor.cpu() - expected).abs().max().item()
    if difference <= _TOLERANCE:
        return []
    text = f"expected a bilinear filter, got one that differs by {difference:.2g}; learned_upsampling=True loads it"
    return [("not bilinear", name, text)]


def _reshaped(tensor, shape):
    """The tensor in this shape, where that loses nothing: a matrix into a convolution, a dense filter into a grouped
    one; None where it cannot be."""
    if tensor.shape == shape:
        return tensor
    without_ones = [n for n in tensor.shape if n != 1]
    matrix = [n for n in (shape[0], shape[1:].numel()) if n != 1]
    if without_ones in ([n for n in shape if n != 1], matrix):
        return tensor.reshape(shape)
    if len(shape) == 4 and shape[1] == 1 and tensor.shape == (shape[0], shape[0], *shape[2:]):
        diagonal = range(shape[0])
        grouped = tensor[diagonal, diagonal].unsqueeze(1)
        off_diagonal = tensor.clone()
        off_diagonal[diagonal, diagonal] = 0
        return None if off_diagonal.any() else grouped
    return None


def _is_dense(value):
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return False
    return value.layout == torch.strided and value.device.type != "meta"


def _describe(value):
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _range(tensor):
    return f"{tensor.min().item():.6g} to {tensor.max().item():.6g}"
