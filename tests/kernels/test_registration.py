"""The kernels take their place without Triton being imported, and leave it to the reference where Triton is broken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fcn_fast

ROOT = Path(fcn_fast.__file__).parent.parent
# Of a build with CUDA, compiled kernels stand in the way.
COMPILED = ["softmax_loss", "softmax_loss_backward"]
COMPILED = COMPILED if fcn_fast._C and fcn_fast._C.build_facts()["cuda_version"] else []

# Before fcn_fast looks, torch has CUDA; nothing of it is used.
CUDA = "import torch; torch.version.cuda = '13.0'; "
HAS = "lambda name: torch._C._dispatch_has_kernel_for_dispatch_key('fcn_fast::' + name, 'CUDA')"


def python(program, *path):
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FCN_FAST_ALLOW_REFERENCE")}
    environment["PYTHONPATH"] = os.pathsep.join(str(p) for p in (*path, ROOT))
    # Not in the source tree, whose package would come before the installed one.
    command, folder = [sys.executable, "-c", program], Path(__file__).parent
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_without_cuda_nothing_is_registered():
    program = "import sys, torch; torch.version.cuda = None; import fcn_fast; from fcn_fast import kernels; "
    python(
        program
        + f"assert not any(map({HAS}, set(kernels.OPERATORS) - set({COMPILED}))); "
        + "assert kernels.missing() and 'triton' not in sys.modules"
    )


def test_with_cuda_every_operator_has_a_kernel():
    program = CUDA + "import sys, fcn_fast; from fcn_fast import env, kernels; "
    python(
        program
        + f"assert all(map({HAS}, kernels.OPERATORS)) and not kernels.missing(); assert 'triton' not in sys.modules; "
        + f"assert kernels.registered == set(kernels.OPERATORS) - set({COMPILED}); "
        + "assert all(env.kernel_of(name, 'cuda') == 'Triton' for name in kernels.registered)"
    )


@pytest.mark.skipif(bool(COMPILED), reason="a build with CUDA")
def test_a_kernel_that_is_registered_first_takes_precedence():
    """As fcn_fast._C does, before the operators are defined."""
    compiled = ("softmax_loss", "softmax_loss_backward")
    program = CUDA + (
        "import warnings; warnings.simplefilter('error')\n"
        "compiled = torch.library.Library('fcn_fast', 'IMPL')\n"
        f"for name in {compiled}: compiled.impl(name, lambda *arguments: None, 'CUDA')\n"
        "import fcn_fast; from fcn_fast import env, kernels, ops\n"
        f"assert kernels.registered == set(kernels.OPERATORS) - set({compiled})\n"
        "assert env.kernel_of('softmax_loss', 'cuda') == 'CUDA C++'\n"
        "assert env.kernel_of('upsample_argmax', 'cuda') == 'Triton'\n"
        "kernels.register(ops._common.library)"  # every operator has one by now: one more would be a warning
    )
    python(program)


@pytest.mark.parametrize("first", ["softmax_loss", "skip_fuse", "scale_gradient"])
def test_names_stand_for_functions_whatever_is_called_first(first):
    python(
        f"import inspect, fcn_fast; from fcn_fast import kernels; kernels._load({first!r})\n"
        "for name in (*kernels.OPERATORS, 'max_pool', 'scale_gradient'):\n"
        "    assert inspect.isfunction(getattr(kernels, name)), name\n"
        "assert kernels.scale_gradient.__module__ == 'fcn_fast.kernels'"
    )


def test_codegen_keeps_kernels_under_one_name():
    """Whatever was called before: or each order of calls would wait for the compiler once."""
    program = (
        "import sys, fcn_fast; from fcn_fast import kernels; found = {}\n"
        "for operator in sorted(kernels.OPERATORS, reverse=REVERSE):\n"
        "    module = kernels._load(operator).__module__\n"
        "    kernels_of = [v for v in vars(sys.modules[module]).values() if getattr(v, '__module__', '') == module]\n"
        "    for value in kernels_of[::-1 if REVERSE else 1]:\n"
        "        if hasattr(value, 'cache_key'): found[f'{module}.{value.__name__}'] = value.cache_key\n"
        "print(*sorted(found.items()), sep='\\n')"
    )
    one, other = (python(program.replace("REVERSE", reverse)).stdout for reverse in ("False", "True"))
    assert one == other and "upsample_softmax_loss._cells" in one and "bilinear_upsample._gather" in one


def test_a_broken_triton_leaves_the_reference(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise RuntimeError('no libcuda')")
    program = CUDA + (
        "import warnings, fcn_fast; from fcn_fast import kernels, reference\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    assert kernels._working('skip_fuse') is reference.skip_fuse\n"
        "    assert kernels._working('skip_fuse') is reference.skip_fuse\n"
        "assert len(caught) == 1 and 'no libcuda' in str(caught[0].message), caught"
    )
    python(program, tmp_path)
