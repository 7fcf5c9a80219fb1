"""What is launched without Triton's looking through the arguments is what Triton would have launched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import codegen

CASES = [case[0] for case in codegen.cases(("float32",))]


@pytest.fixture(scope="session")
def calls():
    """{case: of each call (how many launches Triton looked through, what was launched)}"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("launches.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return {line["case"]: line["calls"] for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_codegen_launches_the_same_again(case, calls):
    (looked_through, first), (again, second), *_ = calls[case]
    assert looked_through == len(first) > 0
    assert again == 0
    assert second == first


def test_codegen_of_tensors_aligned_otherwise_is_another_kernel(calls):
    """What expects multiples of 16 bytes may not be launched on other addresses."""
    first, _, displaced, last = calls["bilinear_upsample-float32-contiguous"]
    assert displaced[0] == 1 and last[0] == 0
    ((programs, function, arguments),), ((_, expected, _),) = displaced[1], first[1]
    assert function != expected
    assert [programs, arguments] == [first[1][0][0], first[1][0][2]]
    assert last[1] == first[1]
