"""Twins: subclasses with a class's own name, whose methods are the rewritten ones.

An instance is patched by giving it the twin for its class, so that nothing else in the process changes, and whatever
goes by the class (copying, pickling, isinstance, the name in a saved configuration) still finds it.

Methods that are overridden, but called by super(), are in a twin of their own class, which the twin has for a second
parent: that puts it before that class, and after those that override, in the order in which super() looks.
"""

import copyreg
import functools
import inspect
import types
from dataclasses import dataclass

from fcn_fast.patch import libraries
from fcn_fast.patch.reading import resizes
from fcn_fast.patch.rewrite import rewrite
from fcn_fast.patch.source import CannotRewriteError, global_names

__all__ = ["Twin", "original", "twin_of"]


@dataclass(frozen=True)
class Twin:
    """A class's twin.

    Attributes:
        kind: the class; None where nothing of it could be rewritten.
        sites: of each method, what was replaced in it; an overridden one is called Parent.method.
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
    sites, left = {}, {}
    namespace = libraries.members(cls, sites, left)
    given, inherited = set(namespace), {}
    for base, name, method, _ in methods:
        if name in given:
            continue
        place = f"{base.__name__}.{name}" if base else name
        try:
            rewritten = rewrite(method)
        except CannotRewriteError as error:
            left[place] = str(error)
            continue
        if rewritten:
            members = inherited.setdefault(base, {}) if base else namespace
            members[name], sites[place] = rewritten
    if sites and (cls.__reduce_ex__, cls.__reduce__) != (object.__reduce_ex__, object.__reduce__):
        left |= dict.fromkeys(sites, "its class has a way of its own to be pickled")
        sites = {}
    if not sites:
        return Twin(None, {}, left)
    parents = [_subclass(base, members) for base, members in inherited.items()]
    namespace |= {"__reduce_ex__": _reduce_ex, "_fcn_fast_original": cls}
    return Twin(_subclass(cls, namespace, *parents), sites, left)


def _subclass(cls, members, *others):
    """A class of the same name as its first parent."""
    like = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls)(cls.__name__, (cls, *others), like | members)


def original(instance):
    """The class that an instance had before it was patched; None where it is not."""
    return getattr(type(instance), "_fcn_fast_original", None)


def _methods(cls):
    """The methods that name an upsampling: those of the class, and overridden ones that are called by super().

    Each as (class, name, function), with None for the class of one that is not overridden.
    """
    seen, called = set(), set()
    for base in cls.__mro__:
        functions = {name: value for name, value in vars(base).items() if isinstance(value, types.FunctionType)}
        for name, function in functions.items():
            if (name not in seen or name in called) and resizes(function):
                yield base if name in seen else None, name, function
        seen |= vars(base).keys()
        called |= set().union(*map(_called_by_super, functions.values()))


def _called_by_super(function):
    """The names that a method may call by super()."""
    code = inspect.unwrap(function).__code__
    return global_names(function) if "super" in code.co_names or "__class__" in code.co_freevars else set()


def _reduce_ex(self, protocol):
    function, arguments, *rest = object.__reduce_ex__(self, protocol)
    if function is copyreg.__newobj__ and arguments == (type(self),):
        function, arguments = _new, (original(self),)
    return function, arguments, *rest


def _new(cls):
    """An empty instance of a class's twin, for pickle and copy; of the class, where its source no longer has one."""
    kind = twin_of(cls).kind or cls
    return kind.__new__(kind)
