"""As much of a build with CUDA as a machine without it can do."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_build_that_wants_cuda_says_what_is_missing(tmp_path):
    pytest.importorskip("setuptools")
    environment = {**os.environ, "FCN_FAST_CUDA": "1", "CUDA_HOME": str(tmp_path)}
    command = [sys.executable, "setup.py", "build_ext", "--build-temp", tmp_path, "--build-lib", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode and done.stderr.splitlines()[-1] == (
        "fcn_fast: FCN_FAST_CUDA=1 asks for CUDA kernels, but "
        f"torch {torch.__version__} has no CUDA; no nvcc found (set CUDA_HOME)"
    )


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_bindings_compile_with_cuda(tmp_path):
    """Against the headers alone: what they call is in the libraries of a torch with CUDA."""
    headers = Path(torch.__file__).parent / "include"
    source = ROOT / "csrc" / "bindings.cpp"
    facts = sorted(set(re.findall(r'facts\["\w+"\] = (?:words\()?(FCN_FAST_\w+)', source.read_text())))
    assert len(facts) > 5
    (tmp_path / "build_facts.h").write_text("".join(f'#define {name} ""\n' for name in facts))
    includes = [f"-I{ROOT / 'csrc'}", f"-I{tmp_path}", "-isystem", headers, "-isystem", sysconfig.get_path("include")]
    defines = ["-DTORCH_TARGET_VERSION=0x020a000000000000ULL", "-DFCN_FAST_CUDA=1", "-DUSE_CUDA"]
    command = ["g++", "-std=c++20", "-fsyntax-only", *defines, *includes, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
