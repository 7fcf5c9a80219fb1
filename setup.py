"""Compiles fcn_fast._C with ninja; everything else about the package is in pyproject.toml."""

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

from _build import TESTED_TORCH, find_cxx, find_torch

X86 = platform.machine().lower() in ("x86_64", "amd64")
COMMON = "-std=c++20 -O3 -fPIC -fvisibility=hidden -DNDEBUG -Wall"
# Multiply-adds are fused where the source says so and nowhere else, so that one formula has one value. The warnings
# switched off are about vectors between functions that are all inlined, and about the compiler's own headers.
KERNEL = "-ffp-contract=off -fno-math-errno -fno-trapping-math -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized"
NVCC = "-std=c++20 -O3 -fmad=false -DNDEBUG -Icsrc --threads 4"
AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512"
# Flags and vector bytes, from the oldest machines to the newest, as the link needs them: of an inline function that
# several files emit (std::vector's, say) the linker keeps the first copy, which must be one that every machine can run.
ISAS = {"baseline": ("", 16), **({"avx2": (AVX2, 32), "avx512": (AVX512, 64)} if X86 else {})}
CUDA_ARCHS = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]

RULES = """\
rule cxx
  description = C++ $out
  command = {cxx} $flags {cxxflags} -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule nvcc
  description = CUDA $out
  command = {nvcc} $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  description = link $out
  command = {cxx} $in -o $out $flags
"""


def output_of(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


def quote(args):
    return shlex.join(str(arg) for arg in args).replace("$", "$$")


def compiler_program(cxx):
    """$CXX without a cache before it and flags after it."""
    return [word for word in cxx if not word.startswith("-")][-1]


def compiler_name(cxx):
    try:
        line = output_of(*cxx, "--version").splitlines()[0]
    except (subprocess.CalledProcessError, IndexError) as error:
        raise SystemExit(f"fcn_fast: CXX: expected a C++ compiler, got {shlex.join(cxx)} ({error})") from error
    version = re.search(r"version (\d[\d.]*)|(\d[\d.]*)$", line)
    return f"{Path(compiler_program(cxx)).name} {version[1] or version[2]}" if version else line


def find_nvcc():
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return shutil.which("nvcc", path=os.path.join(home, "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def find_cuda(torch):
    """(nvcc, its version, "") where the CUDA kernels can be built, else (None, "", what is missing)."""
    wish = os.environ.get("FCN_FAST_CUDA")
    if wish == "0":
        return None, "", "FCN_FAST_CUDA=0"
    missing = [] if torch.cuda else [f"torch {torch.version} has no CUDA"]
    version = ""
    if nvcc := find_nvcc():
        version = re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version"))[1]
        if torch.cuda and int(version.split(".")[0]) > int(torch.cuda.split(".")[0]):
            missing.append(f"nvcc {version} is newer than the CUDA {torch.cuda} of torch {torch.version}")
    else:
        missing.append("no nvcc found (set CUDA_HOME)")
    if not list(Path("csrc/cuda").glob("*.cu")):
        missing.append("csrc/cuda holds no kernels")
    if missing and wish == "1":
        raise SystemExit(f"fcn_fast: FCN_FAST_CUDA=1 asks for CUDA kernels, but {'; '.join(missing)}")
    return (None, "", "; ".join(missing)) if missing else (nvcc, version, "")


def cuda_archs(nvcc):
    """What to compile for, written as in TORCH_CUDA_ARCH_LIST; by default PTX too, for GPUs newer than this nvcc."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    for arch in asked:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise SystemExit(f"fcn_fast: TORCH_CUDA_ARCH_LIST has {arch!r}, expected numbers such as '8.0;9.0+PTX'")
    known = output_of(nvcc, "--list-gpu-code").split()
    archs = [arch for arch in CUDA_ARCHS if f"sm_{arch.replace('.', '')}" in known]
    return asked or [*archs[:-1], archs[-1] + "+PTX"]


def cuda_arch_flags(archs):
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        yield f"-gencode=arch=compute_{number},code=sm_{number}"
        if arch.endswith("+PTX"):
            yield f"-gencode=arch=compute_{number},code=compute_{number}"


def write_facts(path, **facts):
    text = "#pragma once\n" + "".join(f"#define FCN_FAST_{name} {json.dumps(facts[name])}\n" for name in facts)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def ninja_file(build_dir, torch, cxx, nvcc, archs):
    edges, objects = [], []

    def add(rule, source, folder, flags):
        objects.append(f"{build_dir}/{folder}/{source.stem}.o")
        edges.append(f"build {objects[-1]}: {rule} {source.as_posix()}\n  flags = {quote(flags)}\n")

    pybind11 = importlib.util.find_spec("pybind11")
    if not pybind11:
        raise SystemExit("fcn_fast: no pybind11 to build with (pip install pybind11)")
    headers = [Path(pybind11.origin).with_name("include"), torch.root / "include", sysconfig.get_path("include")]
    defines = ["-DTORCH_TARGET_VERSION=0x020a000000000000ULL", f"-ffile-prefix-map={torch.root}=torch"]
    defines += ["-DFCN_FAST_X86=1"] * X86 + ["-DFCN_FAST_CUDA=1", "-DUSE_CUDA"] * bool(nvcc)
    includes = ["-Icsrc", f"-I{build_dir}", *(f"-isystem{header}" for header in headers)]
    add("cxx", Path("csrc/bindings.cpp"), ".", [*COMMON.split(), "-O2", *defines, *includes])

    link = ["-bundle", "-undefined", "dynamic_lookup"]
    if sys.platform != "darwin":
        # No rpath: the package imports torch first, so the loader has torch's libraries by then.
        link = ["-shared", "-Wl,--as-needed", f"-L{torch.root / 'lib'}", "-ltorch_cpu"]
    if nvcc:
        host = ["-ccbin", compiler_program(cxx), "-Xcompiler", "-fPIC,-fvisibility=hidden"]
        for source in sorted(Path("csrc/cuda").glob("*.cu")):
            add("nvcc", source, "cuda", [*NVCC.split(), *host, *cuda_arch_flags(archs)])
        folders = re.search(r"LIBRARIES=(.*)", output_of(nvcc, "--dryrun", "-c", "any.cu"))[1]
        link += ["-ltorch_cuda", *shlex.split(folders), "-lcudart_static", "-lrt", "-ldl", "-lpthread"]
    for isa, (flags, width) in ISAS.items():
        names = [f"-DFCN_FAST_ISA={isa}", f"-DFCN_FAST_VECTOR_BYTES={width}", "-Icsrc"]
        for source in sorted(Path("csrc/cpu").glob("*.cpp")):
            add("cxx", source, isa, [*COMMON.split(), *KERNEL.split(), *flags.split(), *names])

    link += shlex.split(os.environ.get("LDFLAGS", ""))
    edges.append(f"build {build_dir}/_C.so: link {' '.join(objects)}\n  flags = {quote(link)}\n")
    cxxflags = quote(shlex.split(os.environ.get("CXXFLAGS", "")))
    rules = RULES.format(cxx=quote(cxx), nvcc=quote([nvcc or "nvcc"]), cxxflags=cxxflags)
    return f"builddir = {build_dir}\n{rules}{''.join(edges)}"


def run_ninja(build_dir):
    spec = importlib.util.find_spec("ninja")
    program = os.path.join(importlib.import_module("ninja").BIN_DIR, "ninja") if spec else shutil.which("ninja")
    if not program:
        raise SystemExit("fcn_fast: no ninja to build with (pip install ninja)")
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    if subprocess.run([program, "-f", build_dir / "build.ninja", *jobs]).returncode:
        raise SystemExit("fcn_fast: the kernels did not compile; the compiler's messages are above")


def missing_for_cpp():
    if sys.platform == "win32":
        return "the C++ kernels do not build on Windows yet"
    if not find_cxx():
        return "no C++ compiler found (set CXX)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h found (install python3-dev)"
    return None


class BuildKernels(build_ext):
    def build_extension(self, ext):
        if missing := missing_for_cpp():
            if os.environ.get("FCN_FAST_CUDA") == "1":
                raise SystemExit(f"fcn_fast: FCN_FAST_CUDA=1 asks for CUDA kernels, but {missing}")
            print(f"fcn_fast: pure Python: {missing}", flush=True)
            return
        torch, cxx = find_torch(), find_cxx()
        if not torch:
            raise SystemExit(f"fcn_fast: no torch >= 2.10 to build against (pip install {TESTED_TORCH})")
        nvcc, cuda_version, cuda_missing = find_cuda(torch)
        if not nvcc:
            print(f"fcn_fast: CPU only: {cuda_missing}", flush=True)
        archs = cuda_archs(nvcc) if nvcc else []

        # Not setuptools' own folder, which is a fresh one in every editable build: this one keeps the objects.
        build_dir = Path("build", f"ninja-{sysconfig.get_config_var('SOABI')}")
        build_dir.mkdir(parents=True, exist_ok=True)
        write_facts(
            build_dir / "build_facts.h",
            VERSION=self.distribution.get_version(),
            COMPILER=compiler_name(cxx),
            TORCH_BUILT_WITH=torch.version,
            TORCH_ABI_TARGET="2.10",
            CUDA_VERSION=cuda_version,
            CUDA_ARCHS=" ".join(archs),
            CUDA_MISSING=cuda_missing,
            ISAS=" ".join(ISAS),
        )
        (build_dir / "build.ninja").write_text(ninja_file(build_dir, torch, cxx, nvcc, archs))
        run_ninja(build_dir)
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build_dir / "_C.so", output)


# Optional: in a pure Python build the file is missing. A compiler's error ends the build all the same.
setup(
    # Here, for pyproject.toml's ways to say it differ between releases of setuptools that are in use.
    license="BSD-3-Clause",
    ext_modules=[Extension("fcn_fast._C", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels},
)
