"""Plants bugs in the kernels and operations, one at a time and in a copy, and sees that a test finds each of them.

    python -P tools/mutate.py [NAME ...]

Prints the test that found it for each bug; exits with 1 where a bug was not found, or where the code to change is gone.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("csrc", "fcn_fast", "kernels", "tests", "_build.py", "setup.py", "pyproject.toml", "README.md", "LICENSE")
# Each: what is wrong, file, what stands there, what is put in its place.
BUGS = {
    "swapped-taps": (
        "the two rows of an output row change places",
        "csrc/cpu/rows.h",
        "mul_add(splat(high_weight), at(high), at(low) * low_weight)",
        "mul_add(splat(high_weight), at(low), at(high) * low_weight)",
    ),
    "crop-of-one-axis": (
        "the skip is cropped at the top, but not at the left",
        "csrc/cpu/rows.h",
        "* skip->w + left) * planes.inner",
        "* skip->w) * planes.inner",
    ),
    "footprint-off-by-one": (
        "the last row of every footprint is left out of the gradient",
        "csrc/cpu/bilinear_upsample.cpp",
        "for (int32_t k = 0; k < count; ++k) total",
        "for (int32_t k = 0; k + 1 < count; ++k) total",
    ),
    "border-gradient-lost": (
        "the fused loss forgets what belongs to the last row of a clamped map",
        "csrc/cpu/upsample_softmax_loss.cpp",
        "if (last == task_.logits.h + 1) fold(last, last - 1);",
        "",
    ),
    "channels-last-unscaled": (
        "the gradient of a channels_last map is not divided",
        "csrc/cpu/upsample_softmax_loss.cpp",
        "return at(column) * scale;",
        "return at(column);",
    ),
    "band-seam": (
        "the coarse row that two bands share is taken from one of them alone",
        "csrc/cpu/upsample_softmax_loss.cpp",
        "store(above + i, load(above + i) + load(below + i));",
        "store(above + i, load(above + i));",
    ),
    "progression-too-long": (
        "cells too steep for a geometric progression are computed by one",
        "csrc/cpu/cells.h",
        "gentle &= most - least <= 20;",
        "gentle &= most - least <= 2000;",
    ),
    "ties-to-the-last": (
        "of equal scores the last class wins",
        "csrc/cpu/upsample_argmax.cpp",
        "const Ints<A> wins = value > best[k];",
        "const Ints<A> wins = value >= best[k];",
    ),
    "pruned-without-margin": (
        "classes that rounding could let win are pruned",
        "csrc/cpu/upsample_argmax.cpp",
        "bar = bar - size * (16 *",
        "bar = bar + size * (16 *",
    ),
    "ignored-counted": (
        "the mean is over all pixels, ignored ones too",
        "csrc/cpu/labels.h",
        "valid += label[i] >= 0;",
        "valid += 1;",
    ),
    "coordinates-off-by-half": (
        "half-pixel coordinates start half a pixel late",
        "fcn_fast/grid.py",
        "origin = (in_size[0] - size[0], in_size[1] - size[1])",
        "origin = (in_size[0], in_size[1])",
    ),
    "swapped-crop": (
        "top and left of a deconvolution's crop change places",
        "fcn_fast/grid.py",
        "origin = (2 * crop[0] + 1 - kernel, 2 * crop[1] + 1 - kernel)",
        "origin = (2 * crop[1] + 1 - kernel, 2 * crop[0] + 1 - kernel)",
    ),
    "padded-on-the-wrong-sides": (
        "the skip's gradient stands in the wrong place",
        "fcn_fast/ops/skip_fuse.py",
        "F.pad(grad_output, (left, right, top, bottom))",
        "F.pad(grad_output, (right, left, bottom, top))",
    ),
    "grad-output-forgotten": (
        "the fused loss's gradient does not see what arrives",
        "fcn_fast/ops/_gradient.py",
        "return gradient if factor == 1 else gradient.mul_(factor)",
        "return gradient",
    ),
    "weight-of-smoothing": (
        "label smoothing leaves the classes' weights out (reference)",
        "fcn_fast/reference.py",
        "(probability * labels.classes.sum() - class_weight)",
        "(probability * labels.classes.sum() - 1)",
    ),
    "second-derivative-silent": (
        "the second derivative of a loss is none, without a word",
        "fcn_fast/ops/_common.py",
        "if torch.is_grad_enabled():\n                leads",
        "if False:\n                leads",
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(BUGS)}")
    names = parser.parse_args().names or BUGS
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copy(ROOT / part, work / part, **({"symlinks": True} if copy is shutil.copytree else {}))
        one_instruction_set(work)
        build(work)
        if found := first_failure(work):
            raise SystemExit(f"mutate.py: {found} fails without any bug")
        for name in names:
            what, path, old, new = BUGS[name]
            found = plant(work, path, old, new)
            missed += [] if found else [name]
            print(f"{name}: {what}: {found or 'NOT FOUND'}", flush=True)
    print(f"{len(names) - len(missed)} of {len(names)} bugs found")
    return 1 if missed else 0


def plant(work, path, old, new):
    """The test that finds this bug, or None."""
    source = (work / path).read_text()
    if source.count(old) != 1:
        raise SystemExit(f"mutate.py: expected {old!r} once in {path}, got {source.count(old)}")
    try:
        (work / path).write_text(source.replace(old, new))
        build(work)  # where the bug is not in C++, what is left of the last one goes
        return first_failure(work)
    finally:
        (work / path).write_text(source)


def one_instruction_set(work):
    """AVX2 in the place of the baseline: the bugs are in what every instruction set is compiled from."""
    text = (work / "setup.py").read_text()
    if "\nX86 = " not in text or "\nISAS = " not in text:
        raise SystemExit("mutate.py: expected lines of X86 and ISAS in setup.py")
    flags = "(AVX2, 32)" if platform.machine() in ("x86_64", "AMD64") else '("", 16)'
    text = re.sub("(?m)^X86 = .*", "X86 = False", text)
    (work / "setup.py").write_text(re.sub("(?m)^ISAS = .*", f'ISAS = {{"baseline": {flags}}}', text))


def build(work):
    """Compile what changed, for speed of compiling."""
    environment = {**os.environ, "CXXFLAGS": "-O1", "FCN_FAST_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"mutate.py: does not compile:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def first_failure(work):
    """The first test of the operations that fails on this tree, or None."""
    environment = {**os.environ, "PYTHONPATH": str(work), "FCN_FAST_ALLOW_REFERENCE": "1", "FCN_FAST_TEST_SEED": "1"}
    # The same numbers every time: what fails does so for the bug alone.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=1"]
    command += ["tests/test_grid.py", "tests/ops", "-m", "not cuda", "-k", "not opcheck and not compile and not export"]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not failed:
        raise SystemExit(f"mutate.py: the tests did not run:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return failed[1]


if __name__ == "__main__":
    sys.exit(main())
