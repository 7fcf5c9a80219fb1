"""nvcc compiles the CUDA kernels for every GPU that they are built for: no spills, bounded registers, wide accesses."""

import concurrent.futures
import functools
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent.parent / "csrc"
ARCHS = (75, 80, 86, 89, 90, 100, 120)
TYPES = {"f": "float32", "d": "float64", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}
# Registers of any kernel, as csrc/cuda/softmax_loss.cu has them: 65536 over it is the threads of a multiprocessor.
CEILINGS = {"float32": 80, "bfloat16": 128, "float16": 128, "float64": 168}
# Of a mangled name: the kernel, its type, the pixels of a thread and whether it smooths labels.
KERNEL = (
    r"((?:forward|backward|tile)_(?:planes|rows|lanes)|add_blocks|weigh|5scale)I([fd]|6__half|13__nv_bfloat16)"
    r"(?:Li(\d)E)?(?:Lb(\d)E)?E"
)
NVCC = shutil.which("nvcc", path=os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")) or shutil.which(
    "nvcc"
)

pytestmark = pytest.mark.skipif(not NVCC, reason="no nvcc")


def kernel(mangled):
    name, dtype, pack, smooth = re.search(KERNEL, mangled).groups()
    return name, TYPES[dtype], int(pack or 1), smooth == "1"


@pytest.fixture(scope="session")
def compiled(request, tmp_path_factory):
    """For a GPU: the cubin, and what ptxas says of each kernel: registers, bytes of stack and of spills."""
    folder = tmp_path_factory.mktemp("cuda")

    def compile(arch):
        path = folder / f"{arch}.cubin"
        flags = ["-std=c++20", "-O3", "-fmad=false", "-DNDEBUG", f"-I{CSRC}", f"-arch=sm_{arch}", "-Xptxas", "-v"]
        command = [NVCC, *flags, "-cubin", CSRC / "cuda" / "softmax_loss.cu", "-o", path]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
        pattern = r"entry function '(\w+)'.*?(\d+) bytes stack.*?(\d+) bytes spill stores.*?Used (\d+) registers"
        found = re.findall(pattern, done.stderr, re.DOTALL)
        return path, {kernel(name): (int(r), int(stack), int(spills)) for name, stack, spills, r in found}

    # Each takes nvcc, on one core, a third of a minute: side by side, in the order of the tests, and no others.
    wanted = [item.callspec.params["arch"] for item in request.session.items if item.path == Path(__file__)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compiling = {arch: pool.submit(compile, arch) for arch in dict.fromkeys(wanted)}
        yield lambda arch: compiling[arch].result()
        pool.shutdown(cancel_futures=True)  # what a failure has left out


@pytest.mark.parametrize("arch", ARCHS)
def test_codegen(arch, compiled):
    kernels = compiled(arch)[1]
    # Of each type: planes by two widths, rows and lanes, forward and backward, with and without smoothing; both in one,
    # with and without; and sums, weights and scaling.
    assert len(kernels) == 4 * 4 * 4 + (2 + 2 + 3 + 3) * 2 + 2 + 2 + 4
    for (name, dtype, *_), (registers, stack, spills) in kernels.items():
        assert not stack and not spills, f"{name}, {dtype}: {stack} bytes of stack, {spills} spilled"
        assert registers <= CEILINGS[dtype], f"{name}, {dtype}: {registers} registers"


@pytest.fixture(scope="session")
def disassembled(compiled):
    """For a GPU, the machine code of each kernel; by the CUDA toolkit's disassembler or the one that Triton carries."""
    spec = importlib.util.find_spec("triton")
    carried = spec and Path(spec.origin).with_name("backends") / "nvidia" / "bin" / "cuobjdump"
    program = (
        shutil.which("cuobjdump") or shutil.which("cuobjdump", path=Path(NVCC).parent) or shutil.which(carried or "")
    )

    @functools.cache
    def disassemble(arch):
        if not program:
            pytest.skip("no cuobjdump")
        command = [program, "-sass", compiled(arch)[0]]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {kernel(code.split()[0]): code for code in text.split("Function : ")[1:]}

    return disassemble


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", [80, 90])
def test_codegen_has_accesses_of_16_bytes(arch, dtype, disassembled):
    """Of aligned planes, a group of classes after the other; of rows, on their way to shared memory and back."""
    code = disassembled(arch)
    pack = {"float32": 4, "bfloat16": 8}[dtype]
    for name, loads, stores in (
        (("forward_planes", dtype, pack, False), r"LDG\.E\S*\.128", None),
        (("backward_planes", dtype, pack, False), r"LDG\.E\S*\.128", r"STG\.E\S*\.128"),
        (("forward_rows", dtype, 1, False), r"LDGSTS\.E\S*\.128", None),
        (("backward_rows", dtype, 1, False), r"LDGSTS\.E\S*\.128", r"STG\.E\S*\.128"),
        (("tile_planes", dtype, pack // 4, False), r"LDGSTS\.E\S*\.128", r"STG\.E\S*\.128"),
        (("tile_rows", dtype, 1, False), r"LDGSTS\.E\S*\.128", r"STG\.E\S*\.128"),
    ):
        # Four for a whole group of classes, and for the last one four loads and three stores.
        of_groups = name[0] in ("forward_planes", "backward_planes")
        assert len(re.findall(loads, code[name])) >= (8 if of_groups else 1), name
        assert not stores or len(re.findall(stores, code[name])) >= (7 if of_groups else 1), name
