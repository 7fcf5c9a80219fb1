"""The examples run, and both of their sides give the same numbers."""

import contextlib
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


@pytest.fixture(scope="module")
def started(request):
    """The examples of the tests to come, all at once: each is mostly imports, three times over, on one core."""
    tests = [item for item in request.session.items if item.path == Path(__file__) and hasattr(item, "callspec")]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with contextlib.ExitStack() as stack:
        processes = {}
        for name in [test.callspec.params["name"] for test in tests]:
            command = [sys.executable, EXAMPLES / f"{name}.py", *SMALL[name]]
            processes[name] = stack.enter_context(subprocess.Popen(command, **options))
            stack.callback(processes[name].kill)
        yield processes


@pytest.mark.parametrize("name", SMALL)
def test_both_sides_agree(name, started):
    if name == "finetune_segformer":
        pytest.importorskip("transformers")
    output = started[name].communicate(timeout=600)[0]
    assert started[name].returncode == 0, output
    lines = output.splitlines()
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
