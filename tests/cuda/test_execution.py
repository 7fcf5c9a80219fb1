"""What only a GPU shows of every operation: that it follows streams and devices, is captured in graphs, never waits."""

import pytest
import torch

import fcn_fast
from fcn_fast import BilinearGrid, env, kernels, ops, reference

from ..ops.support import interpolation
from ..ops.table import OPS

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
SAMPLING = interpolation((40, 50), size=(200, 250))
CASES = pytest.mark.parametrize(
    ("op", "options"), [(op, options) for op in OPS for options in op.variants], ids=lambda part: str(part)
)


def make(op, options, device="cuda"):
    return op(SAMPLING, channels=21, device=device, **options)


def equal(actual, expected):
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def fill(case, other):
    for to, values in zip((*case.inputs, *case.others), (*other.inputs, *other.others), strict=True):
        if to is not None:
            to.copy_(values)


def test_kernels_run_and_not_the_reference():
    compiled = bool(fcn_fast._C and fcn_fast._C.build_facts()["cuda_version"])
    for name in kernels.OPERATORS:
        expected = "CUDA C++" if compiled and name.startswith("softmax_loss") else "Triton"
        assert env.kernel_of(name, "cuda") == expected
        assert expected != "Triton" or kernels._working(name) is not getattr(reference, name)


@CASES
def test_graphs(op, options):
    """Captured, forward and backward, and replayed on other numbers."""
    case = make(op, options)
    grad_output = case.grad_output()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.with_grad(grad_output)  # what is done once is done
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = case.with_grad(grad_output)
    for _ in range(2):
        other = make(op, options)
        fill(case, other)
        graph.replay()
        assert equal(results, other.with_grad(grad_output))


@CASES
def test_streams(op, options):
    """On a stream of its own, behind something slow that writes the inputs."""
    case, other = make(op, options), make(op, options)
    grad_output = case.grad_output()
    expected = other.with_grad(grad_output)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        fill(case, other)
        results = case.with_grad(grad_output)
    torch.cuda.synchronize()
    assert equal(results, expected)


@CASES
def test_nothing_waits_for_the_gpu(op, options):
    case = make(op, options)
    grad_output = case.grad_output()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.with_grad(grad_output)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@CASES
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_device_than_the_current_one(op, options):
    case, other = make(op, options), make(op, options, "cuda:1")
    fill(other, case)
    grad_output = case.grad_output()
    assert torch.cuda.current_device() == 0
    actual, expected = other.with_grad(grad_output.to("cuda:1")), case.with_grad(grad_output)
    assert equal([x.cpu() for x in actual], [x.cpu() for x in expected])


def test_past_31_bits():
    """The last channel of a large map against itself alone, for which a kernel is compiled in 32 bits."""
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("less than 20 GiB of memory")
    for format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(1, 34, 1024, 1024, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=format)
        grid = BilinearGrid.interpolate(x.shape[2:], scale_factor=8).numbers()
        output = ops.bilinear_upsample(x, scale_factor=8)
        assert output.numel() > 1 << 31
        torch.testing.assert_close(output[:, -1:], ops.bilinear_upsample(x[:, -1:], scale_factor=8))
        grad = torch.ops.fcn_fast.bilinear_upsample_backward(output, x.shape[2:], grid)
        alone = torch.ops.fcn_fast.bilinear_upsample_backward(output[:, -1:], x.shape[2:], grid)
        torch.testing.assert_close(grad[:, -1:], alone)
        del output, grad
