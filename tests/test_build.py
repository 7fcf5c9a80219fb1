"""The compiled module: that it is the installed one, that every operation has its kernel, and each instruction set."""

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fcn_fast

TESTS = Path(__file__).parent
CAPABILITIES = {"baseline": "default", "avx2": "avx2", "avx512": "avx512"}  # as ATEN_CPU_CAPABILITY names them
ALLOW_REFERENCE = os.environ.get("FCN_FAST_ALLOW_REFERENCE") == "1"

pytestmark = pytest.mark.skipif(not fcn_fast._C and ALLOW_REFERENCE, reason="no compiled module")


def start(*args, **environment):
    """Start it with this environment, less what would let it pass without the compiled module.

    Here rather than one folder up, where the source tree's package would come before the installed one.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("FCN_FAST_ALLOW_REFERENCE", "ATEN_CPU_CAPABILITY")}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *args], env={**env, **environment}, cwd=TESTS, **options)


def finish(process):
    with process:
        try:
            output = process.communicate(timeout=600)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def test_the_compiled_module_lies_in_the_package_that_is_imported():
    assert fcn_fast._C is not None
    assert Path(fcn_fast._C.__file__).parent == Path(fcn_fast.__file__).parent


@pytest.mark.parametrize(
    "name",
    [
        "bilinear_upsample",
        "bilinear_upsample_backward",
        "skip_fuse",
        "softmax_loss",
        "softmax_loss_backward",
        "upsample_softmax_loss",
        "upsample_argmax",
    ],
)
def test_every_operator_has_a_cpu_kernel(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fcn_fast::{name}", "CPU")


def test_build_facts():
    facts = fcn_fast._C.build_facts()
    assert facts["version"] == fcn_fast.__version__ == importlib.metadata.version("fcn_fast")
    assert re.fullmatch(r"\d+\.\d+", facts["torch_abi_target"])
    numbers = [tuple(map(int, v.split(".")[:2])) for v in (facts["torch_abi_target"], torch.__version__)]
    assert numbers[0] <= numbers[1]
    assert re.match(r"\d+\.\d+", facts["torch_built_with"]) and facts["compiler"]
    assert facts["isas"][0] == "baseline" and facts["isa"] in facts["isas"]
    assert bool(facts["cuda_version"]) == bool(facts["cuda_archs"]) == (not facts["cuda_missing"])


def test_the_instruction_set_is_the_best_that_torch_uses():
    capability = torch.backends.cpu.get_cpu_capability()
    best = {"AVX2": "avx2", "AVX512": "avx512"}.get(capability, "baseline")
    facts = fcn_fast._C.build_facts()
    assert facts["isa"] == (best if best in facts["isas"] else "baseline")


def test_every_instruction_set(seed):
    """The others than the one in use, each in a process of its own: the values of every operation."""
    facts = fcn_fast._C.build_facts()
    others = facts["isas"][: facts["isas"].index(facts["isa"])]
    selection = ["-m", "isa and not cuda", "-k", "not reference", "ops"]
    # Side by side: each is mostly on one core.
    with contextlib.ExitStack() as stack:
        started = []
        for isa in others:
            chosen = {
                "ATEN_CPU_CAPABILITY": CAPABILITIES[isa],
                "FCN_FAST_TEST_SEED": str(seed),
                **({"FCN_FAST_ALLOW_REFERENCE": "1"} if ALLOW_REFERENCE else {}),
            }
            done = finish(start("-c", "import fcn_fast; print(fcn_fast._C.build_facts()['isa'])", **chosen))
            assert done.stdout.strip() == isa, done.stderr
            started.append(start("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection, **chosen))
            stack.callback(started[-1].kill)
        for isa, process in zip(others, started, strict=True):
            done = finish(process)
            assert done.returncode == 0, f"{isa}: {done.stdout[-5000:]}"
            assert re.search(r"\d{3,} passed", done.stdout), done.stdout[-500:]


@pytest.mark.parametrize("compiled", [True, False])
def test_a_copy_of_the_package_does_not_pass_for_the_installed_one(compiled, tmp_path):
    ignore = None if compiled else shutil.ignore_patterns("_C.*")
    shutil.copytree(Path(fcn_fast.__file__).parent, tmp_path / "fcn_fast", ignore=ignore)
    done = finish(start("-m", "pytest", "--collect-only", "-q", "test_grid.py", PYTHONPATH=str(tmp_path)))
    assert done.returncode == 4 and "would not test the installed kernels" in done.stderr
