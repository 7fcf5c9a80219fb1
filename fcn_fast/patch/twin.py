"""Twins: subclasses with a class's own name, whose methods are the rewritten ones.

An instance is patched by giving it the twin for its class, so that nothing else in the process changes, and whatever
goes by the class (copying, pickling, isinstance, the name in a saved configuration) still finds it.
"""

import copyreg
import functools
import types
from dataclasses import dataclass

from fcn_fast.patch import libraries
from fcn_fast.patch.reading import resizes
from fcn_fast.patch.rewrite import rewrite
from fcn_fast.patch.source import CannotRewriteError

__all__ = ["Twin", "original", "twin_of"]


@dataclass(frozen=True)
class Twin:
    """A class's twin.

    Attributes:
        kind: the class; None where nothing of it could be rewritten.
        sites: of each method, what was replaced in it.
        left: of each method that names an upsampling and was not rewritten, why.
    """

    kind: type | None
    sites: dict
    left: dict


def twin_of(cls):
    """The :class:`Twin` of a class with the methods that it has now."""
    return _twin_of(cls, tuple((name, method, method.__code__) for name, method in _methods(cls).items()))


@functools.cache
def _twin_of(cls, methods):
    sites, left = {}, {}
    namespace = libraries.members(cls, sites, left)
    for name, method, _ in methods:
        if name in namespace:
            continue
        try:
            rewritten = rewrite(method)
        except CannotRewriteError as error:
            left[name] = str(error)
            continue
        if rewritten:
            namespace[name], sites[name] = rewritten
    if namespace and (cls.__reduce_ex__, cls.__reduce__) != (object.__reduce_ex__, object.__reduce__):
        left |= dict.fromkeys(sites, "its class has a way of its own to be pickled")
        namespace = {}
    if not namespace:
        return Twin(None, {}, left)
    namespace |= {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduce_ex,
        "_fcn_fast_original": cls,
    }
    return Twin(type(cls)(cls.__name__, (cls,), namespace), sites, left)


def original(instance):
    """The class that an instance had before it was patched; None where it is not."""
    return getattr(type(instance), "_fcn_fast_original", None)


def _methods(cls):
    """The methods of a class that name an upsampling."""
    found = {}
    for base in cls.__mro__:
        for name, value in vars(base).items():
            found.setdefault(name, value)
    return {n: value for n, value in found.items() if isinstance(value, types.FunctionType) and resizes(value)}


def _reduce_ex(self, protocol):
    function, arguments, *rest = object.__reduce_ex__(self, protocol)
    if function is copyreg.__newobj__ and arguments == (type(self),):
        function, arguments = _new, (original(self),)
    return function, arguments, *rest


def _new(cls):
    """An empty instance of a class's twin, for pickle and copy; of the class, where its source no longer has one."""
    kind = twin_of(cls).kind or cls
    return kind.__new__(kind)
