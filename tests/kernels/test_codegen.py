"""Every kernel compiles for absent GPUs: whole, without spills, in bounded registers, with loads of 16 bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from . import codegen

# Registers of one kernel in any dtype; what a multiprocessor has left for other warps is 65536 over it.
CEILINGS = {
    "_sample": 152, "_gather": 192, "_forward": 128, "_backward": 128, "_argmax": 216, "_cells": 208,
    "_combine": 96, "_weigh": 64, "_finish": 64, "_scale": 64, "_pool": 64,
}  # fmt: skip
# Bytes that a thread may keep on the stack: none, but that later compilers spill a little of two kernels with capped
# registers, and a higher cap would cost more (fewer warps).
LATER = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)
STACK = {"_cells": 56, "_argmax": 16} if LATER else {}
# Bits of the widest load and store where rows are multiples of 16 bytes; 0 for what is gathered.
WIDEST = {"_forward": (128, 0), "_backward": (128, 128), "_sample": (0, 128), "_scale": (128, 128), "_pool": (128, 128)}
ALL = os.environ.get("FCN_FAST_CODEGEN") == "all"


def chosen(gpu, case):
    """Everything for the H100, and for the others what differs most; FCN_FAST_CODEGEN=all: everything."""
    operator, dtype, *rest = case.split("-")
    common = dtype in ("float32", "bfloat16") and rest == ["contiguous"] or operator == "upsample_argmax"
    if gpu == 90:
        common = dtype != "float16" and (dtype != "float64" or "channels_last" not in rest)
    return ALL or common


JOBS = [(gpu, case[0]) for case in codegen.cases() for gpu in codegen.GPUS if chosen(gpu, case[0])]


@pytest.fixture(scope="session")
def reports():
    """What became of every kernel of JOBS. In another process, because in this one Triton is the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [f"{gpu}:{case}" for gpu, case in JOBS]
    command = [sys.executable, "-W", "ignore", Path(codegen.__file__), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_codegen_of_another_size_is_the_same(reports):
    """Or each size of image would wait seconds for a compiler."""
    for name in ("upsample_argmax-float32", "upsample_softmax_loss-float32-contiguous"):
        sizes = [name, f"{name.partition('-')[0]}-size"]
        mine = [report for report in reports if report["gpu"] == 90 and report["case"] in sizes]
        for kernel in ("_argmax", "_cells"):
            assert len({report["hash"] for report in mine if report["kernel"] == kernel}) <= 1
        assert {report["case"] for report in mine if report["kernel"] in ("_argmax", "_cells")} == set(sizes)


@pytest.mark.parametrize(("gpu", "case"), JOBS)
def test_codegen(gpu, case, reports):
    mine = [report for report in reports if (report["gpu"], report["case"]) == (gpu, case)]
    assert mine
    for report in mine:
        kernel = report["kernel"]
        assert report["stack"] <= STACK.get(kernel, 0), f"{report}: a stack is where a kernel spills"
        assert report["registers"] <= CEILINGS[kernel], report
        # Triton 3.6 loses a scalar that begins as the same function of the loop's variable that it goes on as.
        assert report["carried"]["ttgir"] == report["carried"]["ttir"], report
        if kernel == "_cells":  # a lane has a cell's outputs for itself, or sums of them would need the others
            assert report["lanes"] == ["1, 1, 32"], report
        if "contiguous" in case and kernel in WIDEST:
            load, store = WIDEST[kernel]
            assert report["bits"]["ld"] >= load and report["bits"]["st"] >= store, report
        if case == "bilinear_upsample_backward-zero":  # whose windows begin at multiples of 16 bytes
            assert report["bits"]["ld"] == 128, report
