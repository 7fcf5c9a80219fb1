"""Put the operations into other people's models."""

from torch import nn

from fcn_fast.patch import deferred, libraries
from fcn_fast.patch.report import Report, Row
from fcn_fast.patch.twin import original, twin_of

__all__ = ["Report", "patch", "unpatch"]


def patch(model):
    """Put the operations where a model upsamples: into a loss, an argmax, a sum or nothing further.

    The methods of the model's modules are compiled again from their own source with those places replaced, and the
    instances given a class with these methods. Nothing else in the process changes, and parameters, state_dict, outputs
    and their types stay what they were; numbers change by rounding, except that a loss of nothing but ignored pixels is
    0 and not NaN, and labels out of range are a ValueError, on a GPU a loss of NaN.

    Args:
        model: a torch.nn.Module, or an image processor of transformers, whose post_process_semantic_segmentation then
            makes label maps alone.

    Returns:
        A :class:`~fcn_fast.patch.report.Report` of what was replaced, and what was known but left, and why.

    Raises:
        TypeError: something else.
        ValueError: a model that is patched already, or has a patched part.
    """
    if not isinstance(model, nn.Module):
        return _patch_processor(model)
    for name, module in model.named_modules():
        if original(module) is not None:
            which = f"one whose part {name} is" if name else "one that is"
            raise ValueError(
                f"model: expected a model that is not patched yet, got {which} (fcn_fast.unpatch it first)"
            )
    report = Report(type(model).__name__)
    swaps = []
    for name, module in model.named_modules():
        twin = twin_of(type(module))
        replaced, left = _rows(_named(name), module, twin)
        if replaced:
            swaps.append((module, twin.kind))
        report.replaced += replaced
        report.left += left
    if report and not deferred.DEVICES:
        report.left.append(Row("model", "", "all of it", "fcn_fast has no kernels here, and the model's own code runs"))
    _swap(swaps)
    return report


def unpatch(model):
    """Give a patched model, or image processor, its own classes back.

    Raises:
        TypeError: neither.
        ValueError: a model that is not patched, or whose class was changed since (fully_shard does): nothing is undone.
    """
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {"": model}
    patched = {name: module for name, module in modules.items() if original(module) is not None}
    if not patched:
        if not isinstance(model, nn.Module) and not libraries.makes_label_maps(type(model)):
            raise TypeError(_expected(model))
        raise ValueError(f"model: expected a patched one, got a {type(model).__name__} that is not")
    for name, module in patched.items():
        if "_fcn_fast_original" not in vars(type(module)):
            raise ValueError(
                f"model: expected the classes that patch gave it, got another for {_named(name)}, "
                f"{type(module).__name__}; unpatch before what changes classes"
            )
    _swap([(module, original(module)) for module in patched.values()])


def _patch_processor(processor):
    if original(processor) is not None:
        raise ValueError(
            "model: expected an image processor that is not patched yet, got one that is (fcn_fast.unpatch it first)"
        )
    if not libraries.makes_label_maps(type(processor)):
        raise TypeError(_expected(processor))
    twin = twin_of(type(processor))
    _swap([(processor, twin.kind)])
    report = Report(type(processor).__name__)
    report.replaced, report.left = _rows("processor", processor, twin)
    return report


def _expected(model):
    return (
        "model: expected a torch.nn.Module, or an image processor that makes label maps of upsampled logits, "
        f"got {type(model).__name__}"
    )


def _rows(name, module, twin):
    """What its twin replaces in one instance, and what is left."""
    own = {method for parent, method in twin.sites if parent is None}
    if hidden := getattr(module, "_modules", {}).keys() & own:
        return [], [Row(name, type(module).__name__, "", f"it has a part called {min(hidden)}, which patch would hide")]
    replaced = []
    left = [Row(name, _place(module, *where), "", why) for where, why in twin.left.items()]
    for (parent, method), sites in twin.sites.items():
        if parent is None and method in vars(module):
            why = "the instance has one of its own, set on it (by hooks of accelerate, say), and that one runs"
            left.append(Row(name, _place(module, parent, method), "", why))
            continue
        for site in sites:
            place = _place(module, parent, method, site.line)
            if why := site.obstacle and site.obstacle(module):
                left.append(Row(name, place, site.code, why))
            elif _applies(site, module):
                replaced.append(Row(name, place, site.code, site.operation))
    remarks = libraries.remarks(module, {row.note for row in replaced})
    return replaced, left + [Row(name, type(module).__name__, *remark) for remark in remarks]


def _applies(site, module):
    """Whether what the code reads from the instance is what the operation is for."""
    bilinear = not site.mode or _attribute(module, site.mode) in (None, "bilinear")
    return bilinear and (not site.callee or deferred.fuses(_attribute(module, site.callee)) is not None)


def _attribute(module, path):
    """What module.x.y is; None where there is no such thing."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _place(module, parent, method, line=""):
    return f"{(parent or type(module)).__name__}.{method}" + (f", {line}" if line else "")


def _named(name):
    return name or "model"


def _swap(swaps):
    """Change the classes of instances, all of them or none."""
    done = []
    try:
        for instance, kind in swaps:
            done.append((instance, type(instance)))
            instance.__class__ = kind
    except TypeError:
        for instance, kind in done[:-1]:
            instance.__class__ = kind
        raise
