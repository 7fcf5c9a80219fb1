"""Random calls of the operations against the reference in float64.

    python -P tools/fuzz.py --calls 100000
    python -P tools/fuzz.py --seconds 60 --seed 7
    python -P tools/fuzz.py --leaks 10000

The compiled kernels are those of the instruction set that PyTorch chose; ATEN_CPU_CAPABILITY=default or avx2 chooses
another.

Every call has a number of its own: the seed of the first, and one more for each after it. A call that is wrong prints
its number, and --seed NUMBER --calls 1 brings it back. With --leaks nothing is compared: the same calls are made over
and over, and what the process holds must not grow.
"""

import argparse
import collections
import gc
import importlib
import random
import sys
import time
import types
import warnings
from pathlib import Path

import torch

from fcn_fast import kernels, reference

# The table is the tests'. They are no package that is installed, and none of their folders may come before one that is.
sys.modules["fcn_fast_tests"] = types.ModuleType("fcn_fast_tests")
sys.modules["fcn_fast_tests"].__path__ = [str(Path(__file__).resolve().parents[1] / "tests")]
support = importlib.import_module("fcn_fast_tests.ops.support")
table = importlib.import_module("fcn_fast_tests.ops.table")

KINDS = ("size", "scale_factor", "deconvolution", "rule")
CLASSES = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 21, 31, 32, 33, 64, 65)
LAYOUTS = (*support.LAYOUTS, "expanded")
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
ROUNDINGS = 16  # units in the last place that a result may be off, of the largest number that goes into it


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--calls", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--reference", action="store_true", help="in the compiled kernels' place")
    parser.add_argument("--leaks", type=int, metavar="CALLS")
    arguments = parser.parse_args()
    _library = put_reference_in_place() if arguments.reference else None
    if arguments.leaks:
        return leaks(arguments.seed, arguments.leaks)
    start = time.monotonic()
    counts, wrong, worst = run(arguments.seed, arguments.calls, start + arguments.seconds)
    names = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
    print(f"{sum(counts.values()):,} calls in {time.monotonic() - start:.0f} s from seed {arguments.seed}: {names}")
    print(f"largest error: {worst:.2f} of what is allowed; wrong calls: {wrong}")
    return 1 if wrong else 0


def put_reference_in_place():
    """The reference answers for the compiled kernels, for as long as what is returned lives."""
    library = torch.library.Library("fcn_fast", "IMPL")  # noqa: TOR901
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is a kernel already is the point
        for name in kernels.OPERATORS:
            library.impl(name, getattr(reference, name), "CPU")
    return library


def run(seed, calls, until=float("inf")):
    """Make calls until a limit; how many of each operation, how many wrong, the largest error over what is allowed."""
    counts, wrong, worst = collections.Counter(), 0, 0.0
    threads = torch.get_num_threads()
    for number in range(seed, seed + calls):
        if time.monotonic() > until:
            break
        case, facts = draw(number)
        counts[case.op.name] += 1
        torch.set_num_threads(facts["threads"])
        try:
            worst = max(worst, compare(case))
        except Exception as error:  # whatever is raised, the other calls are to be made all the same
            wrong += 1
            print(f"seed {number}: {type(error).__name__}: {error}\n  {facts}", flush=True)
    torch.set_num_threads(threads)
    return counts, wrong, worst


def draw(number):
    """A random call."""
    torch.manual_seed(number)
    pick = random.Random(number)
    op = pick.choice(table.OPS)
    sampling = support.random_sampling(pick, KINDS)
    facts = {
        "batch": pick.randint(0 if pick.random() < 0.05 else 1, 3),
        "channels": pick.choice(CLASSES),
        "dtype": pick.choice(support.DTYPES),
        "layout": pick.choice(LAYOUTS),
        "scale": pick.choice((0.01, 1, 5, 30, 100)),
    }
    if op.name == "skip_fuse":
        facts["crop"], facts["margin"] = ((pick.randint(0, 3), pick.randint(0, 3)) for _ in range(2))
        facts["skip_layout"] = pick.choice(LAYOUTS)
    if op.kind == "loss":
        options = support.LOSS_OPTIONS[: 5 if facts["channels"] == 1 else None]
        facts |= {"given": pick.choice(options), "reduction": pick.choice(support.REDUCTIONS)}
        facts["label_dtype"] = pick.choice(LABELS[1:] if facts["given"] == "ignore_index=-100" else LABELS)
    case = op(sampling, **facts)
    facts |= {"special": special(case, pick), "threads": pick.randint(1, 3)}
    return case, {"op": op.name, "grid": sampling.grid, **facts}


def special(case, pick):
    """Now and then, values that are not random: ties, and what is not finite."""
    kind = pick.choice(("", "", "", "ties", "not finite"))
    x = case.inputs[0]
    if kind == "ties":
        case.inputs[0] = x.sign()
    if kind == "not finite" and case.op.kind != "loss":
        value = pick.choice((float("inf"), -float("inf"), float("nan")))
        case.inputs[0] = torch.where(torch.rand(x.shape) < 0.1, value, x)
    return kind


def compare(case):
    """Hold a call and its gradients against the reference in float64; the largest error over what is allowed."""
    if case.op.kind == "labels":
        return compare_labels(case)
    inputs = [x.detach().double().requires_grad_() for x in case.inputs]
    output = case.exactly(*inputs)
    grad_output = case.grad_output()
    exact = [output.detach(), *torch.autograd.grad(output, inputs, grad_output.double())]
    actual = case.with_grad(grad_output)
    sizes = case.sizes(grad_output)
    if case.op.kind == "loss":  # off by as much as its logits are rounded
        logits = case.inputs[0].double().abs()
        sizes = [size * (1 + (logits.max().item() if logits.numel() else 0)) for size in sizes]
    return max(error(a, e, size) for a, e, size in zip(actual, exact, sizes, strict=True))


def error(actual, exact, size):
    """The largest error over what is allowed: ROUNDINGS of size in the arithmetic, and one in the result's dtype."""
    if actual.shape != exact.shape:
        raise AssertionError(f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}")
    if not exact.numel():
        return 0.0
    eps = torch.finfo(reference.accumulate_dtype(actual.dtype)).eps
    actual, dtype = actual.double(), actual.dtype
    # In float64 the reference is no nearer to the truth than what it judges.
    allowed = ROUNDINGS * eps * size * (8 if dtype == torch.float64 else 1)
    if dtype in support.HALF:
        allowed = allowed + torch.finfo(dtype).eps / 2 * exact.abs() + torch.finfo(dtype).smallest_normal
        exact = exact.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max) if exact.isfinite().all() else exact
    finite = exact.isfinite()
    if not torch.equal(actual.nan_to_num(0, 1, -1)[~finite], exact.nan_to_num(0, 1, -1)[~finite]):
        raise AssertionError("other infinities")
    if not torch.equal(actual.isnan(), exact.isnan()) or not torch.equal(actual.isfinite(), finite):
        raise AssertionError("not finite in other places")
    ratio = ((actual - exact).abs() / (allowed + 1e-300))[finite]
    ratio = ratio.max().item() if ratio.numel() else 0.0
    if ratio > 1:
        raise AssertionError(f"off by {ratio:.3g} of what is allowed")
    return ratio


def compare_labels(case):
    """The largest of our own upsampled scores, ties and what is not finite included."""
    (logits,), (numbers, _) = case.inputs, case.rest
    scores = torch.ops.fcn_fast.bilinear_upsample(logits.to(reference.accumulate_dtype(logits.dtype)), numbers)
    if not torch.equal(case.run().long(), scores.argmax(1)):
        raise AssertionError("other labels")
    return 0.0


def leaks(seed, calls):
    """Make the same hundred calls over and over; 1 where the process grew after the first tenth."""
    cases = [draw(seed + i)[0] for i in range(100)]
    grads = [None if case.op.kind == "labels" else case.grad_output() for case in cases]
    sizes = []
    for i in range(calls):
        if i % (calls // 10) == 0:
            gc.collect()
            sizes.append(resident())
        cases[i % len(cases)].with_grad(grads[i % len(cases)])
    sizes.append(resident())
    print(f"{calls:,} calls; MiB resident after each tenth: {', '.join(f'{size:.1f}' for size in sizes)}")
    grown = sizes[-1] - sizes[1]
    print(f"grown by {grown:.1f} MiB after the first tenth")
    return 1 if grown > 8 else 0


def resident():
    """MiB of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    sys.exit(main())
