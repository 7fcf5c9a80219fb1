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
    """Mends the interpreter of Triton 3.6.

    It makes Python numbers of arrays with one element, which NumPy 2.4 no longer does, truncates to bfloat16 where a
    GPU rounds, and takes NaN for the larger or the smaller of two where a GPU takes the number. It is slow: it puts its
    functions into triton.language at every call, where once is enough, and reduces number by number. Kernels that ask
    what GPU they run on are told of one that is absent.
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

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_index_too)
    monkeypatch.setattr(interpreter, "_convert_float", round_to_nearest)
    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(builder, "create_maxnumf", lambda self, a, b: self.binary_op(a, b, np.fmax))
    monkeypatch.setattr(builder, "create_minnumf", lambda self, a, b: self.binary_op(a, b, np.fmin))

    def reduce_by_pairs(self, input):
        """Each number with the next, all pairs at once, till one is left; of powers of two."""
        if self.keep_dims:
            return reduce(self, input)
        input, axis = self.unravel(input, self.axis)
        parts = [np.moveaxis(x.handle.data, axis, 0) for x in input]
        while len(parts[0]) > 1:
            pairs = [self.to_tensor(part[i::2], x.dtype) for i in (0, 1) for part, x in zip(parts, input, strict=True)]
            results = self.combine_fn.fn(*pairs)
            parts = [x.handle.data for x in (results if isinstance(results, tuple) else (results,))]
        return [self.to_tensor(part[0], x.dtype) for part, x in zip(parts, input, strict=True)]

    reduce = interpreter.ReduceOps.generic_reduce
    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", reduce_by_pairs)
    scope = interpreter._patch_lang(types.FunctionType((lambda: 0).__code__, {"tl": tl, "core": tl.core}))
    monkeypatch.setattr(interpreter, "_patch_lang", lambda function: interpreter._LangPatchScope())
    yield
    scope.restore()
