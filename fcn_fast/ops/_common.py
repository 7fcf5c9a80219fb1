"""What the operations share: how one is registered, and how their arguments are checked."""

import functools

import torch
from torch.autograd import forward_ad

from fcn_fast import reference
from fcn_fast.grid import BilinearGrid, _by

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
IGNORED = 255  # unless an ignore_index is given

library = torch.library.Library("fcn_fast", "DEF")  # noqa: TOR901, one for the life of the process
below_autograd = torch._C._AutoDispatchBelowAutograd


def register(schema, fake, function=None, differentiable=1):
    """Define an operator with its fake and its derivative; the reference of the same name runs where no kernel does.

    ``function``, an autograd.Function with the operator's arguments, stands under the dispatcher's Autograd key and
    redispatches below it, so a direct call of the operator differentiates too. It is passed by, for it costs time,
    where none of the first ``differentiable`` arguments requires a gradient, but for forward mode, which it refuses.
    None: not differentiable.

    Returns:
        The operator as the operations call it. Its Autograd key stays out of that, for the way there through the
        dispatcher costs as much as the rest of the call, unless somebody is to see the operator called.
    """
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    operator = getattr(torch.ops.fcn_fast, name).default  # bound once: looking it up costs more than some of the calls
    torch.library.register_fake(f"fcn_fast::{name}", fake, lib=library)
    library.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
    if not function:
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        return operator

    def autograd(*arguments):
        wanted = torch.is_grad_enabled() and any([tensor.requires_grad for tensor in arguments[:differentiable]])
        if wanted or (forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()):
            if torch._C._are_functorch_transforms_active():
                raise RuntimeError(f"fcn_fast::{name} has no derivative under torch.func: use torch.autograd")
            return function.apply(*arguments)
        with below_autograd():
            return operator(*arguments)

    def call(*arguments):
        if torch.compiler.is_compiling() or _is_seen(arguments):
            return operator(*arguments)
        return autograd(*arguments)

    library.impl(name, autograd, "Autograd")
    return call


def check_map(name, tensor):
    """A (N, C, H, W) floating-point map with at least one pixel and channel."""
    check_tensor(name, tensor, FLOATS)
    if tensor.dim() != 4:
        raise ValueError(f"{name}: expected 4 dimensions (N, C, H, W), got shape {tuple(tensor.shape)}")
    if tensor.shape[1] < 1 or tensor.shape[2] < 1 or tensor.shape[3] < 1:
        raise ValueError(f"{name}: expected at least one channel and one pixel, got shape {tuple(tensor.shape)}")


def check_tensor(name, tensor, dtypes):
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected {_either(dtypes)}, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {tensor.layout}")


def check_target(target):
    if isinstance(target, torch.Tensor) and target.is_floating_point():
        expected = f"{_either(LABELS)} labels, as soft targets are not supported"
        raise TypeError(f"target: expected {expected}, got {target.dtype}")
    check_tensor("target", target, LABELS)


def check_same_device(name, tensor, other_name, other):
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, got {tensor.device}")


def resolve_grid(name, tensor, size, scale_factor, align_corners, grid):
    """The grid that the arguments of an operation mean, for the coarse map ``tensor``."""
    if grid is None:
        return BilinearGrid.interpolate(tensor.shape[-2:], size, scale_factor, align_corners)
    if not isinstance(grid, BilinearGrid):
        raise TypeError(f"grid: expected a BilinearGrid, got {type(grid).__name__}")
    if size is not None or scale_factor is not None or align_corners:
        raise ValueError("grid: expected no size, scale_factor or align_corners=True beside it, which it replaces")
    if tensor.shape[2] != grid.in_size[0] or tensor.shape[3] != grid.in_size[1]:
        raise ValueError(
            f"grid: expected one for the {_by(tensor.shape[-2:])} pixels of {name}, got one for {_by(grid.in_size)}"
        )
    return grid


def check_loss_arguments(logits, target, weight, pixel_weight, ignore_index, reduction, label_smoothing):
    """Check what both losses take; target's dtype and shape are for the caller.

    Returns:
        weight and pixel_weight in the dtype of the loss, ignore_index, and the reduction as the operators number it.
    """
    check_same_device("target", target, "logits", logits)
    weights = []
    for name, tensor, shape in (
        ("weight", weight, logits.shape[1:2]),
        ("pixel_weight", pixel_weight, target.shape),
    ):
        if tensor is not None:
            check_tensor(name, tensor, FLOATS)
            check_same_device(name, tensor, "logits", logits)
            if tensor.shape != shape:
                raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
            if tensor.requires_grad and torch.is_grad_enabled():
                raise ValueError(
                    f"{name}: expected a tensor that does not require grad; the loss has no derivative for it"
                )
            tensor = tensor.to(reference.accumulate_dtype(logits.dtype))
        weights.append(tensor)
    ignore_index = ignored_label(ignore_index, logits.shape[1])
    if reduction not in reference.REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(reference.REDUCTIONS)}, got {reduction!r}")
    if not isinstance(label_smoothing, (int, float)):
        raise TypeError(f"label_smoothing: expected a number from 0 to 1, got {label_smoothing!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number from 0 to 1, got {label_smoothing!r}")
    return *weights, ignore_index, reference.REDUCTIONS.index(reduction)


def ignored_label(ignore_index, classes):
    """The label that is left out: what is given, or else 255, unless that is a class."""
    if ignore_index is None:
        if classes > IGNORED:
            raise ValueError(
                f"ignore_index: expected one (such as -100) for more than {IGNORED} classes, as {IGNORED} then is a "
                f"class, got none for {classes} classes"
            )
        return IGNORED
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an int, got {ignore_index!r}")
    if not -(1 << 63) <= ignore_index < 1 << 63:
        raise ValueError(f"ignore_index: expected a 64-bit int, got {ignore_index}")
    return ignore_index


def first_derivative_only(operation):
    """Decorates the backward, with one gradient to give, of an operation: differentiating that is a clear error.

    backward takes ctx, what the forward pass saved and the loss's gradient. torch's once_differentiable sees only
    whether that requires grad, so that a second derivative in the operation's inputs would quietly be none. What was
    saved leads to these: an input, or an output that is not marked as not differentiable.
    """
    message = f"fcn_fast.ops.{operation} has no second derivative"

    def decorate(backward):
        @functools.wraps(backward)
        def wrapper(ctx, *grads):
            if grads[0] is None:  # nothing arrives at the loss
                return (None,) * len(ctx.needs_input_grad)
            saved = ctx.saved_tensors  # once: activation checkpointing allows no more
            with torch.no_grad():
                grad, *nothing = backward(ctx, saved, grads[0])
            if torch.is_grad_enabled():
                leads = [tensor for tensor in (grads[0], *saved) if tensor is not None and tensor.requires_grad]
                grad, *_ = torch._C._functions.DelayedError(message.encode(), 1 + len(leads))(grad.detach(), *leads)
            return grad, *nothing

        return wrapper

    return decorate


def raises_on_labels(logits, check_labels):
    """Whether the operator raises for a label out of range; unless told, where that needs no synchronisation."""
    return logits.device.type == "cpu" if check_labels is None else bool(check_labels)


def _is_seen(arguments):
    """Whether a subclass or mode, a transform of torch.func, or torch.jit.trace is to see the operator called."""
    return (
        torch.overrides.has_torch_function(arguments)
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
    )


def _either(dtypes):
    names = [str(dtype) for dtype in dtypes]
    return ", ".join(names[:-1]) + " or " + names[-1]
