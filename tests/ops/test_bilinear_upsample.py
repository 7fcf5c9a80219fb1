import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from fcn_fast import BilinearGrid, nn, ops

from .support import (
    CLAMPED,
    DTYPES,
    FEW,
    HALF,
    LAYOUTS,
    SAMPLINGS,
    ZERO,
    as_pytorch,
    assert_all_near,
    exactly,
    has_layout,
    interpolation,
    randn,
    random_samplings,
    same_bits,
    with_grad,
)

pytestmark = pytest.mark.usefixtures("deterministic")
OPERATOR = torch.ops.fcn_fast.bilinear_upsample.default


def compare(sampling, x, grad_output):
    actual = with_grad(lambda x: ops.bilinear_upsample(x, **sampling.options), [x], grad_output)
    assert_all_near(actual, *(f(sampling.torch, [x], grad_output) for f in (exactly, as_pytorch)))
    return actual


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_values(sampling, dtype, implementation, device):
    x = randn(2, 3, *sampling.in_size, dtype=dtype, device=device)
    compare(sampling, x, randn(2, 3, *sampling.grid.size, dtype=dtype, device=device))


@pytest.mark.isa
def test_values_on_random_grids(implementation, device, seed):
    for sampling in random_samplings(seed, 25):
        x = randn(1, 2, *sampling.in_size, device=device)
        compare(sampling, x, randn(1, 2, *sampling.grid.size, device=device))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampling", [CLAMPED, ZERO], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 37])
def test_layouts(channels, sampling, layout, dtype, implementation, device):
    x = randn(2, channels, *sampling.in_size, dtype=dtype, device=device, layout=layout)
    for grad_layout in ("channels_last", "sliced"):
        grad_output = randn(2, channels, *sampling.grid.size, dtype=dtype, device=device, layout=grad_layout)
        for result in compare(sampling, x, grad_output):
            assert has_layout(result, layout)


@pytest.mark.parametrize("channels", [150, 300])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_channels(channels, layout, implementation, device):
    x = randn(1, channels, *ZERO.in_size, device=device, layout=layout)
    compare(ZERO, x, randn(1, channels, *ZERO.grid.size, device=device, layout=layout))


def test_expanded_gradient(implementation, device):
    x = randn(2, 3, *CLAMPED.in_size, device=device, dtype=torch.float64).requires_grad_()
    ops.bilinear_upsample(x, **CLAMPED.options).sum().backward()
    exact = x.detach().clone().requires_grad_()
    CLAMPED.torch(exact).sum().backward()
    torch.testing.assert_close(x.grad, exact.grad)


def test_backward_twice(device):
    x = randn(2, 3, *ZERO.in_size, device=device).requires_grad_()
    y = ops.bilinear_upsample(x, **ZERO.options)
    grad_output = torch.randn_like(y)
    first, second = (torch.autograd.grad(y, x, grad_output, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_no_graph_where_none_is_needed(device):
    x = randn(1, 2, 3, 4, device=device)
    assert not ops.bilinear_upsample(x, scale_factor=2).requires_grad
    with torch.no_grad():
        assert not ops.bilinear_upsample(x.requires_grad_(), scale_factor=2).requires_grad


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sampling", FEW[1:3] + FEW[4:], ids=str)
def test_derivatives(sampling, layout, implementation, device):
    x = randn(2, 2, *sampling.in_size, dtype=torch.float64, device=device, layout=layout).requires_grad_()
    fast = lambda x: ops.bilinear_upsample(x, **sampling.options)  # noqa: E731
    assert gradcheck(fast, [x], fast_mode=True)
    assert gradgradcheck(fast, [x], fast_mode=True)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(layout, requires_grad, device):
    x = randn(2, 3, *ZERO.in_size, device=device, layout=layout)
    grad_output = randn(2, 3, *ZERO.grid.size, device=device, layout=layout)
    numbers = ZERO.grid.numbers()
    torch.library.opcheck(OPERATOR, (x.requires_grad_(requires_grad), numbers))
    backward = torch.ops.fcn_fast.bilinear_upsample_backward.default
    torch.library.opcheck(backward, (grad_output.requires_grad_(requires_grad), list(ZERO.in_size), numbers))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "sampling", [*FEW, interpolation((5, 7), scale_factor=2), interpolation((5, 7), scale_factor=(1.3, 3.7))], ids=str
)
def test_compile(sampling, dynamic, compile, device):
    options = sampling.options
    fast = lambda x: ops.bilinear_upsample(x, **options)  # noqa: E731
    compiled = compile(fast, dynamic=dynamic, backend="aot_eager")
    sizes = [sampling.in_size] * 2 if "grid" in options else [sampling.in_size, (6, 4)]
    for batch, size in zip((2, 3), sizes, strict=True):
        x = randn(batch, 3, *size, device=device)
        grad_output = torch.randn_like(fast(x))
        for a, b in zip(with_grad(compiled, [x], grad_output), with_grad(fast, [x], grad_output), strict=True):
            assert torch.equal(a, b)


def test_inductor(compile, device):
    x = randn(2, 3, 5, 7, device=device)
    fast = lambda x: ops.bilinear_upsample(x * 2, scale_factor=2).relu()  # noqa: E731
    torch.testing.assert_close(compile(fast)(x), fast(x))


def test_export(device):
    x, larger = randn(2, 3, 5, 7, device=device), randn(4, 3, 6, 9, device=device)
    auto = torch.export.Dim.AUTO
    module = nn.BilinearUpsample(scale_factor=2)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    assert torch.equal(program.module()(larger), module(larger))


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_keeps_the_dtype(dtype, device):
    x = randn(1, 2, 3, 4, device=device)
    with torch.autocast(device, dtype=dtype):
        assert ops.bilinear_upsample(x, scale_factor=2).dtype == torch.float32
        assert ops.bilinear_upsample(x.to(dtype), scale_factor=2).dtype == dtype


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_batch(layout, implementation, device):
    x = randn(0, 3, *CLAMPED.in_size, device=device, layout=layout).requires_grad_()
    y = ops.bilinear_upsample(x, **CLAMPED.options)
    y.sum().backward()
    assert y.shape == (0, 3, *CLAMPED.grid.size) and x.grad.shape == x.shape


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("options", [{"size": (9, 17), "align_corners": True}, {"scale_factor": 4}], ids=str)
def test_taps_of_weight_zero_are_skipped(options, value, implementation, device):
    x = randn(1, 2, 5, 5, dtype=torch.float64, device=device)
    mask = torch.rand_like(x) < 0.15
    y = ops.bilinear_upsample(x.masked_fill(mask, value), **options)
    reached = F.interpolate(mask.double(), mode="bilinear", **options) > 0
    plain = F.interpolate(x.masked_fill(mask, 0), mode="bilinear", **options)
    torch.testing.assert_close(y, plain.masked_fill(reached, value), equal_nan=True)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits(layout, dtype, set_num_threads, device):
    grid = BilinearGrid.deconvolution((40, 50), 8, crop=(3, 5), size=(300, 390))
    x = randn(2, 21, 40, 50, dtype=dtype, device=device, layout=layout)
    grad_output = randn(2, 21, 300, 390, dtype=dtype, device=device, layout=layout)
    assert same_bits(
        lambda: with_grad(lambda x: ops.bilinear_upsample(x, grid=grid), [x], grad_output), set_num_threads
    )


X = torch.zeros(1, 2, 3, 4)
GRID = BilinearGrid.interpolate((3, 4), scale_factor=2)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ([None], {"size": 5}, TypeError, "input: expected a tensor, got NoneType"),
        ([X.int()], {"size": 5}, TypeError, "input: expected .*float32.*, got torch.int32"),
        ([X.to(torch.complex64)], {"size": 5}, TypeError, "input: expected .*, got torch.complex64"),
        ([X[0]], {"size": 5}, ValueError, r"input: expected 4 dimensions .*, got shape \(2, 3, 4\)"),
        ([X[:, :0]], {"size": 5}, ValueError, r"input: expected .*, got shape \(1, 0, 3, 4\)"),
        ([X[..., :0]], {"size": 5}, ValueError, r"input: expected .*, got shape \(1, 2, 3, 0\)"),
        ([X], {}, ValueError, "size, scale_factor: expected exactly one"),
        ([X], {"size": 5, "scale_factor": 2}, ValueError, "size, scale_factor: expected exactly one"),
        ([X], {"size": 0}, ValueError, "size: expected .*, got 0x0"),
        ([X], {"size": (5, -1)}, ValueError, "size: expected .*, got 5x-1"),
        ([X], {"size": 2.5}, ValueError, "size: expected an int or two ints, got 2.5"),
        ([X], {"size": (5, 6, 7)}, ValueError, "size: expected an int or two ints"),
        ([X], {"scale_factor": -1}, ValueError, "scale_factor: expected .*, got -1"),
        ([X], {"scale_factor": (1, 2, 3)}, ValueError, "scale_factor: expected"),
        ([X], {"scale_factor": float("inf")}, ValueError, "scale_factor: expected .*, got inf"),
        ([X], {"scale_factor": float("nan")}, ValueError, "scale_factor: expected .*, got nan"),
        ([X], {"scale_factor": "2"}, ValueError, "scale_factor: expected .*, got 2"),
        ([X], {"scale_factor": 0.1}, ValueError, "size: expected at least 1x1"),
        ([X], {"grid": 2}, TypeError, "grid: expected a BilinearGrid, got int"),
        ([X], {"grid": GRID, "size": (6, 8)}, ValueError, "grid: expected no size"),
        ([X], {"grid": GRID, "scale_factor": 2}, ValueError, "grid: expected no .*scale_factor"),
        ([X], {"grid": GRID, "align_corners": True}, ValueError, "grid: expected no .*align_corners"),
        ([X[..., 1:]], {"grid": GRID}, ValueError, "grid: expected one for .*3x3.*, got one for 3x4"),
    ],
)
def test_bad_input(args, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        ops.bilinear_upsample(*args, **options)
