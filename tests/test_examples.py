"""The examples run, and both of their sides give the same numbers."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {
    "evaluate": ("--batches", "2", "--size", "64"),
    "swap_the_loss": ("--steps", "2", "--size", "64"),
    "finetune_segformer": ("--steps", "2", "--size", "64"),
}


@pytest.mark.parametrize("name", SMALL)
def test_both_sides_agree(name):
    if name == "finetune_segformer":
        pytest.importorskip("transformers")
    command = [sys.executable, EXAMPLES / f"{name}.py", *SMALL[name]]
    lines = subprocess.check_output(command, text=True, stderr=subprocess.STDOUT).splitlines()
    rows = [line.split() for line in lines if line[:1].isdigit()]
    assert len(rows) == 2
    for _, plain, other in rows:
        assert float(other) == pytest.approx(float(plain), rel=1e-4)
    assert "MiB" in lines[-1] and "ms" in lines[-2]


def test_help_says_what_it_does():
    output = subprocess.check_output([sys.executable, EXAMPLES / "evaluate.py", "--help"], text=True)
    assert "full-resolution scores" in output and "default: 150" in output


def test_all_are_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SMALL, "side_by_side"}
