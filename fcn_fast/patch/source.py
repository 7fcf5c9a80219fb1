"""A function's source, and functions made of it again."""

import __future__

import ast
import copy
import functools
import inspect
import types
import warnings

__all__ = ["CannotRewriteError", "codes", "compile_as", "function_as", "names_in", "parse", "rewrap"]


class CannotRewriteError(ValueError):
    """A function cannot be compiled again; the message says why."""


def parse(function):
    """The function's definition, if its source is what it was compiled from."""
    if not isinstance(function, types.FunctionType):
        raise CannotRewriteError(f"a {type(function).__name__} has no source")
    try:
        lines, _ = inspect.findsource(function)
        tree, compiled = _module("".join(lines), function.__code__.co_filename)
    except (OSError, TypeError, SyntaxError) as error:
        raise CannotRewriteError(f"no source ({error})") from error
    code = function.__code__
    if not any(_same(code, other) for other in codes(compiled) if _place(other) == _place(code)):
        raise CannotRewriteError("its source file is not what runs")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name and _first_line(node) == code.co_firstlineno:
            node = copy.deepcopy(node)
            node.decorator_list = []
            return node
    raise CannotRewriteError("it is no plain function")


@functools.lru_cache(maxsize=4)
def _module(source, filename):
    """The syntax tree of a source file, and its code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were given when the module was imported
        return ast.parse(source), compile(source, filename, "exec", dont_inherit=True)


def codes(code):
    """A code object and all those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def names_in(function):
    """The names of globals and attributes in a function's code, that of its decorators left out."""
    function = inspect.unwrap(function)
    if not isinstance(function, types.FunctionType):  # a decorator may wrap anything that can be called
        return set()
    return {name for code in codes(function.__code__) for name in code.co_names}


def _place(code):
    return code.co_name, code.co_firstlineno


def _first_line(node):
    return min(part.lineno for part in (node, *node.decorator_list))


def compile_as(tree, function, freevars):
    """The code of a function's definition, with these names for its closure."""
    kind = function.__qualname__.rpartition(".")[0].rpartition(".")[2]
    kind = kind if kind.isidentifier() else "_"
    outer = ast.parse(f"def outer({', '.join(freevars)}):\n class {kind}: pass").body[0]
    inner = copy.copy(tree)
    inner.name = "inner"  # or a function that calls itself would find itself, and not what its module has by the name
    outer.body[0].body = [inner]  # in a class of the same name, which is part of its private names
    module = ast.fix_missing_locations(ast.Module(body=[outer], type_ignores=[]))
    futures = function.__code__.co_flags & __future__.annotations.compiler_flag
    compiled = compile(module, function.__code__.co_filename, "exec", flags=futures, dont_inherit=True)
    code = next(code for code in codes(compiled) if code.co_name == "inner")
    return code.replace(co_name=function.__code__.co_name)


def _same(a, b):
    """Whether two code objects do the same, wherever they stand."""
    names = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars")
    if any(getattr(a, name) != getattr(b, name) for name in names) or len(a.co_consts) != len(b.co_consts):
        return False
    return all(
        _same(x, y) if isinstance(x, types.CodeType) and isinstance(y, types.CodeType) else (type(x), x) == (type(y), y)
        for x, y in zip(a.co_consts, b.co_consts, strict=True)
    )


def function_as(old, code, cells):
    """``old`` with other code and closure."""
    closure = tuple(cells[name] for name in code.co_freevars)
    new = types.FunctionType(code, old.__globals__, old.__name__, old.__defaults__, closure)
    new.__kwdefaults__ = old.__kwdefaults__
    new.__dict__.update(old.__dict__)
    for name in functools.WRAPPER_ASSIGNMENTS:
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))
    return new


def rewrap(function, inner, new):
    """The decorators of function, around new instead of inner."""
    if function is inner:
        return new
    wrapped = function.__wrapped__
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    names = [name for name, cell in cells.items() if cell.cell_contents is wrapped]
    if len(names) != 1:
        raise CannotRewriteError(f"its decorator {function.__code__.co_name} hides it")
    rewrapped = rewrap(wrapped, inner, new)
    outer = function_as(function, function.__code__, cells | {names[0]: types.CellType(rewrapped)})
    outer.__wrapped__ = rewrapped
    return outer
