"""Twins: subclasses with a class's own name, whose methods are the rewritten ones.

An instance is patched by giving it the twin for its class, so that nothing else in the process changes, and whatever
goes by the class (copying, pickling, isinstance, the name in a saved configuration) still finds it.

A method that is overridden, but called by super(), is rewritten in a subclass of the parent that has it, which the twin
has for another parent: where super() looks it comes right before the one that it is a subclass of.
"""

import copyreg
import functools
import types
from dataclasses import dataclass

from torch import nn

from fcn_fast.patch import libraries
from fcn_fast.patch.reading import calls_super, resizes, supers_by_instance
from fcn_fast.patch.rewrite import rewrite
from fcn_fast.patch.source import CannotRewriteError

__all__ = ["Twin", "original", "twin_of"]


@dataclass(frozen=True)
class Twin:
    """A class's twin.

    Attributes:
        kind: the class; None where nothing of it could be rewritten.
        sites: what was replaced, by (parent, method): the parent whose overridden method it is, or None.
        left: of each method that names an upsampling and was not rewritten, why.
    """

    kind: type | None
    sites: dict
    left: dict


def twin_of(cls):
    """The :class:`Twin` of a class with the methods that it has now."""
    return _twin_of(cls, tuple((*method, method[-1].__code__) for method in _methods(cls)))


@functools.cache
def _twin_of(cls, methods):
    own_sites, own_left = {}, {}
    namespace = libraries.members(cls, own_sites, own_left)
    sites = {(None, name): found for name, found in own_sites.items()}
    left = {(None, name): why for name, why in own_left.items()}
    given, inherited = set(namespace), {}
    for parent, name, method, _ in methods:
        if name in given:
            continue
        try:
            rewritten = rewrite(method)
        except CannotRewriteError as error:
            left[parent, name] = str(error)
            continue
        if rewritten:
            members = inherited.setdefault(parent, {}) if parent else namespace
            members[name], sites[parent, name] = rewritten
    if sites and (obstacle := _obstacle(cls)):
        left |= dict.fromkeys(sites, obstacle)
        sites = {}
    if not sites:
        return Twin(None, {}, left)
    namespace |= {"__reduce_ex__": _reduce_ex, "_fcn_fast_original": cls}
    parents = [_subclass(parent, members) for parent, members in inherited.items()]
    return Twin(_subclass(cls, namespace, *parents), sites, left)


def _obstacle(cls):
    """Why a class cannot have a twin; empty where it can."""
    if (cls.__reduce_ex__, cls.__reduce__) != (object.__reduce_ex__, object.__reduce__):
        return "its class has a way of its own to be pickled"
    for base in cls.__mro__:
        for name, function in _functions(base):
            if supers_by_instance(function):
                return f"its {name} goes by the class of the instance to find its parent's"
    return ""


def _subclass(cls, members, *others):
    """A class of the same name as its first parent, which that parent's __init_subclass__ does not hear of."""
    silent = type("Silent", (), {"__init_subclass__": classmethod(lambda cls, **options: None)})
    like = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls)(cls.__name__, (silent, cls, *others), like | members)


def original(instance):
    """The class that an instance had before it was patched; None where it is not."""
    return getattr(type(instance), "_fcn_fast_original", None)


def _methods(cls):
    """The methods that name an upsampling: those of the class, and overridden ones that are called by super().

    Each as (parent, name, function); without a parent where it is not overridden.
    """
    classes = cls.__mro__
    for i, base in enumerate(classes):
        for name, function in _functions(base):
            if not resizes(function):
                continue
            overriding = [j for j in range(i) if name in vars(classes[j])]
            if not overriding:
                yield None, name, function
            # The last of them hides the method from all that come before it.
            elif any(calls_super(f, name) for between in classes[overriding[-1] : i] for _, f in _functions(between)):
                yield base, name, function


def _functions(cls):
    """The names and functions of a class itself that an instance may still run."""
    if cls in (object, nn.Module):
        return []
    items = vars(cls).items()
    return [(name, value) for name, value in items if isinstance(value, types.FunctionType) and name != "__init__"]


def _reduce_ex(self, protocol):
    function, arguments, *rest = object.__reduce_ex__(self, protocol)
    if function is copyreg.__newobj__ and arguments == (type(self),):
        function, arguments = _new, (original(self),)
    return function, arguments, *rest


def _new(cls):
    """An empty instance of a class's twin, for pickle and copy; of the class, where its source no longer has one."""
    kind = twin_of(cls).kind or cls
    return kind.__new__(kind)
