"""Methods compiled again from their own source, with the bilinear upsamplings in them put off.

A rewritten method is the method's own code but for this: a bilinear ``F.interpolate(...)`` becomes a
:class:`~fcn_fast.patch.deferred.Deferred`; what adds to it, takes its argmax or hands it to a function goes through
:mod:`~fcn_fast.patch.deferred`; every other read of it is ``full(it)``. Each of these decides when it runs, and falls
back to what the code says, so a rewritten method means what the method meant whatever else is in it.
"""

import ast
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fcn_fast.patch import deferred
from fcn_fast.patch.reading import Names, assigned, criteria, hands_over, is_criterion, is_resize, mode_of, resolve
from fcn_fast.patch.source import CannotRewriteError, compile_as, function_as, parse, rewrap

__all__ = ["Site", "rewrite"]

_HELPERS = {name: getattr(deferred, name) for name in ("CrossEntropy", "add", "argmax", "call", "full", "resize")}
_rewriting = set()


@dataclass(frozen=True)
class Site:
    """One place in a method where an operation was put.

    Attributes:
        line: file and line.
        code: what stood there.
        operation: what stands in its place.
        mode: the attribute of self that says the mode of the upsampling, where the code does not.
        callee: the attribute of self that the upsampling is handed to, where the code does not say what that is.
        obstacle: tells of an instance why not there after all; empty where nothing is in the way.
    """

    line: str
    code: str
    operation: str
    mode: str = ""
    callee: str = ""
    obstacle: Callable[[object], str] | None = None


def rewrite(function, takes_deferred=False):
    """The function with its bilinear upsamplings put off.

    Args:
        function: a plain function, or one under decorators made with functools.wraps.
        takes_deferred: its first argument may be a :class:`~fcn_fast.patch.deferred.Deferred`.

    Returns:
        The function and its sites, a tuple of :class:`Site`; None where it has none.

    Raises:
        CannotRewriteError: its source is not to be had, or is not what runs.
    """
    inner = inspect.unwrap(function)
    tree = parse(inner)
    rewriter = _Rewriter(inner, Names(tree, inner, takes_deferred), criteria(tree, inner))
    _rewriting.add(function)
    try:
        tree = ast.fix_missing_locations(rewriter.visit(tree))
    finally:
        _rewriting.discard(function)
    if not rewriter.sites:
        return None
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
    cells |= {name: types.CellType(value) for name, value in rewriter.cells.items()}
    new = function_as(inner, compile_as(tree, inner, cells), cells)
    if takes_deferred:
        new.takes_deferred = True
    return rewrap(function, inner, new), tuple(rewriter.sites)


def _self_attribute(node):
    """The x.y of ``self.x.y``."""
    path = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
    start, _, names = path.partition(".")
    return names if start == "self" and all(map(str.isidentifier, names.split("."))) else ""


class _Rewriter(ast.NodeTransformer):
    """Rewrites one function; ``sites`` says where, ``cells`` what the new code needs beside the function's globals."""

    def __init__(self, function, names, criteria):
        self.function = function
        self.names = names
        self.file = Path(function.__code__.co_filename).name
        self.criteria = criteria
        self.sites = []
        self.cells = {}

    def visit_Call(self, node):
        if is_resize(node, self.function):
            self._site(node, "bilinear_upsample", node)
            return self._helper("full", [self._kept(node)])
        if isinstance(node.func, ast.Attribute) and node.func.attr == "argmax" and self._is_upsampling(node.func.value):
            self._site(node, "upsample_argmax", node.func.value)
            return self._helper("argmax", [self._kept(node.func.value), *node.args], node.keywords)
        if hands_over(node) and self._is_upsampling(node.args[0]):
            return self._call(node)
        return self.generic_visit(node)

    def visit_BinOp(self, node):
        for side in (node.left, node.right):
            if isinstance(node.op, ast.Add) and self._is_upsampling(side):
                self._site(node, "skip_fuse", side)
                return self._helper("add", [self._kept(node.left), self._kept(node.right)])
        return self.generic_visit(node)

    def visit_Compare(self, node):
        to_none = all(isinstance(side, ast.Constant) and side.value is None for side in node.comparators)
        return node if to_none and self.names.holds(node.left) else self.generic_visit(node)

    def visit_Attribute(self, node):
        return node if node.attr == "shape" and self.names.holds(node.value) else self.generic_visit(node)

    def visit_Assign(self, node):
        name = assigned(node)
        if name in self.names.deferred and is_resize(node.value, self.function):
            self._site(node.value, "bilinear_upsample, where the map is read", node.value)
            node.value = self._kept(node.value)
            return node
        if name in self.criteria and is_criterion(node.value, self.function):
            node.value = self._criterion(node.value)
            return node
        return self.generic_visit(node)

    def visit_Name(self, node):
        if node.id in self.names.deferred and isinstance(node.ctx, ast.Load):
            return self._helper("full", [node])
        return node

    def _criterion(self, node):
        """An nn.CrossEntropyLoss, made by the method for itself, that takes deferred maps."""
        made = self.generic_visit(node)
        return self._helper("CrossEntropy", made.args, made.keywords)

    def _is_upsampling(self, node):
        return self.names.holds(node) or is_resize(node, self.function)

    def _kept(self, node):
        """The expression, an upsampling in it left deferred."""
        if self.names.holds(node):
            return node
        if not is_resize(node, self.function):
            return self.visit(node)
        arguments = [*map(self._kept, node.args[:1]), *map(self.visit, node.args[1:])]
        return self._helper("resize", [node.func, *arguments], [self.visit(keyword) for keyword in node.keywords])

    def _call(self, node):
        """A call with an upsampling as its first argument."""
        made = is_criterion(node.func, self.function)
        function = self._criterion(node.func) if made else self.visit(node.func)
        callee = resolve(node.func, self.function)
        local = isinstance(node.func, ast.Name) and node.func.id in self.function.__code__.co_varnames
        if made or local and node.func.id in self.criteria:
            callee = deferred.CrossEntropy
        elif isinstance(callee, types.FunctionType) and not deferred.fuses(callee):
            function, callee = self._callee(callee, function)
        attribute = _self_attribute(node.func)
        if callee is not None and deferred.fuses(callee):
            self._site(node, deferred.fuses(callee), node.args[0])
        elif attribute:
            self._site(node, "upsample_softmax_loss", node.args[0], attribute)
        elif local:
            self._site(node, f"upsample_softmax_loss, where {node.func.id} is a cross entropy", node.args[0])
        keywords = [self.visit(keyword) for keyword in node.keywords]
        return self._helper("call", [function, self._kept(node.args[0]), *map(self.visit, node.args[1:])], keywords)

    def _callee(self, callee, node):
        """The rewritten callee, where it hands its first argument to a loss in turn, and the expression for it."""
        try:
            rewritten = None if callee in _rewriting else rewrite(callee, takes_deferred=True)
        except CannotRewriteError:
            rewritten = None
        if rewritten is None:
            return node, callee
        name = f"_fcn_fast_of_{callee.__name__}"
        self.cells[name] = rewritten[0]
        return ast.Name(name, ast.Load()), rewritten[0]

    def _helper(self, name, arguments, keywords=()):
        self.cells[f"_fcn_fast_{name}"] = _HELPERS[name]
        return ast.Call(ast.Name(f"_fcn_fast_{name}", ast.Load()), arguments, list(keywords))

    def _site(self, node, operation, upsampling, callee=""):
        mode = self.names.mode(upsampling) if isinstance(upsampling, ast.Name) else mode_of(upsampling)
        self.sites.append(
            Site(f"{self.file}:{node.lineno}", ast.unparse(node), operation, _self_attribute(mode), callee)
        )
