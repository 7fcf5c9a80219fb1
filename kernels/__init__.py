"""Triton kernels, one file an operation: ``fcn_fast.kernels.<operator>``, as fcn_fast/reference.py defines it.

Nothing here imports Triton before a kernel runs, so the package loads without one, and under a broken one.
"""

import functools
import importlib
import importlib.util
import inspect
import warnings

import torch

from fcn_fast import reference

# The file of each operator.
OPERATORS = {
    "bilinear_upsample": "bilinear_upsample",
    "bilinear_upsample_backward": "bilinear_upsample",
    "skip_fuse": "skip_fuse",
    "softmax_loss": "softmax_loss",
    "softmax_loss_backward": "softmax_loss",
    "upsample_softmax_loss": "upsample_softmax_loss",
    "upsample_argmax": "upsample_argmax",
}
SHARED = ("grid", "labels", "cells", "bilinear_upsample")  # files that others use
registered = set()  # of OPERATORS, those that run here on the GPU


def missing():
    """Why these kernels can't run; empty where nothing is known to be missing."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    return "" if importlib.util.find_spec("triton") else "no triton installed"


def register(library):
    """Make these the CUDA kernels of the operators that have none: what is compiled takes precedence."""
    if missing():
        return
    for name in OPERATORS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fcn_fast::{name}", "CUDA"):
            library.impl(name, _on_first_call(name), "CUDA")
            registered.add(name)


def scale_gradient(gradient, factor):
    """``gradient.mul_(factor)`` on a GPU, which reads and writes nothing where the factor is 1."""
    _working("scale_gradient")(gradient, factor)


def max_pool(x, frame=None, corner=(0, 0)):
    """``F.max_pool2d(x, 2, 2, ceil_mode=True)`` of a channels_last map on a GPU, and of no other.

    With a frame, (1, C, H, W) and dense channels_last too, the pooled map lies in that, its first pixel at the corner.
    """
    return _working("max_pool")(x, frame, corner)


def _on_first_call(name):
    def kernel(*args):
        return _working(name)(*args)

    return kernel


@functools.cache
def _working(name):
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # builds Triton's own part with a C compiler, the first time on a machine
        return _load(name)
    except Exception as error:  # whatever a broken Triton raises
        warnings.warn(
            f"fcn_fast.ops.{name} runs on its plain PyTorch reference: Triton does not work here ({error!r})",
            stacklevel=3,
        )
        return getattr(reference, name)


def _load(name):
    ours = globals().get(name)
    for file in (*SHARED, OPERATORS.get(name, name)):
        module = importlib.import_module(f"{__name__}.{file}")
        # Importing a file binds its name to the module; the function of that name is what callers mean.
        if file in OPERATORS:
            globals()[file] = getattr(module, file)
        # Under what name Triton keeps a kernel hangs on which functions it has met before (seen in 3.6): it is to meet
        # them in one order, or a program that calls the operators in another one would compile them again.
        for value in vars(module).values():
            getattr(value, "cache_key", None)
    globals()[name] = ours if inspect.isfunction(ours) else getattr(module, name)
    return getattr(module, name)


def __getattr__(name):
    if name not in OPERATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for operator in OPERATORS:
        _load(operator)
    return globals()[name]
