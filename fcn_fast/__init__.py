"""Fast operations and networks for the pixel end of segmentation."""

import warnings
from pathlib import Path

import torch  # noqa: F401, loads the library that the compiled module binds to

__version__ = "0.1.0"

try:
    from fcn_fast import _C  # its import registers the CPU kernels
except ImportError as error:
    _C = None
    # Python's own words for a file that is not there speak of a circular import.
    there = any(Path(__file__).parent.glob("_C.*.so"))
    why = f"its compiled module does not load ({error})" if there else "its C++ kernels were not built"
    warnings.warn(
        "On the CPU fcn_fast runs on its plain PyTorch reference, slower and with more memory than PyTorch's own "
        "operations: "
        f"{why}. "
        "Build it with g++ or clang: pip install --force-reinstall --no-deps .",
        stacklevel=2,
    )

from fcn_fast import kernels, nn, ops, reference  # noqa: E402
from fcn_fast.grid import BilinearGrid  # noqa: E402

kernels.register(ops._common.library)

from fcn_fast.patch import patch, unpatch  # noqa: E402, asks which kernels there are

__all__ = ["BilinearGrid", "__version__", "nn", "ops", "patch", "reference", "unpatch"]
