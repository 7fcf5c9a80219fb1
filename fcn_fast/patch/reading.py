"""What the source of a function says of its upsamplings."""

import ast
import inspect
import types

from torch import nn

from fcn_fast.patch.source import CannotRewriteError, codes, names_in, parse

__all__ = [
    *("Names", "assigned", "calls_super", "criteria", "hands_over", "is_criterion", "is_resize", "mode_of", "resizes"),
    *("resolve", "supers_by_instance"),
]

# They see the local variables as they are.
_READERS = frozenset({"locals", "vars", "eval", "exec"})
# Functions with F.interpolate's first five parameters, by module and name.
_RESIZES = {
    ("torch.nn.functional", "interpolate"),
    ("torch.nn.functional", "upsample"),
    ("mmseg.models.utils.wrappers", "resize"),
    ("mmseg.ops.wrappers", "resize"),
}


def resizes(function):
    """Whether a function names an upsampling: what is worth reading."""
    named = names_in(function)
    known = {name for _, name in _RESIZES}
    found = getattr(inspect.unwrap(function), "__globals__", {})
    return not named.isdisjoint(known) or any(_resizes(found.get(name)) for name in named)


def calls_super(function, name):
    """Whether a method calls ``super().name``, as far as its source tells."""
    if not {"super", name} <= names_in(function):
        return False
    calls, attributes = _supers(function)
    return calls is None or any(attributes.get(id(call), name) == name for call in calls)


def supers_by_instance(function):
    """Whether a method calls ``super(type(self), self)`` or the like, which finds itself again in a subclass."""
    names = names_in(function)
    if "super" not in names or names.isdisjoint({"type", "__class__"}):
        return False
    calls, _ = _supers(function)
    firsts = [call.args[0] for call in calls or () if call.args]
    return any(isinstance(first, ast.Call) or getattr(first, "attr", "") == "__class__" for first in firsts)


def _supers(function):
    """The calls of super in a function, None without source; and by an expression's id the attribute read from it."""
    try:
        tree = parse(inspect.unwrap(function))
    except CannotRewriteError:
        return None, {}
    nodes = list(ast.walk(tree))
    calls = [node for node in nodes if isinstance(node, ast.Call) and _id(node.func) == "super"]
    return calls, {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}


def _resizes(thing):
    return (getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)) in _RESIZES


def resolve(node, function):
    """What a global name, or an attribute of a module, is; None for all else."""
    if isinstance(node, ast.Name):
        inside = codes(function.__code__)
        local = any(node.id in (*code.co_varnames, *code.co_cellvars, *code.co_freevars) for code in inside)
        return None if local else function.__globals__.get(node.id)
    if isinstance(node, ast.Attribute):
        base = resolve(node.value, function)
        return getattr(base, node.attr, None) if isinstance(base, types.ModuleType) else None
    return None


def is_resize(node, function):
    """Whether this is a call of an F.interpolate that may be bilinear."""
    if not isinstance(node, ast.Call):
        return False
    if not _resizes(resolve(node.func, function)):
        return False
    mode = mode_of(node)
    return mode is not None and not (isinstance(mode, ast.Constant) and mode.value != "bilinear")


def mode_of(call):
    """The expression for the mode of an F.interpolate; None where there is none."""
    return next((k.value for k in call.keywords if k.arg == "mode"), call.args[3] if len(call.args) > 3 else None)


def is_criterion(node, function):
    """Whether an nn.CrossEntropyLoss is made here."""
    return isinstance(node, ast.Call) and resolve(node.func, function) is nn.CrossEntropyLoss


def hands_over(node):
    """Whether this is a call with a first argument and another, as a loss has them."""
    return isinstance(node, ast.Call) and bool(node.args) and len(node.args) + len(node.keywords) > 1


def assigned(node):
    """The name, where a statement assigns to one and nothing else."""
    single = isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
    return node.targets[0].id if single else None


def criteria(tree, function):
    """The local names that are given an nn.CrossEntropyLoss, and only ever called."""
    made, plain = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            plain.add(id(node.func))
        if name := assigned(node):
            plain.add(id(node.targets[0]))
            made.update([name] if is_criterion(node.value, function) else [])
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return made - {node.id for node in names if id(node) not in plain}


class Names:
    """The local names of a function that hold upsamplings whose map may not be needed, and where they do.

    A name holds one where the last assignment above is one. That finds the places, and the code that is put there looks
    at what it gets; so a loop or a branch that does otherwise costs no correctness.
    """

    def __init__(self, tree, function, takes_deferred):
        self.stores = {}  # of each name, the places where it is assigned; with the mode, or False for another value
        parameters = tree.args.posonlyargs + tree.args.args
        parameter = parameters[0].arg if takes_deferred and parameters else None
        if parameter:
            self._store(parameter, (0, 0), None)
        changed = _changed(tree)
        statements = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
        for node in statements:  # which happen where they end
            mode = False
            if (name := assigned(node)) and is_resize(node.value, function):
                mode = mode_of(node.value)
                changed |= {name} if changed & _ids(node.value) else set()  # its input would be another by then
            for name in set().union(*map(_ids, node.targets)):
                self._store(name, (node.end_lineno, node.end_col_offset), mode)
        targets = {id(name) for node in statements for target in node.targets for name in ast.walk(target)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in targets:
                self._store(node.id, (node.lineno, node.col_offset), False)
        uses = (use for use in _uses(tree, parameter, function) if isinstance(use, ast.Name))
        self.deferred = {use.id for use in uses if self.mode(use) is not False} - changed
        if not _READERS.isdisjoint(function.__code__.co_names):
            self.deferred = set()

    def _store(self, name, place, mode):
        self.stores.setdefault(name, []).append((place, mode))

    def mode(self, node):
        """The expression for the mode, or None, of the upsampling that a name holds here; False for another value."""
        above = [store for store in self.stores.get(node.id, ()) if store[0] <= (node.lineno, node.col_offset)]
        return max(above, key=lambda store: store[0])[1] if above else False

    def holds(self, node):
        """Whether this expression is one of the names, and holds an upsampling here."""
        return isinstance(node, ast.Name) and node.id in self.deferred and self.mode(node) is not False


def _changed(tree):
    """The names that are changed in place, or otherwise than by a plain assignment."""
    changed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign):
            changed.add(_id(node.target))
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            changed.update(node.names)
        elif isinstance(node, ast.Delete):
            changed.update(map(_id, node.targets))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.endswith("_"):
            changed.add(_id(node.func.value))
    return changed - {None}


def _uses(tree, parameter, function):
    """The expressions that something is done with which may not need the map."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            yield from (node.left, node.right)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "argmax":
            yield node.func.value
        elif hands_over(node) and (not is_resize(node, function) or _id(node.args[0]) == parameter):
            yield node.args[0]


def _id(node):
    return getattr(node, "id", None)


def _ids(node):
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
