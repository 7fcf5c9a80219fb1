"""The same bits: on every run, at every thread count, in every process, beside other threads."""

import hashlib
import threading

import pytest
import torch

from .support import interpolation, same_bits
from .table import OPS

SAMPLING = interpolation((40, 50), size=(200, 250))


def large(op, device="cpu", **options):
    """A case whose work is shared out."""
    return op(SAMPLING, channels=21, device=device, **options)


def results(case, grad_output):
    return [x.contiguous() for x in case.with_grad(grad_output)]


def digest(tensors):
    return [hashlib.sha256(x.flatten().view(torch.uint8).numpy().tobytes()).hexdigest() for x in tensors]


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", OPS, ids=str)
def test_runs_and_thread_counts(op, layout, dtype, set_num_threads, device):
    for options in op.variants[-2:]:
        case = large(op, device, layout=layout, dtype=dtype, **options)
        grad_output = case.grad_output()
        assert same_bits(lambda: results(case, grad_output), set_num_threads)  # noqa: B023


@pytest.mark.parametrize("op", OPS, ids=str)
def test_more_threads_than_rows(op, set_num_threads):
    for options in op.variants:
        case = op(interpolation((1, 3), size=(2, 9)), batch=1, **options)
        grad_output = case.grad_output()
        set_num_threads(1)
        expected = results(case, grad_output)
        set_num_threads(16)
        assert all(torch.equal(a, b) for a, b in zip(results(case, grad_output), expected, strict=True))


@pytest.mark.parametrize("op", OPS, ids=str)
def test_batch_makes_no_difference(op, device):
    """Every image by itself gives the bits that it has in a batch; a reduced loss is another sum."""
    case = large(op, device, **({"reduction": "none", "given": "all"} if op.kind == "loss" else {}))
    output = case.run()
    others = [x if x is None or x.dim() < 3 else x[1:] for x in case.others]
    assert torch.equal(case.fast(*(x[1:] for x in case.inputs), *others), output[1:])


@pytest.mark.parametrize("op", OPS, ids=str)
def test_threads_of_python(op):
    """Calls from several threads at once, each of which asks PyTorch's pool for workers."""
    cases = [large(op) for _ in range(4)]
    grad_outputs = [case.grad_output() for case in cases]
    expected = [digest(results(*pair)) for pair in zip(cases, grad_outputs, strict=True)]
    failures = []

    def work(i):
        for _ in range(5):
            if digest(results(cases[i], grad_outputs[i])) != expected[i]:
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(method):
    """As workers of a DataLoader call them, after the parent has used its thread pool."""
    with torch.multiprocessing.get_context(method).Pool(1, torch.set_num_threads, (1,)) as pool:
        for op in OPS:
            module, case = op.module(), op(SAMPLING)
            arguments = (*case.inputs, *case.others[:1])
            expected = module(*arguments)
            assert torch.equal(pool.apply_async(module, arguments).get(120), expected)
