"""The Triton kernels: on the GPU where there is one, else in Triton's interpreter, on the CPU and slowly."""

import importlib.util
import os
import types

import numpy as np
import pytest
import torch

from . import codegen

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, which no other test does
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "kernels" and "cpu" in item.name and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="Triton is not the interpreter (TRITON_INTERPRET=1)"))


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """Mends Triton's interpreter.

    It makes Python numbers of arrays with one element, which NumPy 2.4 no longer does, truncates to bfloat16 where a
    GPU rounds, takes NaN for the larger or the smaller of two where a GPU takes the number, and makes 32 bits of a
    condition that is the same for all, which Triton 3.9 does not take for a mask. It is slow: it puts its
    functions into triton.language at every call, where once is enough, reduces number by number, and looks for overflow
    of whole numbers without telling of it. Kernels that ask what GPU they run on are told of one that is absent.
    """
    if not INTERPRETED:
        yield
        return
    import triton.language as tl
    from triton.runtime import driver, interpreter

    if not torch.cuda.is_available():
        monkeypatch.setattr(driver, "_active", codegen.Absent(90))
    patch, convert = interpreter._patch_lang_tensor, interpreter._convert_float

    def patch_index_too(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def round_to_nearest(input, input_dtype, output_dtype, rounding):
        if output_dtype == interpreter.tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(input)).bfloat16()
            return rounded.view(torch.int16).numpy().view(np.uint16)
        return convert(input, input_dtype, output_dtype, rounding)

    def splat(self, kind, value):
        result = create_splat(self, kind, value)
        return interpreter.TensorHandle(result.data.astype(bool), tl.int1) if kind.scalar == tl.int1 else result

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_index_too)
    monkeypatch.setattr(interpreter, "_convert_float", round_to_nearest)
    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(builder, "create_maxnumf", lambda self, a, b: self.binary_op(a, b, np.fmax))
    monkeypatch.setattr(builder, "create_minnumf", lambda self, a, b: self.binary_op(a, b, np.fmin))
    create_splat = builder.create_splat
    monkeypatch.setattr(builder, "create_splat", splat)

    def reduce_slices(self, input):
        """One slice after the other, and the bits of hundreds of numbers at once."""
        if self.keep_dims:
            return reduce(self, input)
        input, axis = self.unravel(input, self.axis)
        parts = [np.moveaxis(x.handle.data, axis, 0) for x in input]
        if self.combine_fn == tl.standard._or_combine:
            return [self.to_tensor(np.bitwise_or.reduce(parts[0]), input[0].dtype)]
        total, *others = (
            [self.to_tensor(part[i], x.dtype) for part, x in zip(parts, input, strict=True)]
            for i in range(len(parts[0]))
        )
        for each in others:
            total = self.combine_fn.fn(*total, *each)
            total = total if isinstance(total, tuple) else (total,)
        return list(total)

    reduce = interpreter.ReduceOps.generic_reduce
    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", reduce_slices)
    unchecked = interpreter.InterpreterOptions(sanitize_overflow=False)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", unchecked)
    scope = interpreter._patch_lang(types.FunctionType((lambda: 0).__code__, {"tl": tl, "core": tl.core}))
    monkeypatch.setattr(interpreter, "_patch_lang", lambda function: interpreter._LangPatchScope())
    yield
    scope.restore()
