"""PEP 517 build backend: setuptools, against the torch that the target environment already has.

An isolated build hides the target's packages, but not the path of their folder, and a path is all that compiling takes.
The kernels keep to LibTorch's stable ABI, so one build serves every torch from 2.10 on, whichever it was built with.
"""

import os
import re
import runpy
import shlex
import shutil
import site
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

TESTED_TORCH = "torch==2.13.0"


def find_torch():
    """The first torch >= 2.10 in reach, not imported: its folder, its version and its CUDA version (None without)."""
    folders = [*sys.path, sysconfig.get_path("platlib"), site.getusersitepackages()]
    if active := os.environ.get("VIRTUAL_ENV"):  # `python -m build` and uv build in an environment of their own
        folders.append(sysconfig.get_path("platlib", "posix_prefix", {"platbase": active}))
    for folder in folders:
        spec = PathFinder.find_spec("torch", [folder])
        if spec and spec.origin and (version := Path(spec.origin).with_name("version.py")).exists():
            facts = runpy.run_path(str(version))
            if tuple(map(int, re.findall(r"\d+", facts["__version__"])[:2])) >= (2, 10):
                return SimpleNamespace(root=version.parent, version=facts["__version__"], cuda=facts["cuda"])
    return None


def find_cxx():
    """The C++ compiler as an argument list: $CXX, or the first one on PATH; None where there is none."""
    for name in [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]:
        if shutil.which(shlex.split(name)[0]):
            return shlex.split(name)
    return None


def _torch_to_build_with():
    return [] if find_torch() or not find_cxx() else [TESTED_TORCH]


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_to_build_with()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_to_build_with()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    # setuptools packs all that it finds here, what an earlier build left included.
    for left in Path("build").glob("lib*"):
        shutil.rmtree(left)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
